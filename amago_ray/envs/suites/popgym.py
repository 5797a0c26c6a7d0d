"""POPGym: one game as it comes, or many of them in one run, with one observation space and one action space."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.suites.extras import require

EXTRA = "popgym"

# Of every kind of game the easy form whose actions can be counted.
EASY_GAMES: tuple[str, ...] = (
    "popgym-AutoencodeEasy-v0",
    "popgym-BattleshipEasy-v0",
    "popgym-ConcentrationEasy-v0",
    "popgym-CountRecallEasy-v0",
    "popgym-HigherLowerEasy-v0",
    "popgym-MineSweeperEasy-v0",
    "popgym-MultiarmedBanditEasy-v0",
    "popgym-NoisyPositionOnlyCartPoleEasy-v0",
    "popgym-PositionOnlyCartPoleEasy-v0",
    "popgym-RepeatFirstEasy-v0",
    "popgym-RepeatPreviousEasy-v0",
    "popgym-VelocityOnlyCartpoleEasy-v0",
)


class SharedSpaces(gym.Wrapper):
    """Any observation and any countable action of a game, in spaces that are the same for many games.

    Observation, a Dict. "observation": float32 (num_features,), the game's own, flat, with one-hots for categories, and
    zeros to its end. "legal": MultiBinary (num_actions,), 1 for the actions that the game has; it can be the
    experiment's `action_mask_key`. Action: Discrete; a MultiDiscrete action of the game is counted in row-major order.
    An action that the game does not have counts from 0 again.

    Raises ValueError for a game that needs more features or actions than there are, and for actions without number.
    """

    def __init__(self, env: gym.Env, num_features: int, num_actions: int) -> None:
        super().__init__(env)
        needed = num_features_and_actions(env)
        for name, value, least in zip(("num_features", "num_actions"), (num_features, num_actions), needed):
            if value < least:
                raise ValueError(f"{name}={value!r}: must be at least {least} for {env}")
        self._num_features = num_features
        self._own_features, self._own_actions = needed
        self.observation_space = spaces.Dict(
            observation=spaces.Box(-np.inf, np.inf, shape=(num_features,), dtype=np.float32),
            legal=spaces.MultiBinary(num_actions),
        )
        self.action_space = spaces.Discrete(num_actions)
        self._legal = (np.arange(num_actions) < self._own_actions).astype(np.int8)

    def reset(self, **kwargs: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return self._observe(observation), info

    def step(self, action: int | np.int64) -> tuple[dict[str, NDArray[Any]], Any, bool, bool, dict[str, Any]]:
        number, space = int(action) % self._own_actions, self.env.action_space
        if isinstance(space, spaces.MultiDiscrete):
            own = space.start + np.array(np.unravel_index(number, space.nvec), dtype=space.dtype)
        else:
            assert isinstance(space, spaces.Discrete)
            own = space.start + space.dtype.type(number)
        observation, reward, terminated, truncated, info = self.env.step(own)
        return self._observe(observation), reward, terminated, truncated, info

    def _observe(self, observation: Any) -> dict[str, NDArray[Any]]:
        features = np.zeros(self._num_features, dtype=np.float32)
        features[: self._own_features] = np.asarray(spaces.flatten(self.env.observation_space, observation))
        return {"observation": features, "legal": self._legal.copy()}


def num_features_and_actions(env: gym.Env) -> tuple[int, int]:
    """Length of a flat observation of `env`, and how many actions it has. Raises ValueError if they have no number."""
    match env.action_space:
        case spaces.Discrete(n=num):
            actions = int(num)
        case spaces.MultiDiscrete(nvec=nvec):
            actions = int(np.prod(nvec))
        case space:
            raise ValueError(f"{env} has actions of {space}, and games that share spaces need actions to be counted")
    return spaces.flatdim(env.observation_space), actions


@gin.configurable
def popgym_games(env_ids: Sequence[str] = EASY_GAMES) -> list[tuple[Any, dict[str, Any]]]:
    """For `make_train_env`: these games, which take turns and share their spaces, each under its own name.

    Use "legal" as the `action_mask_key`. Raises ModuleNotFoundError without the package popgym, ValueError for a game
    whose actions cannot be counted.
    Source: "multi-domain POPGym" of Grigsby et al. 2024, AMAGO-2, arXiv 2411.11188.
    """
    sizes = [_sizes_of(env_id) for env_id in env_ids]
    if not sizes:
        raise ValueError(f"popgym_games.env_ids={list(env_ids)!r}: it must name at least one game")
    num_features, num_actions = (max(size) for size in zip(*sizes))
    shared = {"num_features": num_features, "num_actions": num_actions}
    return [(make_popgym, {"env_id": env_id} | shared) for env_id in env_ids]


@gin.configurable
def make_popgym(
    env_id: str = "popgym-RepeatPreviousEasy-v0",
    num_features: int | None = None,
    num_actions: int | None = None,
    **kwargs: Any,
) -> gym.Env:
    """One game of POPGym by its gymnasium id, as it comes, or in `SharedSpaces` if both numbers are given.

    kwargs: as for `gymnasium.make`. Raises ModuleNotFoundError without the package popgym, ValueError for one number
    without the other.
    Source: Morad et al. 2023, arXiv 2303.01859.
    """
    if (num_features is None) != (num_actions is None):
        raise ValueError(f"num_features={num_features!r}, num_actions={num_actions!r}: give both of them or neither")
    require("popgym", EXTRA)
    env = gym.make(env_id, **kwargs)
    if num_features is None or num_actions is None:
        return env
    return SharedSpaces(env, num_features, num_actions)


@cache
def _sizes_of(env_id: str) -> tuple[int, int]:
    env = make_popgym(env_id)
    try:
        return num_features_and_actions(env)
    finally:
        env.close()
