"""Tasks of different spaces in one run: one observation space and one action space for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.pool import closing_env
from amago_ray.envs.tasks import Entry, build, maker_of


class SharedSpaces(gym.Wrapper):
    """Any observation and any countable action of a task, in spaces that are the same for many tasks.

    Observation, a Dict. "observation": float32 (num_features,), the task's own, flat, with one-hots for categories, and
    zeros to its end. "legal": MultiBinary (num_actions,), 1 for the actions that the task has; it can be the
    experiment's `action_mask_key`. Action: Discrete; a MultiDiscrete action of the task is counted in row-major order.
    An action that the task does not have counts from 0 again.

    Raises ValueError for a task that needs more features or actions than there are, and for actions without number.
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
            raise ValueError(f"{env} has actions of {space}, and tasks that share spaces need actions to be counted")
    try:
        return spaces.flatdim(env.observation_space), actions
    except (NotImplementedError, ValueError):
        raise ValueError(f"{env} has observations of {env.observation_space}, which have no flat form") from None


@gin.configurable
def share_spaces(tasks: Sequence[Entry] = ("CartPole-v1", "Acrobot-v1")) -> list[Entry]:
    """For `make_train_env`: these tasks, of any suites, which take turns and share their spaces, each under its name.

    tasks: gymnasium ids, makers, or pairs of either and a dict of its arguments. Use "legal" as the `action_mask_key`.
    Raises ValueError for an empty list, for a task that cannot be built, and for one whose actions cannot be counted.
    Source: "multi-domain POPGym" of Grigsby et al. 2024, AMAGO-2, arXiv 2411.11188.
    """
    if not tasks:
        raise ValueError(f"share_spaces.tasks={list(tasks)!r}: it must name at least one task")
    num_features, num_actions = (max(sizes) for sizes in zip(*map(_sizes_of, tasks)))
    shared = {"num_features": num_features, "num_actions": num_actions}
    return [(make_shared, {"task": task} | shared) for task in tasks]


def make_shared(task: Entry, num_features: int, num_actions: int) -> gym.Env:
    """The environment of `task` in `SharedSpaces`."""
    return SharedSpaces(maker_of(task)(), num_features, num_actions)


def _sizes_of(task: Entry) -> tuple[int, int]:
    with closing_env(build(task)) as env:
        return num_features_and_actions(env)
