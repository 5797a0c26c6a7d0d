"""Bandit: a new row of slot machines at each rollout, and n pulls to find the best and use it."""

from __future__ import annotations

from operator import index
from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.builtin.arguments import check_integer


@gin.configurable
class Bandit(gym.Env[NDArray[np.float32], np.int64]):
    """A k-armed Bernoulli bandit: `reset` draws each arm's chance uniformly from [0, 1], and `num_pulls` pulls follow.

    A pull gives reward 1 with the chance of its arm, else 0. The last one terminates the rollout.

    Actions: 0 ... num_arms - 1. Observation, float32 (1,): always 1. A pull is an episode of its own, all its states
    are the same, and all that there is to know are earlier actions and rewards, which agents see in any case.

    `info` at the end of a rollout has "AMAGO_LOG_METRIC Regret": what the best arm was worth more, in expectation,
    than the arms that were pulled.

    num_arms: at least 2. num_pulls: pulls in one rollout.
    Raises ValueError for an argument out of range, and for an action that is no arm.
    Source: Duan et al. 2016, RL², arXiv 1611.02779, section 3.1 (k = 5, 10, 50; n = 10, 100, 500).
    """

    metadata = {"render_modes": []}

    def __init__(self, num_arms: int = 5, num_pulls: int = 10) -> None:
        self.num_arms = check_integer("num_arms", num_arms, at_least=2)
        self.num_pulls = check_integer("num_pulls", num_pulls, at_least=1)
        self.observation_space = spaces.Box(0.0, 1.0, shape=(1,), dtype=np.float32)
        self.action_space = spaces.Discrete(self.num_arms)

    @property
    def env_name(self) -> str:
        return f"Bandit-k{self.num_arms}-n{self.num_pulls}"

    @property
    def chances(self) -> tuple[float, ...]:
        """Of each arm, to give reward 1."""
        return tuple(self._chances)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """New arms. `options` are not used."""
        super().reset(seed=seed)
        self._chances = self.np_random.random(self.num_arms).tolist()
        self._best = max(self._chances)
        self._pulls = 0
        self._regret = 0.0
        return np.ones(1, dtype=np.float32), {}

    def step(self, action: int | np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        arm = index(action)
        if not 0 <= arm < self.num_arms:
            raise ValueError(f"action={arm!r}: must be an integer from 0 to {self.num_arms - 1}")
        self._pulls += 1
        self._regret += self._best - self._chances[arm]
        reward = float(self.np_random.random() < self._chances[arm])
        over = self._pulls == self.num_pulls
        info = {"AMAGO_LOG_METRIC Regret": self._regret} if over else {}
        return np.ones(1, dtype=np.float32), reward, over, False, info
