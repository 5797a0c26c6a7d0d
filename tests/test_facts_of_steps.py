"""From an environment's step to the learner's target, without Ray: how a rollout ended, and which action it was."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ring_cases import as_batch, sample
from small_agents import small_agent_spec

from amago_ray.learner.batches import training_batch
from amago_ray.nets.traj_encoders import FFTrajEncoder
from amago_ray.single_process import SingleProcess

LENGTH, GAMMA, VALUE = 3, 0.5, 4.0
START = -2


class Ending(gym.Env):
    """Rollouts of LENGTH steps that end as they are told; the reward is the action's number, -2 to 2."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(5, start=START)

    def __init__(self, terminated: bool, truncated: bool):
        self.ends = terminated, truncated

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.time += 1
        over = self.time == LENGTH
        return np.zeros(2, np.float32), float(action), over and self.ends[0], over and self.ends[1], {}


@pytest.mark.parametrize(
    ("terminated", "truncated"), [(True, False), (False, True), (True, True)], ids=["ended", "cut off", "both at once"]
)
def test_only_what_terminated_has_no_future(terminated: bool, truncated: bool) -> None:
    """Where both flags are set there is none. Every state is worth VALUE to these critics."""
    make_env = partial(Ending, terminated, truncated)
    spec = small_agent_spec(
        make_env, partial(FFTrajEncoder, d_model=8), 8, width=8,
        gamma=GAMMA, use_multigamma=False, popart=False, reward_multiplier=1.0,
    )  # fmt: skip
    ring = SingleProcess(make_env, spec, num_envs=4, batch_size=16)
    ring.epoch(5 * LENGTH, 0)
    batch = training_batch(as_batch(sample(ring.shard, 16)), spec.action_spec, torch.device("cpu"), packed=False)
    agent = ring.learner.agent
    with torch.no_grad():
        agent.target_critics.output_layer.weight.zero_()
        agent.target_critics.output_layer.bias.fill_(VALUE)
    target = agent.td_target(agent.encode(batch).next_state, batch)[..., 0]

    category = batch.actions.argmax(dim=-1)
    assert torch.equal(batch.rewards[batch.mask], category[batch.mask].float() + START)
    assert category[batch.mask].unique().numel() == 5
    last = torch.zeros_like(batch.mask)
    last[:, LENGTH - 1] = True
    assert batch.mask.sum(dim=1).eq(LENGTH).all()
    future = GAMMA * VALUE * (~(last & terminated)).float()
    torch.testing.assert_close(target, batch.real(batch.rewards + future))
