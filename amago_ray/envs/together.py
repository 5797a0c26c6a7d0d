"""Environments of one kind that are stepped at once, in arrays, each exactly as it would step by itself.

    class MyEnv(gym.Env):
        @staticmethod
        def together(envs: Sequence[MyEnv]) -> Together | None: ...

Environments are still built, seeded and reset one by one; what a step needs of them then lies in arrays. A kind that
draws random numbers in `step`, which would have to come from N generators in turn, does not offer it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

LEAST_ENVS = 8  # fewer are faster one by one
TRANSPARENT = (OrderEnforcing, PassiveEnvChecker)  # what `gymnasium.make` puts around everything, and changes nothing


class StepTogether(NamedTuple):
    """What one step of N environments gave, as `Env.step` does of one.

    obs: (N, ...). rewards: (N,), no less exact. terminated, truncated: (N,) bool. infos: those not empty, by row.
    """

    obs: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    infos: Mapping[int, dict[str, Any]]


class Together(ABC):
    """N environments whose state lies in arrays. What the environments themselves hold is out of date meanwhile.

    envs: where `begin` finds the state after a reset; one that was rebuilt takes its place there.
    """

    def __init__(self, envs: Sequence[Any]) -> None:
        self.envs = list(envs)

    @abstractmethod
    def begin(self, row: int) -> None:
        """Environment `row` was reset: take over its state."""

    @abstractmethod
    def step(self, actions: np.ndarray) -> StepTogether:
        """Take valid actions (N,), one in each environment, all of which are within a rollout. The arrays are new."""


def step_together(envs: Sequence[gym.Env]) -> Together | None:
    """What steps `envs` at once; None where they are of different kinds, of one that does not offer it, or too few."""
    inner = [bare(env) for env in envs]
    kind: Any = type(inner[0])
    # A subclass may have changed what a step is.
    if len(envs) < LEAST_ENVS or "together" not in vars(kind) or any(type(env) is not kind for env in inner):
        return None
    return kind.together(inner)


def bare(env: gym.Env) -> gym.Env:
    """What is inside the wrappers that `gymnasium.make` puts around every environment."""
    while isinstance(env, TRANSPARENT):
        env = env.env
    return env
