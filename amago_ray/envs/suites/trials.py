"""Several episodes of one task as one rollout, so that the later ones can use what the earlier ones have shown."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.builtin.arguments import check_integer

SAME_TASK = {"same_task": True}  # `options` of the resets between the episodes of a rollout


class Trials(gym.Wrapper):
    """`num_episodes` episodes in one rollout, each of `episode_steps` steps or until the environment ends it.

    The observation has one more entry at its end, 1 at the first reading of an episode and after the last one, else 0.
    The step that ends an episode returns the first observation of the next; the end of the last one truncates the
    rollout. `info` is empty but at the end of a rollout, where it has "AMAGO_LOG_METRIC Episode i Return" of every
    episode, and "AMAGO_LOG_METRIC Episode i Success" where the environment's `info` has "success" (whether ever).

    env: one with flat observations, that draws a task at each `reset` but one with `options` of `SAME_TASK`.
    Raises ValueError for an argument out of range, and for an environment of other observations.
    """

    def __init__(self, env: gym.Env, num_episodes: int = 2, episode_steps: int = 200) -> None:
        super().__init__(env)
        self.num_episodes = check_integer("num_episodes", num_episodes, at_least=1)
        self.episode_steps = check_integer("episode_steps", episode_steps, at_least=1)
        inner = env.observation_space
        if not isinstance(inner, spaces.Box) or len(inner.shape) != 1:
            raise ValueError(f"env={env}: must have flat observations, and its space is {inner}")
        low, high = np.append(inner.low, 0.0), np.append(inner.high, 1.0)
        self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new task and its first episode."""
        observation, _ = self.env.reset(seed=seed, options=options)
        self._returns: list[float] = []
        self._successes: list[float] = []
        self._begin_episode()
        return _flagged(observation, True), {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        self._returns[-1] += float(reward)
        if "success" in info:
            self._successes[-1] = max(self._successes[-1], float(info["success"]))
        if not (terminated or truncated or self._steps == self.episode_steps):
            return _flagged(observation, False), float(reward), False, False, {}
        if len(self._returns) == self.num_episodes:
            return _flagged(observation, True), float(reward), False, True, self._metrics("success" in info)
        observation, _ = self.env.reset(options=SAME_TASK)
        self._begin_episode()
        return _flagged(observation, True), float(reward), False, False, {}

    def _begin_episode(self) -> None:
        self._steps = 0
        self._returns.append(0.0)
        self._successes.append(0.0)

    def _metrics(self, with_success: bool) -> dict[str, float]:
        found = {"Return": self._returns} | ({"Success": self._successes} if with_success else {})
        return {
            f"AMAGO_LOG_METRIC Episode {i} {what}": value
            for what, values in found.items()
            for i, value in enumerate(values, start=1)
        }


def is_same_task(options: dict[str, Any] | None) -> bool:
    """Whether `options` of a `reset` are those of `SAME_TASK`."""
    return bool(options and options.get("same_task"))


def _flagged(observation: NDArray[Any], begins: bool) -> NDArray[np.float32]:
    return np.append(observation, begins).astype(np.float32)
