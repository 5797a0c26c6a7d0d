"""What every pool of environments is: the interface, the arrays, the checks, and the count of failures."""

from __future__ import annotations

import math
import signal
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from amago_ray.envs.amago_env import name_before_reset
from amago_ray.envs.logged import LoggedMetrics
from amago_ray.envs.spaces import ActionConverter, ObsConverter
from amago_ray.specs import ActionSpec, ObsSpec

T = TypeVar("T")
MAX_FAILURES_IN_A_ROW = 5  # of one environment, at which the run ends
_MOST_TOLD = 500  # characters of what an environment that failed said
MOST_SQUARED = 4096  # numbers; beyond it BLAS may start threads
LARGEST_REWARD = float(np.finfo(np.float32).max)  # beyond it a stored one would be infinite

_STEP_RESULT = "step must return (observation, reward, terminated, truncated, info), as in gymnasium"
_RESET_RESULT = "reset must return (observation, info), as in gymnasium"


def _ctrl_c_cannot_come() -> bool:
    """Whether this is one of Ray's workers, in which SIGINT is blocked: a KeyboardInterrupt is of what runs here then.

    In a driver, which Ray also blocks it for where it is submitted as a job, it is what ends a start.
    """
    blocked = hasattr(signal, "pthread_sigmask") and signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return blocked and any(argument.endswith("default_worker.py") for argument in sys.orig_argv)


# What a user's environment may raise. Simulators exit when their window goes away, or take a key for Ctrl-C.
FAILURES: tuple[type[BaseException], ...] = (
    (Exception, SystemExit, KeyboardInterrupt) if _ctrl_c_cannot_come() else (Exception, SystemExit)
)


class EnvFailure(RuntimeError):
    """One environment failed too many times in a row.

    last: what it failed with the last time, in one line. Its `__cause__` says it too, but is lost where it is pickled.
    """

    last = ""


@dataclass(slots=True)
class Transition:
    """Result of one step of all N environments.

    obs: arrays (N, ...) after the step; where a rollout ended, its final observation.
    rewards: (N,) float64, as the environments gave them: returns are their sums. Stored and seen they are float32.
    terminated, truncated: (N,) bool. failed: (N,) bool, the environment broke; `begin` rebuilds it.
    stepped: (N,) bool, False where there was no transition: the environment failed, or was only resetting. Such rows
    have zero reward and did not end.
    infos: what was logged in the rollouts that ended, by row (see `logged.LoggedMetrics`).
    """

    obs: dict[str, np.ndarray]
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    stepped: np.ndarray
    failed: np.ndarray
    infos: dict[int, dict[str, float]] = field(default_factory=dict)


class Pool(ABC):
    """What both kinds of pool share: the arrays, the checks of numbers, and the count of failures.

    num_envs: N. env_names: current name of each environment (a rollout's name changes in `begin`). failures: how many
    there were. last_failure: traceback of the newest one.
    max_failures_in_a_row: of one environment, without a finished rollout in between.
    awaits_last_obs: whether it is still to be seen that a rollout's last observation is given where it ends.
    """

    awaits_last_obs = False

    def __init__(
        self, converters: tuple[ObsConverter, ActionConverter], num_envs: int, max_failures_in_a_row: int
    ) -> None:
        self.num_envs = num_envs
        self.max_failures_in_a_row = max_failures_in_a_row
        self.failures = 0
        self.last_failure = self._first_failure = ""
        self.env_names: list[str] = [""] * num_envs
        self._observation, self._action = converters
        self.obs_spec: ObsSpec = self._observation.spec
        self.action_spec: ActionSpec = self._action.spec
        self._obs = self._observation.empty(num_envs)
        self._real_obs = {name: column for name, column in self._obs.items() if column.dtype.kind == "f"}
        self._logged = LoggedMetrics(num_envs)
        self._resetting = np.zeros(num_envs, bool)  # in the coming step, which is none
        self._failures_in_a_row = np.zeros(num_envs, np.int64)
        self._rewards = np.zeros(num_envs)
        self._terminated, self._truncated, self._stepped, self._failed, self._fresh = np.zeros((5, num_envs), bool)

    @abstractmethod
    def reset(self, turn: int = 0) -> dict[str, np.ndarray]:
        """Start a rollout in every environment. Returns their observations (N, ...).

        turn: number of this rollout, where tasks take turns. One that grows lets all of them have theirs, however few
        rollouts there are until the next reset.
        """

    @abstractmethod
    def reseed(self, seed: int) -> None:
        """Seed the environments anew, with the coming `reset`, as those of a pool that was built with `seed`."""

    @abstractmethod
    def step(self, actions: np.ndarray) -> Transition:
        """Take stored actions (N, ...), one in each environment. Raises EnvFailure at the limit of failures."""

    def legal_actions(self, obs: dict[str, np.ndarray], mask: str | None) -> np.ndarray | None:
        """What the observations that came last say of the coming actions, (N, vector_size); None without a mask.

        mask: name of the observation that says it. A rollout's last one may allow nothing: where the coming step only
        resets, no action is looked at, and any will do.
        """
        if mask is None or not np.count_nonzero(self._resetting):
            return None if mask is None else obs[mask]
        return np.where(self._resetting[:, None], 1, obs[mask])

    def send(self, actions: np.ndarray) -> None:
        """The first half of `step`: environments that have processes of their own set to work on it."""
        self._sent = actions

    def receive(self) -> Transition:
        """The second half of `step`: waits for what was sent."""
        return self.step(self._sent)

    @abstractmethod
    def begin(self, ended: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Start new rollouts where they `ended` (N,) bool or failed. To be called after every step.

        Returns the observations (N, ...) to act on, and `fresh` (N,) bool, where these start a rollout. A rollout that
        had not ended where `fresh` is True was lost to a failure. Raises EnvFailure at the limit of failures.
        """

    def take_failure(self) -> str:
        """What the first failure since the last call was, in one line; "" where there was none."""
        failed, self._first_failure = self._first_failure, ""
        return failed

    @property
    def is_failing(self) -> bool:
        """Whether an environment has failed and has not finished a rollout since."""
        return bool(self._failures_in_a_row.any())

    @abstractmethod
    def close(self) -> None:
        """Close the environments. Never raises."""

    def _transition(self, infos: dict[int, dict[str, float]]) -> Transition:
        return Transition(
            self._obs, self._rewards, self._terminated, self._truncated, self._stepped, self._failed, infos
        )

    def _not_finite(self) -> dict[int, str]:
        """What is NaN or infinite, by row."""
        found: dict[int, str] = {}
        if not self._rewards.dot(self._rewards) <= LARGEST_REWARD:  # (a sum of squares tells in a fifth of the time)
            bad = ~(np.abs(self._rewards) <= LARGEST_REWARD)
            found |= dict.fromkeys(np.flatnonzero(bad).tolist(), "its reward is not finite")
        for name, column in self._real_obs.items():
            if not _surely_finite(column):
                bad = ~np.isfinite(column).reshape(self.num_envs, -1).all(axis=1)
                found |= dict.fromkeys(np.flatnonzero(bad).tolist(), f"its observation {name!r} is not finite")
        return found

    def _retry(self, rows: int | slice, start: Callable[[], None]) -> None:
        """Call `start`, which begins rollouts in `rows`, until it works. Raises EnvFailure at the limit."""
        while True:
            try:
                start()
            except FAILURES as error:
                self._fail(rows, error)
            else:
                return

    def _fail(self, rows: int | slice, error: BaseException) -> None:
        """Mark `rows` failed and leave zeros in them. Raises EnvFailure at the limit."""
        self._count_failure(rows, error)
        self._failed[rows] = True
        for column in (*self._obs.values(), self._rewards, self._terminated, self._truncated):
            column[rows] = 0

    def _count_failure(self, rows: int | slice, error: BaseException) -> None:
        """Raises EnvFailure at the limit."""
        self.failures += 1
        self._failures_in_a_row[rows] += 1
        self.last_failure = "".join(traceback.format_exception(error))
        first = rows if isinstance(rows, int) else 0
        if not self._first_failure:
            self._first_failure = f"environment {self.env_names[first]} failed with {one_line(error):.{_MOST_TOLD}}"
        if self._failures_in_a_row[first] >= self.max_failures_in_a_row:
            failure = EnvFailure(
                f"environment {self.env_names[first]} failed {self._failures_in_a_row[first]} times in a row, "
                f"the last time with:\n{self.last_failure}"
            )
            failure.last = one_line(error)
            raise failure from error


def _surely_finite(column: np.ndarray) -> bool:
    """False where a number is not finite, or so large that its square is not."""
    if column.size > MOST_SQUARED:
        return bool(np.isfinite(column).all())
    return math.isfinite(np.vdot(column, column))


def converters(env: Any) -> tuple[ObsConverter, ActionConverter]:
    """Converters of the spaces of `env`, which is found to have gymnasium's interface."""
    name = name_before_reset(env)
    prefix = "single_" if isinstance(env, VectorEnv) else ""
    needed = ("reset", "step", f"{prefix}observation_space", f"{prefix}action_space")
    if missing := [attribute for attribute in needed if not hasattr(env, attribute)]:
        raise TypeError(f"{name} has no {', '.join(missing)}: an environment must be a gymnasium Env or VectorEnv")
    observation, action = spaces_of(env)
    try:
        return ObsConverter(observation), ActionConverter(action)
    except ValueError as error:
        raise ValueError(f"environment {name}: {error}") from error


def reset_env(env: Any, seed: int | None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """The observation and the info after a reset. Raises TypeError if it is not gymnasium's pair.

    The info is a dict; that of a VectorEnv may also be one dict (or None) for each row.
    """
    result = env.reset(seed=seed) if options is None else env.reset(options=options)
    if not (isinstance(result, tuple) and len(result) == 2 and _is_info(result[1], env)):
        raise TypeError(_RESET_RESULT)
    return result


def _is_info(info: Any, env: Any) -> bool:
    if isinstance(info, dict):
        return True
    return isinstance(env, VectorEnv) and isinstance(info, list | tuple | np.ndarray) and len(info) == env.num_envs


def close_env(env: Any) -> None:
    """Close an environment. What that raises, as where there is no `close`, changes nothing: its rollouts are over."""
    with suppress(*FAILURES):
        env.close()


@contextmanager
def closing_env(env: T) -> Iterator[T]:
    """As `contextlib.closing`, with `close_env`."""
    try:
        yield env
    finally:
        close_env(env)


def one_line(error: BaseException | None) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def step_result(result: Any) -> Sequence[Any]:
    """What a step returned. Raises TypeError if it is not gymnasium's five."""
    if not (isinstance(result, (tuple, list)) and len(result) == 5):
        raise TypeError(_STEP_RESULT)
    return result


def spaces_of(env: Any) -> tuple[gym.Space, gym.Space]:
    """Observation and action space of one environment of `env`."""
    if isinstance(env, VectorEnv):
        return env.single_observation_space, env.single_action_space
    return env.observation_space, env.action_space


def check_same_spaces(env: Any, wanted: tuple[gym.Space, gym.Space], owner: str, fault: str = "") -> None:
    """Raises ValueError where `env` has other spaces than those `wanted`, which are `owner`'s.

    fault: what the message begins with in place of the rule.
    """
    converters(env)  # raises for what is no environment
    check_same(spaces_of(env), name_before_reset(env), wanted, owner, fault)


def check_same(
    given: tuple[gym.Space, gym.Space], name: str, wanted: tuple[gym.Space, gym.Space], owner: str, fault: str = ""
) -> None:
    """As `check_same_spaces`, of the spaces of an environment called `name`."""
    for what, has, want, same, remedy in zip(
        ("observation", "action"),
        given,
        wanted,
        (ObsConverter(given[0]) == ObsConverter(wanted[0]), given[1] == wanted[1]),
        ("", "; gymnasium.wrappers.RescaleAction gives Boxes common bounds"),
        strict=True,
    ):
        if not same:
            rule = f"environments must have the same {what} space"
            raise ValueError(f"{fault or rule}: {owner} has {want}, {name} has {has}{remedy}")


def env_seeds(seed: int, env_index: int, used: int = 0) -> Iterator[int]:
    """Endless seeds below 2^31: for the environment as first built, then for each time that it is rebuilt.

    used: how many of them to pass over.
    """
    for build in count(used):
        yield int(np.random.SeedSequence(seed, spawn_key=(env_index, build)).generate_state(1)[0] >> 1)


def vector_env_in_list(env: VectorEnv) -> TypeError:
    return TypeError(
        f"{name_before_reset(env)} is a VectorEnv: it can be make_env's only environment, not one of a list"
    )
