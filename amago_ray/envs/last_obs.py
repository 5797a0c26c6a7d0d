"""Whether a VectorEnv in SAME_STEP gives what a rollout ended with, and not what the next one begins with.

Gymnasium's own VectorEnvs keep the last observation as the object that the environment returned, and reset the
environment before anybody has seen it. One that writes all its observations into one array has overwritten it by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from amago_ray.envs.amago_env import name_before_reset
from amago_ray.envs.pool import FAILURES, close_env, closing_env, reset_env, step_result
from amago_ray.envs.spaces import ObsConverter
from amago_ray.warned import warn

OVERWRITTEN = (
    "autoreset in SAME_STEP: the last observation of a rollout was overwritten by the first one of the next, in an "
    "array that is used again; return new arrays at every step, as in obs.copy(), or choose AutoresetMode.NEXT_STEP"
)
SUSPICIOUS = 10  # rollouts that ended with what the next one began with, at which a warning says so
_TRIED_STEPS = (1, 2, 4)


def check_last_obs(env: VectorEnv) -> None:
    """Raises ValueError where the first environment of `env` is found to overwrite its last observations."""
    same_step = env.metadata.get("autoreset_mode") in (AutoresetMode.SAME_STEP, AutoresetMode.SAME_STEP.value)
    if same_step and overwrites(env, 0):
        name = name_before_reset(env)
        close_env(env)
        raise ValueError(f"environment {name}: {OVERWRITTEN}")


def overwrites(env: VectorEnv, row: int) -> bool | None:
    """Whether environment `row` of one of gymnasium's VectorEnvs writes over its last observation where it is reset.

    To find out, another one is built and tried in this process. None where it cannot be told.
    """
    base = env.unwrapped
    if type(base) is not SyncVectorEnv and (type(base) is not AsyncVectorEnv or base.worker is not None):
        return None  # others may have copied it
    with suppress(*FAILURES):
        one = base.env_fns[row]()
        if any(one.unwrapped is each.unwrapped for each in getattr(base, "envs", ())):
            return None  # it is one that is in use
        with closing_env(one):
            return _tried(one)
    return None


def _tried(env: gym.Env) -> bool | None:
    for number, steps in enumerate(_TRIED_STEPS):
        with suppress(*FAILURES):  # an action that is not legal, say
            found = _overwrites(env, steps, seed=number)
            if found is not None:
                return found
    return None


def _overwrites(env: gym.Env, steps: int, seed: int) -> bool | None:
    """None where it is one array, and what is in it is the same."""
    converter = ObsConverter(env.observation_space)
    env.action_space.seed(seed)
    last, _ = reset_env(env, seed)
    for _ in range(steps):
        last, _, terminated, truncated, _ = step_result(env.step(env.action_space.sample()))
        if terminated or truncated:
            break
    before = converter.flatten(last)
    first, _ = reset_env(env, None)
    if not _equal(before, converter.flatten(last)):
        return True
    return None if share_memory(last, first) else False


class LastObsWatch:
    """Looks at the first rollouts that end in each of N rows, until it is clear that all is well.

    A last observation that is the next rollout's first one, bit for bit, may be what an environment returns. It is an
    error where an environment like it is found to overwrite it, or where both are in the same memory.
    """

    def __init__(self, env: VectorEnv) -> None:
        self._env = env
        self._open = np.ones(env.num_envs, bool)  # rows of which it is not clear
        self._coincided = 0

    def open(self, row: int) -> bool:
        """Whether `look` has yet to see what row `row` ends with."""
        return bool(self._open[row])

    def look(
        self,
        row: int,
        before: Mapping[str, np.ndarray],
        last: Mapping[str, np.ndarray],
        first: Mapping[str, np.ndarray],
        same_memory: bool,
    ) -> None:
        """A rollout has ended in `row`. before, last: its last two observations. first: the one that the next begins
        with. same_memory: whether the VectorEnv returned `last` and `first` in one array. Raises ValueError."""
        if not _equal(last, first):
            self._open[row] = False
        elif not _equal(before, last):  # else nothing may change in it at all
            overwritten = overwrites(self._env, row)
            if overwritten or (overwritten is None and same_memory):
                raise ValueError(OVERWRITTEN)
            if overwritten is None:
                self._coincided += 1
            else:
                self._open[row] = False
        if self._coincided >= SUSPICIOUS and self._open.any():
            if self._open.all():
                warn(
                    f"{name_before_reset(self._env)}: {SUSPICIOUS} rollouts ended with the very observation that the "
                    "next one began with; if that is not what the environment does, its infos['final_obs'] has been "
                    "overwritten: it must be kept in an array of its own",
                    stacklevel=2,
                )
            self._open[:] = False


def share_memory(one: Any, other: Any) -> bool:
    """Whether arrays of two observations, of any structure, lie in the same memory."""
    others = list(_arrays(other))
    return any(np.shares_memory(x, y) for x in _arrays(one) for y in others)


def _arrays(obs: Any) -> Iterator[np.ndarray]:
    if isinstance(obs, Mapping):
        obs = list(obs.values())
    if isinstance(obs, np.ndarray) and obs.dtype != object:
        yield obs
    elif isinstance(obs, (list, tuple, np.ndarray)):
        for part in obs:
            yield from _arrays(part)


def _equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Bit for bit."""
    return all(array.tobytes() == other[name].tobytes() for name, array in one.items())
