"""Plain environments as a pool, stepped one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from amago_ray.envs.amago_env import env_name_of
from amago_ray.envs.pool import Pool, Transition, converters, env_seeds, logged, reset_env, vector_env_in_list

_STEP_RESULT = "step must return (observation, reward, terminated, truncated, info), as in gymnasium"


class EnvPool(Pool):
    """N plain environments, stepped one after the other in this process.

    makers: one function per environment. seed, first_env: environment i is seeded, at its first reset only, from
    (seed, first_env + i); a rebuilt one gets a seed of its own.
    max_failures_in_a_row: of one environment, without a finished rollout in between.

    Raises ValueError if two environments differ in their spaces, TypeError for what is no gymnasium environment, and
    whatever the makers raise.
    """

    def __init__(
        self, makers: Sequence[Callable[[], gym.Env]], seed: int, max_failures_in_a_row: int = 5, first_env: int = 0
    ) -> None:
        self._makers = list(makers)
        self._envs = [maker() for maker in self._makers]
        super().__init__(self._envs[0], len(self._envs), max_failures_in_a_row)
        self.env_names = [env_name_of(env) for env in self._envs]
        for env in self._envs[1:]:
            self._check_like_first(env)
        self._first_env = first_env
        self.reseed(seed)
        self._failures_in_a_row = [0] * self.num_envs

    def reseed(self, seed: int) -> None:
        self._seeds = [env_seeds(seed, self._first_env + index) for index in range(self.num_envs)]
        self._next_seed: list[int | None] = [next(seeds) for seeds in self._seeds]

    def reset(self) -> dict[str, np.ndarray]:
        return self.begin(np.ones(self.num_envs, bool))[0]

    def step(self, actions: np.ndarray) -> Transition:
        obs, rewards, terminated, truncated = self._obs, self._rewards, self._terminated, self._truncated
        write = self._observation.write
        infos: dict[int, dict[str, float]] = {}
        for index, (env, action) in enumerate(zip(self._envs, self._action.to_env(actions), strict=True)):
            try:
                result = env.step(action)
                if len(result) != 5:
                    raise TypeError(_STEP_RESULT)
                env_obs, reward, terminated[index], truncated[index], info = result
                write(obs, index, env_obs)
                rewards[index] = reward if isinstance(reward, float) else _scalar(reward)
                if info and (metrics := _metrics(info)):
                    infos[index] = metrics
            except Exception as error:  # anything that a user's environment may raise
                self._fail_one(index, error)
        for index, fault in self._not_finite().items():
            infos.pop(index, None)
            self._fail_one(index, ValueError(fault))
        np.logical_not(self._failed, out=self._stepped)
        return self._transition(infos)

    def begin(self, ended: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        np.logical_or(ended, self._failed, out=self._fresh)
        for index in np.flatnonzero(self._fresh).tolist():
            self._start_rollout(index)
        return self._obs, self._fresh

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _start_rollout(self, index: int) -> None:
        """Reset one environment, after rebuilding it as often as it fails."""
        if not self._failed[index]:
            self._failures_in_a_row[index] = 0
        while True:
            try:
                if self._failed[index]:
                    self._rebuild(index)
                obs = reset_env(self._envs[index], self._next_seed[index])
                self._next_seed[index] = None
                self._observation.write(self._obs, index, obs)
                if fault := self._not_finite().get(index):
                    raise ValueError(fault)
            except Exception as error:  # anything that a user's environment may raise
                self._fail_one(index, error)
                continue
            self.env_names[index] = env_name_of(self._envs[index])
            return

    def _rebuild(self, index: int) -> None:
        with suppress(Exception):  # it is broken: closing it may well fail too
            self._envs[index].close()
        env = self._makers[index]()
        self._check_like_first(env)
        self._envs[index] = env
        self._next_seed[index] = next(self._seeds[index])
        self._failed[index] = False

    def _fail_one(self, index: int, error: Exception) -> None:
        self._failures_in_a_row[index] += 1
        self._fail(index, error, self._failures_in_a_row[index])

    def _check_like_first(self, env: Any) -> None:
        if isinstance(env, VectorEnv):
            raise vector_env_in_list(env)
        observation, action = converters(env)
        first = self._envs[0]
        for what, same, of_first, of_env in (
            ("observation", observation == self._observation, first.observation_space, env.observation_space),
            ("action", action.space == self._action.space, first.action_space, env.action_space),
        ):
            if not same:
                raise ValueError(
                    f"environments must have the same {what} space: {self.env_names[0]} has {of_first}, "
                    f"{env_name_of(env)} has {of_env}"
                )


def _scalar(reward: Any) -> float:
    value = np.asarray(reward)
    if value.shape != () or value.dtype.kind not in "biuf":
        raise ValueError(f"the reward must be one number, not {reward!r} of type {type(reward).__name__}")
    return float(value)


def _metrics(info: dict[str, Any]) -> dict[str, float]:
    """The logged entries of one environment's `info`."""
    return {name: float(info[key]) for key, name in logged(info).items()}
