"""A user's VectorEnv as a pool, in any of gymnasium's autoreset modes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from amago_ray.envs.amago_env import env_name_of
from amago_ray.envs.pool import Pool, Transition, env_seeds, logged, reset_env


class VectorEnvPool(Pool):
    """A user's gymnasium VectorEnv as a pool, in any of gymnasium's autoreset modes.

    In mode NEXT_STEP a row resets during the step after its end, which is no transition: the `begin` after the end
    returns fresh=False, the following step stepped=False and the `begin` after that fresh=True. Only in mode DISABLED
    can `begin` start rollouts that have not ended. A VectorEnv of many tasks names them in an attribute `env_names`.

    make: builds the VectorEnv; called again if it fails, which fails all of its environments at once. seed, first_env:
    its first reset is seeded from (seed, first_env). max_failures_in_a_row: without a finished rollout in between.
    """

    def __init__(
        self, make: Callable[[], VectorEnv], seed: int, max_failures_in_a_row: int = 5, first_env: int = 0
    ) -> None:
        self._make = make
        self._env = make()
        super().__init__(self._env, self._env.num_envs, max_failures_in_a_row)
        self.env_names = _vector_names(self._env)
        self._mode = _autoreset_mode(self._env)
        self._first_env = first_env
        self.reseed(seed)
        self._failures_in_a_row = 0
        self._resetting, self._started = np.zeros((2, self.num_envs), bool)  # NEXT_STEP: in the next, the last step
        self._start_obs = self._observation.empty(self.num_envs)  # the other modes: of the rollouts that `begin` starts

    def reseed(self, seed: int) -> None:
        self._seeds = env_seeds(seed, self._first_env)
        self._next_seed: int | None = next(self._seeds)

    def reset(self) -> dict[str, np.ndarray]:
        while True:
            try:
                if self._failed.any():
                    self._rebuild()
                obs = reset_env(self._env, self._next_seed)
                self._next_seed = None
                self._observation.write_batch(self._obs, obs)
                self._raise_unless_finite()
            except Exception as error:  # anything that a user's environment may raise
                self._fail_all(error)
                continue
            self._resetting[:] = self._started[:] = False
            self.env_names = _vector_names(self._env)
            return self._obs

    def step(self, actions: np.ndarray) -> Transition:
        infos: dict[int, dict[str, float]] = {}
        try:
            obs, rewards, terminated, truncated, info = self._env.step(self._action.to_env(actions))
            self._observation.write_batch(self._obs, obs)
            _copy(rewards, self._rewards)
            _copy(terminated, self._terminated)
            _copy(truncated, self._truncated)
            self._skip_resetting()
            ended = self._terminated | self._truncated
            infos = _vector_metrics(info, self._stepped)
            if self._mode is AutoresetMode.NEXT_STEP:
                self._resetting[:] = ended
            elif self._mode is AutoresetMode.SAME_STEP and ended.any():
                infos |= _vector_metrics(info.get("final_info", {}), ended)
                self._take_final_obs(info, ended)
            self._raise_unless_finite()
            if ended.any():
                self._failures_in_a_row = 0
        except Exception as error:  # anything that a user's environment may raise
            infos = {}
            self._fail_all(error)
        return self._transition(infos)

    def begin(self, ended: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        if self._failed.any():
            return self._begin_all()
        match self._mode:
            case AutoresetMode.NEXT_STEP:
                self._fresh[:] = self._started
            case AutoresetMode.SAME_STEP:
                np.logical_or(self._terminated, self._truncated, out=self._fresh)
            case AutoresetMode.DISABLED:
                self._fresh[:] = ended
        if not self._fresh.any():
            return self._obs, self._fresh
        try:
            if self._mode is AutoresetMode.DISABLED:
                obs = reset_env(self._env, None, {"reset_mask": self._fresh.copy()})
                self._observation.write_batch(self._start_obs, obs)
            if self._mode is not AutoresetMode.NEXT_STEP:
                for name, column in self._obs.items():
                    column[self._fresh] = self._start_obs[name][self._fresh]
            self._raise_unless_finite()
        except Exception as error:  # anything that a user's environment may raise
            self._fail_all(error)
            return self._begin_all()
        self.env_names = _vector_names(self._env)
        return self._obs, self._fresh

    def close(self) -> None:
        self._env.close()

    def _skip_resetting(self) -> None:
        """Rows that only reset made no transition; they start a rollout in the coming `begin`."""
        self._started[:] = self._resetting
        np.logical_not(self._resetting, out=self._stepped)
        for column in (self._rewards, self._terminated, self._truncated):
            column[self._resetting] = 0

    def _take_final_obs(self, info: dict[str, Any], ended: np.ndarray) -> None:
        """SAME_STEP: put the final observations in place of those that start the next rollouts, which are kept."""
        if "final_obs" not in info:
            raise ValueError('autoreset in SAME_STEP needs the last observations of a rollout in infos["final_obs"]')
        for name, column in self._obs.items():
            self._start_obs[name][:] = column
        for row in np.flatnonzero(ended).tolist():
            self._observation.write(self._obs, row, info["final_obs"][row])

    def _begin_all(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        self._fresh[:] = True
        return self.reset(), self._fresh

    def _rebuild(self) -> None:
        with suppress(Exception):  # it is broken: closing it may well fail too
            self._env.close()
        self._env = self._make()
        if self._env.num_envs != self.num_envs:
            raise ValueError(f"the rebuilt VectorEnv has {self._env.num_envs} environments instead of {self.num_envs}")
        self._next_seed = next(self._seeds)
        self._failed[:] = False

    def _raise_unless_finite(self) -> None:
        for row, fault in self._not_finite().items():
            raise ValueError(f"environment {row} of {self.num_envs}: {fault}")

    def _fail_all(self, error: Exception) -> None:
        self._failures_in_a_row += 1
        self._fail(slice(None), error, self._failures_in_a_row)
        self._stepped[:] = False


def _copy(values: Any, column: np.ndarray) -> None:
    if np.shape(values) != column.shape:
        raise ValueError(f"rewards, terminated and truncated must have shape {column.shape}, not {np.shape(values)}")
    column[:] = values


def _vector_metrics(info: dict[str, Any], rows: np.ndarray) -> dict[int, dict[str, float]]:
    """The logged entries of a VectorEnv's `info`, of those `rows` (N,) bool that have them."""
    found: dict[int, dict[str, float]] = {}
    for key, name in logged(info).items():
        present = rows & info.get(f"_{key}", True)
        for row in np.flatnonzero(present).tolist():
            found.setdefault(row, {})[name] = float(info[key][row])
    return found


def _autoreset_mode(env: VectorEnv) -> AutoresetMode:
    mode = env.metadata.get("autoreset_mode")
    if mode is None:
        raise ValueError(f"{env_name_of(env)} must say in metadata['autoreset_mode'] which AutoresetMode it has")
    return AutoresetMode(mode)


def _vector_names(env: VectorEnv) -> list[str]:
    """The name of each environment: as the VectorEnv says or, if it holds them in this process, as they say."""
    base = env.unwrapped
    if hasattr(base, "env_names"):
        return list(base.env_names)
    return [env_name_of(each) for each in base.envs] if hasattr(base, "envs") else [env_name_of(env)] * env.num_envs
