"""Which rollouts an evaluation counts: a list that is fixed before the first of them is played.

Environments whose rollouts are short finish more of them in the same time, so an average over whatever has *finished*
has too many short ones. Here rollout k of n belongs to environment k modulo N, and what an environment plays beyond
its share counts nowhere. Every environment thereby contributes a number of rollouts that does not depend on them.

A limit of timesteps counts the rollouts that were *begun* within it, each played to its end. By Wald's identity the
expected sum of their returns is their expected number times the mean return, so the average over all environments is
that of the policy, up to the noise of the number itself, which vanishes as environments are added. What has still not
ended after twice the limit is left out, and how many those are is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from amago_ray.envs.makers import MakeEnv, num_tasks
from amago_ray.messages import EpisodeResult
from amago_ray.warned import warn

UNLIMITED = np.iinfo(np.int64).max
DEFAULT_ROLLOUT_LIMIT_S = 600.0
LONG = 1 / 20  # of that limit: a rollout that lasts so long is told of


@dataclass(frozen=True)
class Assignment:
    """The share of an evaluation that falls to environments first_env, first_env + 1, ...

    number: which evaluation of the run this is; equal numbers play equal rollouts. rollouts: how many of each
    environment count; UNLIMITED where timesteps alone are the limit. timesteps: of each environment, within which
    rollouts are begun; None for no limit. rollout_limit_s: a rollout that lasts longer counts as endless where there
    is no limit of timesteps.
    """

    number: int
    first_env: int
    rollouts: tuple[int, ...]
    timesteps: int | None = None
    rollout_limit_s: float = DEFAULT_ROLLOUT_LIMIT_S


def assign(
    num_envs: Sequence[int],
    episodes: int | None,
    timesteps: int | None,
    number: int = 0,
    rollout_limit_s: float = DEFAULT_ROLLOUT_LIMIT_S,
) -> list[Assignment]:
    """Deal the rollouts 0 ... episodes - 1 over shares of `num_envs` environments each.

    Rollout k is number k // N of environment k % N, of all N: it does not matter how they are shared out.
    Raises ValueError when neither `episodes` nor `timesteps` limits the evaluation.
    """
    for name, value in (("episodes", episodes), ("timesteps", timesteps)):
        if value is not None and value < 1:
            raise ValueError(f"an evaluation of {name}={value}: it must be 1 or more")
    if episodes is None and timesteps is None:
        raise ValueError("an evaluation needs timesteps (per environment), episodes (in all), or both")
    total = sum(num_envs)
    each = [UNLIMITED if episodes is None else (episodes - env + total - 1) // total for env in range(total)]
    firsts = [sum(num_envs[:i]) for i in range(len(num_envs))]
    return [
        Assignment(number, first, tuple(each[first : first + num]), timesteps, rollout_limit_s)
        for first, num in zip(firsts, num_envs, strict=True)
    ]


def in_order(results: Mapping[tuple[int, int], EpisodeResult]) -> list[EpisodeResult]:
    """The results by environment and then by rollout: the same list however they were shared out."""
    return [result for _, result in sorted(results.items(), key=lambda item: item[0])]


def rollouts_of_a_round(make_env: MakeEnv, num_envs: int) -> int:
    """How many rollouts play in every one of `num_envs` environments and every task of the list `make_env` once."""
    return max(num_envs, num_tasks(make_env))


class Tally:
    """Counts the rollouts of an `Assignment` as its N environments finish them.

        tally.begin(fresh)
        while not tally.done:
            ...                                  # one step of every environment,
            tally.add(finished, stepped, names)  # what it led to,
            tally.begin(fresh)                   # and where rollouts start after it

    open: (N,) bool, whether the environment has a rollout to finish that counts. played: (N,) int64, rollouts that did.
    results: those finished since `take`, by (number of the environment, number of its rollout). unfinished: how many
    were begun and left out.
    """

    def __init__(self, assignment: Assignment, clock: Callable[[], float] = time.monotonic):
        self.assignment = assignment
        self._wanted = np.array(assignment.rollouts, dtype=np.int64)
        self.open = self._wanted > 0
        self.played = np.zeros(len(self._wanted), dtype=np.int64)
        self.unfinished = 0
        self._results: dict[tuple[int, int], EpisodeResult] = {}
        self._steps, self._length = np.zeros((2, len(self._wanted)), dtype=np.int64)  # in all, in the current rollout
        self._limit = UNLIMITED if assignment.timesteps is None else assignment.timesteps
        self._clock = clock
        self._begun_at = np.full(len(self._wanted), clock())
        self._told = False

    @property
    def done(self) -> bool:
        return not self.open.any()

    def begin(self, fresh: np.ndarray) -> None:
        """Rollouts start where `fresh` (N,) bool; one that had not ended there was lost, and is played again."""
        if fresh.any():
            self._begun_at[fresh] = self._clock()
            self._length[fresh] = 0

    def add(self, finished: Mapping[int, EpisodeResult], stepped: np.ndarray, env_names: Sequence[str]) -> None:
        """One step of the environments that `stepped` (N,) bool, and the rollouts that it `finished`, by row.

        Raises ValueError, naming the environment and the remedy, for a rollout that does not end.
        """
        self._steps += stepped
        self._length += stepped
        for row, result in finished.items():
            if self.open[row]:
                self._results[self.assignment.first_env + row, int(self.played[row])] = result
                self.played[row] += 1
                self.open[row] = self.played[row] < self._wanted[row] and self._steps[row] < self._limit
        if self.assignment.timesteps is None:
            self._raise_at_endless(env_names)
            return
        late = self.open & (self._steps >= 2 * self._limit)
        self.unfinished += int(late.sum())
        self.open &= ~late

    def take(self) -> dict[tuple[int, int], EpisodeResult]:
        """The rollouts that count and were finished since the last call."""
        results, self._results = self._results, {}
        return results

    def _raise_at_endless(self, env_names: Sequence[str]) -> None:
        limit_s, lasted_s = self.assignment.rollout_limit_s, self._clock() - self._begun_at
        long = self.open & (lasted_s > LONG * limit_s)
        if long.any() and not self._told:
            self._told = True
            warn(
                f"environment {env_names[int(long.argmax())]}: a rollout has gone on for more than "
                f"{LONG * limit_s:g} s, and an evaluation that is counted in rollouts waits for its end, for up to "
                f"{limit_s:g} s (call_timeout_s), unless Experiment.val_timesteps_per_epoch (evaluate_test: timesteps) "
                "bounds it"
            )
        endless = self.open & (lasted_s > limit_s)
        if endless.any():
            row = int(endless.argmax())
            raise ValueError(
                f"environment {env_names[row]}: a rollout has not ended after {self._length[row]:,} steps and "
                f"{limit_s:g} s (call_timeout_s), and an evaluation that is counted in rollouts waits for its end; set "
                "Experiment.val_timesteps_per_epoch (evaluate_test: timesteps), or give the environment a time limit"
            )
