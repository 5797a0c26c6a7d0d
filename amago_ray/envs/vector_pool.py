"""A user's VectorEnv as a pool, in any of gymnasium's autoreset modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from amago_ray.envs.amago_env import env_name_of, has_attribute, name_before_reset
from amago_ray.envs.last_obs import LastObsWatch, share_memory
from amago_ray.envs.pool import (
    FAILURES,
    MAX_FAILURES_IN_A_ROW,
    Pool,
    Transition,
    close_env,
    converters,
    env_seeds,
    reset_env,
    step_result,
)


class VectorEnvPool(Pool):
    """A user's gymnasium VectorEnv as a pool, in any of gymnasium's autoreset modes.

    In mode NEXT_STEP a row resets during the step after its end, which is no transition: the `begin` after the end
    returns fresh=False, the following step stepped=False and the `begin` after that fresh=True; where all rows have
    ended together, `begin` takes that step and returns fresh=True for all of them. Only in mode DISABLED
    can `begin` start rollouts that have not ended. A VectorEnv of many tasks names them in an attribute `env_names`.

    make: builds the VectorEnv; called again if it fails, which fails all of its environments at once. seed, first_env:
    its first reset is seeded from (seed, first_env). max_failures_in_a_row: without a finished rollout in between.

    Raises ValueError if it does not say its mode, and whatever `make` raises.
    """

    def __init__(
        self,
        make: Callable[[], VectorEnv],
        seed: int,
        max_failures_in_a_row: int = MAX_FAILURES_IN_A_ROW,
        first_env: int = 0,
    ) -> None:
        self._make = make
        self._env = make()
        try:
            super().__init__(converters(self._env), self._env.num_envs, max_failures_in_a_row)
            self._mode = _autoreset_mode(self._env)
        except BaseException:
            close_env(self._env)
            raise
        self.env_names = [name_before_reset(self._env)] * self.num_envs
        with suppress(*FAILURES):  # names that are only known after a reset are asked for then
            self.env_names = _vector_names(self._env)
        self.awaits_last_obs = self._mode is AutoresetMode.SAME_STEP
        self._last_obs_watch = LastObsWatch(self._env)
        self._first_env = first_env
        self.reseed(seed)
        self._started = np.zeros(self.num_envs, bool)  # NEXT_STEP: in the last step
        self._start_obs = self._observation.empty(self.num_envs)  # the other modes: of the rollouts that `begin` starts

    def reseed(self, seed: int) -> None:
        self._seeds = env_seeds(seed, self._first_env)
        self._next_seed: int | None = next(self._seeds)

    def reset(self, turn: int = 0) -> dict[str, np.ndarray]:
        self._retry(slice(None), self._start_all)
        return self._obs

    def step(self, actions: np.ndarray) -> Transition:
        infos: dict[int, dict[str, float]] = {}
        try:
            infos = self._advance(actions)
        except FAILURES as error:
            self._fail_all(error)
        return self._transition(infos)

    def begin(self, ended: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        try:
            if not self._failed.any():
                return self._begin_ended(ended)
        except FAILURES as error:
            self._fail_all(error)
        self._fresh[:] = True
        return self.reset(), self._fresh

    def close(self) -> None:
        _close(self._env, broken=bool(self._failed.any()))

    def _advance(self, actions: np.ndarray) -> dict[int, dict[str, float]]:
        """Step all rows once. Returns what was logged in the rollouts that ended."""
        obs, rewards, terminated, truncated, info = step_result(self._env.step(self._action.to_env(actions)))
        _copy(rewards, self._rewards)
        _copy(terminated, self._terminated)
        _copy(truncated, self._truncated)
        self._skip_resetting()
        ended = self._terminated | self._truncated
        if self._mode is AutoresetMode.SAME_STEP:
            self._observation.write_batch(self._start_obs, obs)
            infos = self._take_same_step(obs, info, ended)
        else:
            self._observation.write_batch(self._obs, obs)
            self._logged.add_batch(info, np.ones(self.num_envs, bool))
            infos = self._logged.take(ended)
            self._resetting[:] = ended & (self._mode is AutoresetMode.NEXT_STEP)
        self._raise_unless_finite()
        if ended.any():
            self._failures_in_a_row[:] = 0
        return infos

    def _begin_ended(self, ended: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        match self._mode:
            case AutoresetMode.NEXT_STEP:
                if self._resetting.all():  # any action does: all rows reset
                    self._advance(np.zeros((self.num_envs, *self.action_spec.shape), self.action_spec.dtype))
                self._fresh[:] = self._started
            case AutoresetMode.SAME_STEP:
                np.logical_or(self._terminated, self._truncated, out=self._fresh)
            case AutoresetMode.DISABLED:
                self._fresh[:] = ended
        if not self._fresh.any():
            return self._obs, self._fresh
        if self._mode is AutoresetMode.DISABLED:
            obs, info = reset_env(self._env, None, {"reset_mask": self._fresh.copy()})
            self._observation.write_batch(self._start_obs, obs)
            self._logged.clear(self._fresh)
            self._logged.add_batch(info, self._fresh)
        if self._mode is not AutoresetMode.NEXT_STEP:
            for name, column in self._obs.items():
                column[self._fresh] = self._start_obs[name][self._fresh]
            self._raise_unless_finite()
        _rename(self.env_names, self._env, self._fresh)
        return self._obs, self._fresh

    def _skip_resetting(self) -> None:
        """Rows that only reset made no transition; they start a rollout in the coming `begin`."""
        self._started[:] = self._resetting
        np.logical_not(self._resetting, out=self._stepped)
        for column in (self._rewards, self._terminated, self._truncated):
            column[self._resetting] = 0

    def _take_same_step(self, obs: Any, info: Any, ended: np.ndarray) -> dict[int, dict[str, float]]:
        """SAME_STEP: part the rollouts that ended from those that have begun in the same step.

        obs: what the step returned, as in `_start_obs`: the first observations of the next rollouts where one `ended`.
        Returns what was logged in the rollouts that ended.
        """
        for name, column in self._obs.items():
            np.copyto(column, self._start_obs[name], where=~ended.reshape(-1, *[1] * (column.ndim - 1)))
        self._logged.add_batch(info, ~ended)
        if not ended.any():
            return {}
        for row in np.flatnonzero(ended).tolist():
            if (last_obs := _last_obs(info, row)) is not None:
                self.awaits_last_obs = False
                self._write_last_obs(row, last_obs, obs)
            elif not self._terminated[row]:
                raise ValueError(
                    "autoreset in SAME_STEP needs the last observation of a truncated rollout, whose value is looked "
                    'at, in infos["final_obs"]: have the VectorEnv keep it, or choose AutoresetMode.NEXT_STEP'
                )  # that of a terminated one has no value: its row keeps the observation before
        self._logged.add_batch(_last_info(info), ended)
        infos = self._logged.take(ended)
        self._logged.add_batch(info, ended)
        return infos

    def _write_last_obs(self, row: int, last_obs: Any, obs: Any) -> None:
        """SAME_STEP: what a rollout ended with, in place of what it saw before. obs: what the step returned."""
        if not self._last_obs_watch.open(row):
            self._observation.write(self._obs, row, last_obs)
            return
        before = {name: column[row].copy() for name, column in self._obs.items()}
        self._observation.write(self._obs, row, last_obs)
        last, first = ({name: column[row] for name, column in of.items()} for of in (self._obs, self._start_obs))
        self._last_obs_watch.look(row, before, last, first, share_memory(last_obs, obs))

    def _start_all(self) -> None:
        if self._failed.any():
            self._rebuild()
        obs, info = reset_env(self._env, self._next_seed)
        self._next_seed = None
        self._observation.write_batch(self._obs, obs)
        self._raise_unless_finite()
        self._resetting[:] = self._started[:] = False
        everywhere = np.ones(self.num_envs, bool)
        self._logged.clear(everywhere)
        self._logged.add_batch(info, everywhere)
        self.env_names = _vector_names(self._env)

    def _rebuild(self) -> None:
        _close(self._env, broken=True)
        self._env = self._make()
        if self._env.num_envs != self.num_envs:
            raise ValueError(f"the rebuilt VectorEnv has {self._env.num_envs} environments instead of {self.num_envs}")
        self._last_obs_watch = LastObsWatch(self._env)
        self._next_seed = next(self._seeds)
        self._failed[:] = False

    def _raise_unless_finite(self) -> None:
        for row, fault in self._not_finite().items():
            raise ValueError(f"environment {row} of {self.num_envs}: {fault}")

    def _fail_all(self, error: BaseException) -> None:
        self._fail(slice(None), error)
        self._stepped[:] = False


def _close(env: VectorEnv, broken: bool) -> None:
    """broken: a step of it was not made. Gymnasium's one in processes would wait for that step, whoever has died."""
    if broken and isinstance(env.unwrapped, AsyncVectorEnv):
        with suppress(*FAILURES):
            env.close(terminate=True)
    else:
        close_env(env)


def _copy(values: Any, column: np.ndarray) -> None:
    array = np.asarray(values)
    if array.shape not in (column.shape, (*column.shape, 1)):
        raise ValueError(f"rewards, terminated and truncated must have shape {column.shape}, not {array.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"rewards, terminated and truncated must be numbers, not of dtype {array.dtype}")
    array = array.reshape(column.shape)
    if column.dtype == bool and array.dtype != bool and not (good := (array == 0) | (array == 1)).all():
        row = int(np.argmin(good))
        raise ValueError(
            f"environment {row} of {len(column)}: terminated and truncated must be True or False, or 1 or 0, not "
            f"{array[row]}"
        )
    column[:] = array


def _last_obs(info: Any, row: int) -> Any:
    """The observation that a rollout ended with in SAME_STEP, None where none is given; info: as of `add_batch`."""
    if isinstance(info, Mapping):
        return _row_of(info["final_obs"], row) if "final_obs" in info else None
    return (info[row] or {}).get("final_obs")


def _last_info(info: Any) -> Any:
    """What rollouts ended with in SAME_STEP, in the form that `info` has."""
    if isinstance(info, Mapping):
        final = info.get("final_info")
        return {} if final is None else final
    return [(each or {}).get("final_info") for each in info]


def _row_of(batch: Any, row: int) -> Any:
    """One environment's observation out of many, in the space's structure or one for each row."""
    if isinstance(batch, Mapping):
        return {key: _row_of(part, row) for key, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_row_of(part, row) for part in batch)
    return batch[row]


def _autoreset_mode(env: VectorEnv) -> AutoresetMode:
    mode = env.metadata.get("autoreset_mode")
    if mode is None:
        raise ValueError(
            f"{name_before_reset(env)} must say in metadata['autoreset_mode'] what it does where a rollout ends: set "
            "env.metadata = {'autoreset_mode': gymnasium.vector.AutoresetMode.SAME_STEP} (it returns the next rollout's"
            " first observation in that very step), NEXT_STEP (in the step after) or DISABLED"
        )
    return AutoresetMode(mode)


def _vector_names(env: VectorEnv) -> list[str]:
    """The name of each environment: as the VectorEnv says or, if it holds them in this process, as they say."""
    names = [""] * env.num_envs
    _rename(names, env, np.ones(env.num_envs, bool))
    return names


def _rename(names: list[str], env: VectorEnv, rows: np.ndarray) -> None:
    """Write the names of some environments, (N,) bool, into those of all."""
    base: Any = env.unwrapped
    if has_attribute(base, "env_names"):
        names[:] = map(str, base.env_names)
    elif hasattr(base, "envs"):
        for row in rows.nonzero()[0].tolist():
            names[row] = env_name_of(base.envs[row])
    else:
        names[:] = [env_name_of(env)] * len(names)
