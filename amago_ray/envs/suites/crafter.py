"""Crafter: survive, and unlock 22 achievements, in a world of which only the surroundings are seen."""

from __future__ import annotations

from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.builtin.arguments import check_flag, check_integer
from amago_ray.envs.suites.extras import require


class Crafter(gym.Env[NDArray[np.uint8], np.int64]):
    """Crafter under gymnasium's interface: uint8 images (size, size, 3), 17 actions.

    Reward: 1 for every achievement that is unlocked for the first time in a rollout, and 0.1 for every point of health
    that is gained, -0.1 for one that is lost. Dying terminates; `max_episode_steps` truncates. At the end of a rollout
    `info` has "AMAGO_LOG_METRIC Achievements", how many were unlocked, and "AMAGO_LOG_METRIC Unlocked <name>", 1 or 0,
    of each: their mean over rollouts are the success rates that the paper's score is made of.

    game: Crafter's own environment. max_episode_steps: its length, if it has one.
    """

    metadata = {"render_modes": []}

    def __init__(self, game: Any) -> None:
        self._game = game
        shape = tuple(int(size) for size in game.observation_space.shape)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Discrete(int(game.action_space.n))

    @property
    def game(self) -> Any:
        """Crafter's own environment."""
        return self._game

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """A new world; with a seed the first of those that follow from it. `options` are not used."""
        super().reset(seed=seed)
        if seed is not None:
            # Crafter draws every world from its seed and the number of the rollout.
            self._game._seed, self._game._episode = seed, 0
        return self._game.reset(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        observation, reward, over, info = self._game.step(int(action))
        dead = bool(info["discount"] == 0)
        metrics: dict[str, Any] = {}
        if over:
            unlocked = {name: float(times > 0) for name, times in info["achievements"].items()}
            metrics = {f"AMAGO_LOG_METRIC Unlocked {name}": value for name, value in unlocked.items()}
            metrics["AMAGO_LOG_METRIC Achievements"] = sum(unlocked.values())
        return observation, float(reward), dead, bool(over) and not dead, metrics


@gin.configurable
def make_crafter(size: int = 64, reward: bool = True, max_episode_steps: int = 10_000) -> gym.Env:
    """Crafter, as `Crafter` says. Metrics are grouped under "Crafter".

    size: of the image. reward: False is the paper's setting without rewards.
    Raises ModuleNotFoundError without the package crafter, ValueError for an argument out of range.
    Source: Hafner 2021, arXiv 2109.06780.
    """
    check_integer("size", size, at_least=9)
    check_integer("max_episode_steps", max_episode_steps, at_least=1)
    check_flag("reward", reward)
    crafter = require("crafter", "crafter")
    return Crafter(crafter.Env(size=(size, size), reward=reward, length=max_episode_steps, seed=0))
