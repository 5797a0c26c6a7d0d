"""Whether a rollout has ended: True or False, or 1 or 0, and nothing else."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from amago_ray.envs.makers import make_pool


class Saying(gym.Env):
    """Says in its second step that its rollout has ended, or been cut."""

    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, what: str, ended: Any, goes_on: Any = False) -> None:
        self.what, self.ended, self.goes_on, self.at = what, ended, goes_on, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.at = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict]:
        self.at += 1
        said = self.ended if self.at == 2 else self.goes_on
        terminated, truncated = (said, False) if self.what == "terminated" else (False, said)
        return np.zeros(2, np.float32), 1.0, terminated, truncated, {}


def steps(env: Saying) -> Any:
    pool, found = make_pool(lambda: env, 1, 0, seed=0), []
    pool.reset()
    for _ in range(2):
        transition = pool.step(np.zeros(1, np.int64))
        found.append((bool(transition.terminated[0]), bool(transition.truncated[0])))
    return found, bool(transition.failed[0]), pool.last_failure


@pytest.mark.parametrize("what", ["terminated", "truncated"])
@pytest.mark.parametrize(("ended", "goes_on"), [(True, False), (1, 0), (1.0, 0.0), (np.array([1]), np.array([False]))])
def test_ones_and_zeros_are_flags(what: str, ended: Any, goes_on: Any) -> None:
    last = (what == "terminated", what == "truncated")
    assert steps(Saying(what, ended, goes_on)) == ([(False, False), last], False, "")


@pytest.mark.parametrize("what", ["terminated", "truncated"])
@pytest.mark.parametrize("bad", [float("nan"), 2, -1, 0.5, np.float32(np.nan)])
def test_what_is_neither_is_a_failure_that_says_so(what: str, bad: Any) -> None:
    found, failed, said = steps(Saying(what, bad))
    assert failed and found[-1] == (False, False)
    assert f"ValueError: {what} must be True or False, or 1 or 0, not {bad!r}" in said
