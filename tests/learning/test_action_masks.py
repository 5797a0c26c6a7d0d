"""Where only some actions are legal, the best legal one is learned, and no illegal one is ever chosen."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from small_agents import small_agent_spec, with_gammas

from amago_ray import config
from amago_ray.agent import Agent, MultiTaskAgent
from amago_ray.nets.critics import NCritics, NCriticsTwoHot
from amago_ray.nets.traj_encoders import FFTrajEncoder
from amago_ray.rollout.evaluate import evaluate_policy
from amago_ray.single_process import SingleProcess

NUM_ACTIONS, STEPS, MAX_EPOCHS = 6, 8, 20
WORTH = np.array([3, 0, 5, 1, 4, 2])  # a secret order: a legal action is right if none that is legal is worth more


class Restricted(gym.Env):
    """A random half of the actions is legal at each step. An illegal one pays nothing, or ends in an error."""

    observation_space = gym.spaces.Dict(
        x=gym.spaces.Box(-1, 1, (1,), np.float32), legal=gym.spaces.MultiBinary(NUM_ACTIONS)
    )
    action_space = gym.spaces.Discrete(NUM_ACTIONS)

    def __init__(self, strict: bool):
        self.strict = strict

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        if self.strict and not self.legal[action]:
            raise ValueError(f"action {action} is illegal: {self.legal}")
        right = action == np.where(self.legal, WORTH, -1).argmax()
        self.time += 1
        return self._observe(), float(right) / STEPS, self.time == STEPS, False, {}

    def _observe(self) -> dict[str, np.ndarray]:
        self.legal = np.zeros(NUM_ACTIONS, np.int8)
        self.legal[self.np_random.permutation(NUM_ACTIONS)[: NUM_ACTIONS // 2]] = 1
        return {"x": np.zeros(1, np.float32), "legal": self.legal.copy()}


@pytest.mark.parametrize(("agent_type", "critic_type"), [(Agent, NCritics), (MultiTaskAgent, NCriticsTwoHot)])
def test_the_best_legal_action_is_learned(agent_type: type[Agent], critic_type: type) -> None:
    bins = ["NCriticsTwoHot.min_return = -1.0", "NCriticsTwoHot.max_return = 10.0", "NCriticsTwoHot.output_bins = 32"]
    config.load([], [*with_gammas(0.1), *bins])
    spec = small_agent_spec(
        partial(Restricted, False), partial(FFTrajEncoder, d_model=32, n_layers=1), STEPS,
        agent_type=agent_type, critic_type=critic_type, gamma=0.5, tau=0.02,
    )  # fmt: skip
    spec = dataclasses.replace(spec, action_mask_key="legal")
    training, score = SingleProcess(partial(Restricted, False), spec, steps_anneal=100), 0.0
    for epoch in range(MAX_EPOCHS):
        training.epoch(steps_per_env=2 * STEPS, batches=30)
        weights = training.learner.publish(epoch + 1000)
        results = evaluate_policy(spec, weights, partial(Restricted, True), episodes=50, num_envs=50)
        score = float(np.mean([result.total_reward for result in results]))
        if score > 0.85:
            break
    assert score > 0.85, "a random legal action is right a third of the time"
    unmasked = dataclasses.replace(spec, action_mask_key=None)
    with pytest.raises(Exception, match="is illegal"):
        evaluate_policy(unmasked, SingleProcess(partial(Restricted, False), unmasked).learner.publish(0),
                        partial(Restricted, True), episodes=50)  # fmt: skip
