"""The messages of the ring: what rollout, replay, learner and driver say to one another.

Everything here is a frozen dataclass of numpy arrays and plain numbers. Rollout, replay and learner share this file
and nothing else.

One idea carries the storage layout. A rollout with T actions is a *table of T + 1 rows*; row t is exactly what the
policy sees at timestep t, and what it learned from the transition into it:

    row t  =  observation o_t | previous action a_{t-1} | previous reward r_{t-1} | previous terminated d_{t-1}

Row 0 of a rollout holds zeros for the last three. Every column therefore has the same number of rows, any slice of
l + 1 rows is a training sequence of l transitions that carries its own previous action and reward, and nothing is
stored twice.

Shape letters: T transitions of one trajectory, B sequences, L transitions of a padded sequence, A action entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

ACTION, REWARD, TERMINATED = "action", "reward", "terminated"


class CannotGoOn(Exception):
    """Learning has met data or settings that it cannot go on with. The message is one line that says what to change."""


@dataclass(frozen=True, order=True)
class TrajectoryId:
    """Who made a trajectory: worker index, which life of that worker, and its running number. Unique in a run."""

    worker: int
    incarnation: int
    sequence: int


@dataclass(frozen=True)
class Trajectory:
    """A finished piece of one rollout: T transitions as a table of T + 1 rows (see the module's docstring).

    columns: "obs.<key>" (T+1, ...), "action" (T+1, ...), "reward" (T+1,) float32, "terminated" (T+1,) bool.
    first_time_idx: index of row 0 within the rollout (above 0 for the later pieces of a rollout that was cut).
    truncated: the rollout ended here by truncation; False with no terminated last row means that it was cut here.
    weight_version: version of the policy weights that chose the first action.
    """

    id: TrajectoryId
    env_name: str
    columns: dict[str, np.ndarray]
    first_time_idx: int
    truncated: bool
    weight_version: int

    @property
    def num_transitions(self) -> int:
        return len(self.columns[REWARD]) - 1

    @cached_property
    def num_bytes(self) -> int:
        return sum(column.nbytes for column in self.columns.values())

    @property
    def total_reward(self) -> float:
        """Sum of the rewards of this piece's own T transitions."""
        return float(self.columns[REWARD][1:].sum())


@dataclass(frozen=True)
class SampledSequences:
    """What one shard answers: n sequences laid end to end without padding, and where each came from.

    columns: as in `Trajectory`, each (sum_i (lengths_i + 1), ...). lengths: (n,) int64 transitions per sequence.
    first_time_idx: (n,) int64. shard, weight_version: (n,) int64. ids: (n, 3) int64, the `TrajectoryId`s.
    number: (n,) int64, by which source number `source` of the shard knows the trajectory during the shard's `life`.
    probability: (n,) float64, with which one draw from this shard gives the sequence's trajectory.
    total: weight of all that this source of the shard held when it was drawn from.
    """

    columns: dict[str, np.ndarray]
    lengths: np.ndarray
    first_time_idx: np.ndarray
    shard: np.ndarray
    ids: np.ndarray
    number: np.ndarray
    weight_version: np.ndarray
    probability: np.ndarray
    life: int
    total: float
    source: int = 0

    @cached_property
    def stops(self) -> np.ndarray:
        """(n,) int64: where the rows of each sequence end."""
        return np.cumsum(self.lengths + 1)


@dataclass(frozen=True)
class Batch:
    """B sampled sequences, which lie where they arrived: sequence b is number index[b] of parts[part[b]].

    part, index: (B,) int64. probability: (B,) float64, with which one draw gives the sequence's trajectory, out of all
    that was available. weight: (B,) float32, of each sequence in the loss (importance sampling); None for equal ones.
    """

    parts: tuple[SampledSequences, ...]
    part: np.ndarray
    index: np.ndarray
    probability: np.ndarray
    weight: np.ndarray | None = None

    @property
    def num_sequences(self) -> int:
        return len(self.part)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(B,) int64: transitions per sequence."""
        return self.gather("lengths")

    @cached_property
    def first_time_idx(self) -> np.ndarray:
        """(B,) int64: of each sequence's first row within its rollout."""
        return self.gather("first_time_idx")

    def gather(self, name: str) -> np.ndarray:
        """(B, ...): one of the facts of `SampledSequences`, of each sequence."""
        values = [getattr(part, name) for part in self.parts]
        if len(values) == 1:
            return values[0][self.index]
        return np.stack([values[p][i] for p, i in zip(self.part, self.index, strict=True)])

    def rows(self, column: str) -> list[np.ndarray]:
        """B views (lengths_b + 1, ...) of one column."""
        found = []
        for p, i in zip(self.part.tolist(), self.index.tolist(), strict=True):
            part = self.parts[p]
            stop = int(part.stops[i])
            found.append(part.columns[column][stop - int(part.lengths[i]) - 1 : stop])
        return found

    @property
    def column_names(self) -> list[str]:
        return list(self.parts[0].columns)


@dataclass(frozen=True)
class Weights:
    """The acting half of the policy: a version that grows by one per publish, and all its numbers as bytes (N,)."""

    version: int
    buffer: np.ndarray


@dataclass(frozen=True)
class EpisodeResult:
    """One finished rollout. `metrics`: the last value of each logged `info` entry."""

    env_name: str
    total_reward: float
    length: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RolloutReport:
    """What one chunk of collection did.

    timesteps: environment steps made, over all of the worker's environments. frames_by_env: the same by environment
    name. act_s, step_s, wait_s: seconds in the policy, in the environments, and waiting for replay to acknowledge.
    idle_s: seconds of total_s in which the process had nothing to run: it slept, or waited for others, as environments
    of a simulator elsewhere do; 0 where the system does not tell.
    env_failures: environments rebuilt during the chunk. env_failed: which was the first, and what it said; "" for none.
    shard_away: why some of what it finished is not stored yet, in words; "" where everything is.
    warned: what its process has warned of so far (see the module of that name). num_envs: of this worker.
    """

    worker: int
    incarnation: int
    timesteps: int
    frames_by_env: dict[str, int]
    episodes: list[EpisodeResult]
    weight_version: int
    trajectories: int
    act_s: float
    step_s: float
    wait_s: float
    total_s: float
    env_failures: int = 0
    exploration: dict[str, float] = field(default_factory=dict)
    shard_away: str = ""
    env_failed: str = field(default="", compare=False)
    warned: tuple[str, ...] = field(default=(), compare=False)
    idle_s: float = field(default=0.0, compare=False)  # a measure, no result
    num_envs: int = field(default=1, compare=False)


@dataclass(frozen=True)
class EvaluationReport:
    """One part of a worker's share of an evaluation.

    part: which one; 0 where the share was begun anew. episodes: the rollouts that it finished and that count, by
    (number of the environment within the run, number of its rollout). unfinished: those that were begun and left out,
    in this and earlier parts. finished: nothing is left to play. timesteps: environment steps made in this part.
    warned: what its process has warned of so far. env_failed: as of `RolloutReport`.
    """

    part: int
    episodes: dict[tuple[int, int], EpisodeResult]
    unfinished: int
    finished: bool
    timesteps: int
    warned: tuple[str, ...] = field(default=(), compare=False)
    env_failed: str = field(default="", compare=False)


@dataclass(frozen=True)
class ReplayReport:
    """What one shard holds, and what it has done since it started.

    life: another number after every start. restored: trajectories that it found stored when it started.
    staged: those that it will show with the next commit.
    damage: stored data that it found broken, in words. full: why it cannot show what it stored, where the disk is full.
    """

    shard: int
    life: int
    trajectories: int
    timesteps: int
    bytes: int
    inserted: int
    repeated: int
    evicted: int
    sampled: int
    restored: int = 0
    staged: int = 0
    damage: tuple[str, ...] = ()
    full: str = ""


@dataclass(frozen=True)
class LearnReport:
    """What one call of the learner did.

    updates, total_updates: optimiser steps of this call and of the run. metrics: means, or extremes, over the logged
    batches, of which there were `logged`. wait_s: seconds without a batch. warned: what its process has warned of so
    far.
    """

    updates: int
    total_updates: int
    batches: int
    weight_version: int
    metrics: dict[str, float]
    wait_s: float
    total_s: float
    logged: int = 1
    warned: tuple[str, ...] = field(default=(), compare=False)
