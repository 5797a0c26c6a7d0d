"""Memories of a user's own sequence model, as they are written in the simplest way (recorded steps: tests/gpu)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from agent_cases import ACTION_SPECS
from driver.probes.test_sequences import Recurrent, ResetsInPlace
from gpu.cases import PlainRecorder, agent_spec
from gymnasium import spaces
from policy_step_cases import N, Rollouts, act, decided

from amago_ray.agent.policy import Policy
from amago_ray.rollout.acting import ActingPolicy
from amago_ray.rollout.policy_step import GraphedPolicyStep, PolicyStep


def policies() -> list[Policy]:
    """Of equal weights: one whose resets make another memory, and one whose resets write into it."""
    made = [
        agent_spec(kind="continuous", encoder=encoder).build().policy.eval() for encoder in (Recurrent, ResetsInPlace)
    ]
    return [decided(policy, seed=1) for policy in made]


def launched(policy: Policy) -> PolicyStep:
    return PolicyStep(policy, ACTION_SPECS["continuous"], N, "cpu", False)


def recorded(policy: Policy) -> PolicyStep:
    return GraphedPolicyStep(policy, ACTION_SPECS["continuous"], N, "cpu", False, PlainRecorder())


@pytest.mark.parametrize("make", [launched, recorded])
def test_resets_in_place(make: Callable[[Policy], PolicyStep]) -> None:
    actions = []
    for policy in policies():
        step = make(policy)
        step.begin_all()
        actions.append(act(step, iter(Rollouts("continuous", ending=0.3)), 20))
    np.testing.assert_array_equal(*actions)
    assert len(np.unique(actions[0][:, 0], axis=0)) > 5


def test_resets_in_place_of_an_acting_policy() -> None:
    space = spaces.Dict(x=spaces.Box(-1, 1, (3,)), n=spaces.Discrete(4))
    starts = np.random.default_rng(0).random((12, 2)) < 0.4
    actions = []
    for policy in policies():
        acting, state = ActingPolicy(policy, space, spaces.Box(-1, 1, (2,)), sample=False), None
        random, taken = np.random.default_rng(1), []
        for start in starts:
            obs = {"x": random.uniform(-1, 1, (2, 3)).astype(np.float32), "n": random.integers(4, size=2)}
            action, state = acting.act(obs, state, episode_start=start, reward=np.zeros(2))
            taken.append(action)
        actions.append(np.stack(taken))
    np.testing.assert_array_equal(*actions)
