"""Plain environments as a pool, stepped one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from amago_ray.envs.amago_env import env_name_of, name_before_reset, names_its_own_tasks
from amago_ray.envs.pool import (
    FAILURES,
    MAX_FAILURES_IN_A_ROW,
    Pool,
    Transition,
    check_same_spaces,
    close_env,
    converters,
    env_seeds,
    reset_env,
    spaces_of,
    step_result,
    vector_env_in_list,
)
from amago_ray.envs.together import Together, bare, step_together

_FLAGS = (bool, np.bool_)


@dataclass(frozen=True)
class Counters:
    """How far each of N environments has come: all that another pool needs to go on in their place. (N,) int64 each.

    rollout: number of the current rollout, as of `Pool.reset`. seeds_used: of those that the environment is given in
    turn. failures_in_a_row: without a finished rollout in between.
    """

    rollout: np.ndarray
    seeds_used: np.ndarray
    failures_in_a_row: np.ndarray

    @classmethod
    def zeros(cls, num_envs: int) -> Counters:
        return cls(*np.zeros((3, num_envs), np.int64))


class EnvPool(Pool):
    """N plain environments, stepped one after the other in this process.

    makers: one function per task. num_envs: N, by default one environment per task. total_envs: those of the run, of
    which this pool has `first_env` and the N - 1 that follow; by default up to its own last one.

    Rollout r (from the `turn` of the last `reset`) of environment e of the run is of task (e + r * total_envs) modulo
    the number of tasks: where they divide total_envs, each environment keeps its task, and all tasks get as many
    timesteps; else all get as many rollouts, however long these are. A rollout that failed is begun again with the same
    task. Environments that no longer have their task's turn are kept for the next.

    seed: environment e is seeded from (seed, e): where it keeps its task at its first reset only and with another seed
    after it was rebuilt, where tasks take turns at every reset with the next seed.
    labels: what is appended to the names of each task's environments.
    counters: are kept up to date before any environment is called. Where they are not 0, they are another pool's, in
    whose place this one goes on: with `begin`, where that one would have gone on with `reset` or `begin`.

    Raises ValueError if two environments differ in their spaces, or are one object; TypeError for what is no gymnasium
    environment; and whatever the makers raise.
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], gym.Env]],
        seed: int,
        max_failures_in_a_row: int = MAX_FAILURES_IN_A_ROW,
        first_env: int = 0,
        num_envs: int | None = None,
        total_envs: int | None = None,
        labels: Sequence[str] | None = None,
        counters: Counters | None = None,
    ) -> None:
        num_envs = num_envs or len(makers)
        self._makers, self._labels = list(makers), labels or [""] * len(makers)
        self._first_env, self._total_envs = first_env, total_envs or first_env + num_envs
        self._takes_turns = self._total_envs % len(self._makers) != 0
        counters = counters or Counters.zeros(num_envs)
        self._rollout, self._seeds_used = counters.rollout, counters.seeds_used
        self._task = [self._task_of(index) for index in range(num_envs)]
        self._idle: list[list[gym.Env]] = [[] for _ in self._makers]
        self._envs: list[gym.Env] = []
        try:
            for task in self._task:
                self._envs.append(self._build(task))
            super().__init__(converters(self._envs[0]), num_envs, max_failures_in_a_row)
        except BaseException:
            self.close()
            raise
        tasks = zip(self._envs, self._task, strict=True)
        self.env_names = [name_before_reset(env) + self._labels[task] for env, task in tasks]
        self._failures_in_a_row = counters.failures_in_a_row
        self._seed, self._begun = seed, False
        self._next_seed: list[int | None] = [self._draw_seed(index) for index in range(num_envs)]

        self._together = step_together(self._envs) if len(self._makers) == 1 else None

    @property
    def steps_together(self) -> bool:
        """Whether all environments are stepped at once (see `envs.together`)."""
        return self._together is not None

    @property
    def spaces(self) -> tuple[gym.Space, gym.Space]:
        """Observation and action space, which all environments share."""
        return spaces_of(self._envs[0])

    @property
    def names_its_own_tasks(self) -> bool:
        """Whether the name of an environment may change from one rollout to the next."""
        return names_its_own_tasks(self._envs[0])

    def reseed(self, seed: int) -> None:
        self._seed = seed
        self._seeds_used[:] = 0
        self._next_seed = [self._draw_seed(index) for index in range(self.num_envs)]

    def reset(self, turn: int = 0) -> dict[str, np.ndarray]:
        self._begun = False  # no rollout is in progress that would have to be counted
        self._rollout[:] = turn
        return self.begin(np.ones(self.num_envs, bool))[0]

    def step(self, actions: np.ndarray) -> Transition:
        if self._together is not None:
            self._step_together(self._together, actions)
        else:
            self._step_one_by_one(actions)
        for index, fault in self._not_finite().items():
            self._fail(index, ValueError(fault))
        np.logical_not(self._failed, out=self._stepped)
        ended = self._terminated | self._truncated
        return self._transition(self._logged.take(ended) if np.count_nonzero(ended) else {})

    def _step_together(self, together: Together, actions: np.ndarray) -> None:
        result = together.step(self._action.to_env(actions))
        self._observation.write_batch(self._obs, result.obs)
        self._rewards[:], self._terminated[:], self._truncated[:] = result[1:4]
        for row, info in result.infos.items():
            self._logged.add(row, info)

    def _step_one_by_one(self, actions: np.ndarray) -> None:
        obs, rewards, terminated, truncated = self._obs, self._rewards, self._terminated, self._truncated
        write = self._observation.write
        for index, (env, action) in enumerate(zip(self._envs, self._action.each_to_env(actions), strict=True)):
            try:
                env_obs, reward, terminates, truncates, info = step_result(env.step(action))
                write(obs, index, env_obs)
                rewards[index] = reward if isinstance(reward, float) else _scalar("reward", reward)
                terminated[index] = terminates if isinstance(terminates, _FLAGS) else _flag("terminated", terminates)
                truncated[index] = truncates if isinstance(truncates, _FLAGS) else _flag("truncated", truncates)
                if info:
                    self._logged.add(index, info)
            except FAILURES as error:
                self._fail(index, error)

    def begin(self, ended: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        np.logical_or(ended, self._failed, out=self._fresh)
        for index in self._fresh.nonzero()[0].tolist():
            if not self._failed[index]:
                self._finish_rollout(index)
            self._retry(index, partial(self._start_rollout, index))
        self._begun = True
        return self._obs, self._fresh

    def leave(self, ended: np.ndarray) -> None:
        """In place of `begin`: rollouts `ended` (N,) bool, and another pool with the same counters begins the next."""
        for index in np.flatnonzero(ended).tolist():
            self._finish_rollout(index)

    def close(self) -> None:
        for env in self._all():
            close_env(env)

    def _finish_rollout(self, index: int) -> None:
        """Count one; where none has begun yet, there is none to count."""
        if self._begun:
            self._failures_in_a_row[index] = 0
            self._rollout[index] += 1

    def _draw_seed(self, index: int) -> int:
        used = int(self._seeds_used[index])
        self._seeds_used[index] += 1
        return next(env_seeds(self._seed, self._first_env + index, used))

    def _task_of(self, index: int) -> int:
        """Number of the task of the current rollout of row `index`."""
        return (self._first_env + index + int(self._rollout[index]) * self._total_envs) % len(self._makers)

    def _start_rollout(self, index: int) -> None:
        """Reset one environment, rebuilt if it had failed, with the task whose turn it is."""
        if self._failed[index]:
            self._rebuild(index)
        elif (task := self._task_of(index)) != self._task[index]:
            replacement = self._idle[task].pop() if self._idle[task] else self._build(task)
            self._idle[self._task[index]].append(self._envs[index])
            self._envs[index], self._task[index] = replacement, task
        if self._takes_turns and self._next_seed[index] is None:
            self._next_seed[index] = self._draw_seed(index)
        obs, info = reset_env(self._envs[index], self._next_seed[index])
        self._next_seed[index] = None
        self._observation.write(self._obs, index, obs)
        if self._together is not None:
            self._together.begin(index)
        if fault := self._not_finite().get(index):
            raise ValueError(fault)
        self._logged.clear(index)
        self._logged.add(index, info)
        self.env_names[index] = env_name_of(self._envs[index]) + self._labels[self._task[index]]

    def _rebuild(self, index: int) -> None:
        close_env(self._envs[index])
        self._task[index] = self._task_of(index)
        self._envs[index] = self._build(self._task[index])
        self._next_seed[index] = self._draw_seed(index)
        self._failed[index] = False
        if self._together is not None:
            self._together.envs[index] = bare(self._envs[index])

    def _build(self, task: int) -> gym.Env:
        """A new environment of `task`, which fits those that there are."""
        env = self._makers[task]()
        for other in self._all():
            check_separate(env, other)
        try:
            if isinstance(env, VectorEnv):
                raise vector_env_in_list(env)
            if self._envs:
                check_same_spaces(env, spaces_of(self._envs[0]), name_before_reset(self._envs[0]))
        except (TypeError, ValueError):
            close_env(env)
            raise
        return env

    def _all(self) -> list[gym.Env]:
        """All environments that there are, those that wait for their task's turn included."""
        return [*self._envs, *(env for idle in self._idle for env in idle)]


def check_separate(env: Any, other: Any) -> None:
    """Raises ValueError where two environments are one object, whatever their wrappers."""
    if getattr(env, "unwrapped", env) is getattr(other, "unwrapped", other):
        raise ValueError(
            f"make_env returned the same {name_before_reset(env)} object twice: it must build a new environment at "
            "every call, as in lambda: MyEnv()"
        )


def _scalar(what: str, given: Any) -> float:
    """One number, which may come as an array of one element."""
    value = np.asarray(given)
    if value.size != 1 or value.dtype.kind not in "biuf":
        raise ValueError(f"the {what} must be one number, not {given!r} of type {type(given).__name__}")
    return float(value.item())


def _flag(what: str, given: Any) -> bool:
    """True or False, which may come as 1 or 0."""
    value = _scalar(what, given)
    if value not in (0.0, 1.0):
        raise ValueError(f"{what} must be True or False, or 1 or 0, not {given!r}")
    return bool(value)
