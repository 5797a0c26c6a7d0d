"""Data that were there before the run: datasets, and how they are mixed with what the run collects.

A dataset is served inside the replay shards: each of S shards loads every S-th trajectory when it is drawn, and keeps
what it loaded last in memory. Nothing of it is evicted or written to.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gin
import gymnasium as gym
import numpy as np

from amago_ray.envs.spaces import ActionConverter, ObsConverter, as_array
from amago_ray.messages import ACTION, REWARD, TERMINATED, Trajectory, TrajectoryId
from amago_ray.replay.datasets.checks import check_rows, reward_column, terminated_column
from amago_ray.replay.datasets.disk_traj import DiskTrajDataset
from amago_ray.replay.sampling.sources import Available, Columns, SliceConfig, Source, slice_tables
from amago_ray.specs import OBS_PREFIX

CACHE_BYTES = 512 << 20  # of trajectories that one shard keeps loaded, per dataset
NOT_FROM_A_WORKER = -1  # worker number in the identities of trajectories that no worker of this run made


@dataclass(frozen=True)
class Episode:
    """One rollout as its environment gave it: T transitions.

    observations: T + 1 of them, as a list, or as the space's structure with a leading axis of T + 1 on every array.
    actions: (T, ...) as the environment takes them. rewards: (T,).
    terminated: (T,) bool, or one bool that says whether the last transition ended in a terminal state. Nothing follows
        a terminal state. Rollouts that were truncated and laid end to end cannot be told from one: cut them apart.
    """

    observations: Any
    actions: Any
    rewards: Any
    terminated: Any = False
    env_name: str = "dataset"


@dataclass(frozen=True)
class RowLayout:
    """How the run stores observations and actions: as its environments' spaces say."""

    observation_space: gym.Space
    action_space: gym.Space

    @cached_property
    def obs(self) -> ObsConverter:
        return ObsConverter(self.observation_space)

    @cached_property
    def action(self) -> ActionConverter:
        return ActionConverter(self.action_space)

    def empty(self, num_rows: int) -> Columns:
        """The columns of a table of zeros (see `data.Trajectory`)."""
        return {OBS_PREFIX + name: values for name, values in self.obs.empty(num_rows).items()} | {
            ACTION: np.zeros((num_rows, *self.action.spec.shape), self.action.spec.dtype),
            REWARD: np.zeros(num_rows, dtype=np.float32),
            TERMINATED: np.zeros(num_rows, dtype=bool),
        }

    def trajectory(self, episode: Episode, index: int) -> Trajectory:
        """The episode as a run would have stored it, under the identity of a dataset's trajectory number `index`.

        Raises ValueError where it does not fit the run's spaces, or its lengths do not fit one another.
        """
        rewards = reward_column(episode.rewards)
        num = len(rewards)
        if num == 0:
            raise ValueError("it has no transition")
        columns = self.empty(num + 1)
        self.write_obs(columns, episode.observations)
        actions = self.action.from_env(as_array(episode.actions, "actions"))
        terminated = terminated_column(episode.terminated, num)
        if not len(actions) == len(terminated) == num:
            raise ValueError(
                f"{len(actions)} actions and {len(terminated)} terminations for {num} rewards: there must be as many"
            )
        columns[ACTION][1:], columns[REWARD][1:], columns[TERMINATED][1:] = actions, rewards, terminated
        return Trajectory(
            id=TrajectoryId(NOT_FROM_A_WORKER, 0, index),
            env_name=episode.env_name,
            columns=columns,
            first_time_idx=0,
            truncated=not terminated[-1],
            weight_version=0,
        )

    def write_obs(self, columns: Columns, observations: Any) -> None:
        """Fill the observation columns of a table from `observations`, as in `Episode`. Raises ValueError."""
        out = {name.removeprefix(OBS_PREFIX): x for name, x in columns.items() if name.startswith(OBS_PREFIX)}
        num_rows = len(columns[REWARD])
        if isinstance(observations, list) and len(observations) != num_rows:
            raise ValueError(f"{len(observations)} observations for {num_rows - 1} rewards: there must be one more")
        try:
            with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and is refused as such
                if isinstance(observations, list):
                    for row, observation in enumerate(observations):
                        self._write_row(out, row, observation)
                else:
                    self._write_rows(out, observations)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"observations are not built like the space {self.observation_space}") from error

    def _write_row(self, out: Columns, row: int, observation: Any) -> None:
        try:
            self.obs.write(out, row, observation)
        except ValueError as error:
            raise ValueError(f"observation {row}: {error}") from error

    def _write_rows(self, out: Columns, observations: Any) -> None:
        """All rows at once; where some of them are wrong and not all, the first is named."""
        try:
            self.obs.write_batch(out, observations)
        except ValueError:
            num_rows = len(next(iter(out.values())))
            wrong: list[ValueError] = []
            with contextlib.suppress(IndexError):  # there are fewer rows than there should be: that is what is said
                for row in range(num_rows):
                    try:
                        self._write_row(out, row, _row(observations, row))
                    except ValueError as error:
                        wrong.append(error)
                if 0 < len(wrong) < num_rows:
                    raise wrong[0] from None
            raise

    def check_rows(self, columns: Columns) -> None:
        """Raises ValueError, naming the first wrong timestep, for a table that is no part of one rollout here."""
        check_rows(columns, self.obs.spec, self.action.spec)


def _row(observations: Any, row: int) -> Any:
    """One observation out of a structure with a leading axis on every array."""
    match observations:
        case Mapping():
            return {key: _row(part, row) for key, part in observations.items()}
        case tuple():
            return tuple(_row(part, row) for part in observations)
        case _:
            return observations[row]


class TrajectoryDataset(ABC):
    """Trajectories to learn from, which a subclass knows how to read as the run stores them.

    It is sent to the shards, so it must be picklable: best it holds paths and no data. What it reads is looked for when
    it is first used, so that a configuration can be loaded where the data are not.

    checked_bytes: all that is read is checked. This much of it before the run starts, where a mistake costs nothing;
    the rest as it is drawn.
    """

    checked_bytes: int = 64 << 20

    @abstractmethod
    def __len__(self) -> int:
        """How many trajectories there are. It may grow during the run; 0 means that the dataset is not ready yet."""

    @abstractmethod
    def read(self, index: int, layout: RowLayout) -> Trajectory:
        """Trajectory number `index` as the run stores it. Raises ValueError where it does not fit."""

    @property
    def spaces(self) -> tuple[gym.Space, gym.Space] | None:
        """Observation and action space of the data, where the dataset knows them."""
        return None

    def trajectory(self, index: int, layout: RowLayout) -> Trajectory:
        """`read`, and checked. Raises ValueError, naming dataset, trajectory and timestep, for what cannot be used."""
        try:
            found = self.read(index, layout)
            layout.check_rows(found.columns)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}, trajectory {index}: {error}") from error
        return found

    def readable(self) -> Iterable[int]:
        """Numbers of the trajectories that are drawn: all but those that a dataset knows to be damaged."""
        return range(len(self))

    def commit_of(self, index: int) -> int:
        """Number of the commit that showed trajectory `index` to the run that stored it; `readable` is in this order.

        Ages are told by it. 1 for all of them where nobody knows.
        """
        return 1

    @property
    def damage(self) -> Sequence[str]:
        """What of the data has been found broken so far, in words."""
        return ()

    def check_spaces(self, layout: RowLayout) -> None:
        """Raises ValueError for data of other environments, where the dataset knows its spaces."""
        if self.spaces is not None and not _same_rows(RowLayout(*self.spaces), layout):
            raise ValueError(
                f"{type(self).__name__} holds data of other environments: its spaces are {self.spaces[0]} and "
                f"{self.spaces[1]}, the run's are {layout.observation_space} and {layout.action_space}"
            )

    def check(self, layout: RowLayout) -> None:
        """Raises ValueError for data of other environments, and for wrong ones among the first `checked_bytes`.

        Also where all are damaged: nothing would ever be drawn.
        """
        self.check_spaces(layout)
        checked = 0
        for index in self.readable():
            checked += self.trajectory(index, layout).num_bytes
            if checked > self.checked_bytes:
                return
        if not checked and len(self):
            raise ValueError(
                f"{type(self).__name__}: none of its {len(self):,} trajectories can be read, the first because of "
                f"{next(iter(self.damage), 'damage')}"
            )

    def source(self, layout: RowLayout, shard: int, num_shards: int) -> Source:
        """What shard number `shard` of `num_shards` samples from."""
        return DatasetSource(self, layout, shard, num_shards)


class RLDataset(TrajectoryDataset):
    """Whole episodes to learn from. Subclass it with these two methods, and name it in gin as `Experiment.dataset`.

    @gin.configurable
    class MyDataset(RLDataset):
        def __len__(self): return len(self.files)
        def episode(self, index): return Episode(**numpy.load(self.files[index]))
    """

    @abstractmethod
    def episode(self, index: int) -> Episode:
        """Trajectory number `index`."""

    def read(self, index: int, layout: RowLayout) -> Trajectory:
        return layout.trajectory(self.episode(index), index)


def _same_rows(a: RowLayout, b: RowLayout) -> bool:
    """Whether observations are stored alike, and equal stored actions mean the same."""
    same_obs = ObsConverter(_sorted(a.observation_space)) == ObsConverter(_sorted(b.observation_space))
    return same_obs and a.action_space == b.action_space


def _sorted(space: gym.Space) -> gym.Space:
    """The space with the keys of its Dicts in order: files come back sorted, and arrays are known by name."""
    match space:
        case gym.spaces.Dict():
            return gym.spaces.Dict([(key, _sorted(part)) for key, part in sorted(space.spaces.items())])
        case gym.spaces.Tuple():
            return gym.spaces.Tuple([_sorted(part) for part in space.spaces])
        case _:
            return space


class DatasetSource(Source):
    """Every `num_shards`-th trajectory of a dataset, each with the same weight."""

    def __init__(
        self, dataset: TrajectoryDataset, layout: RowLayout, shard: int, num_shards: int, cache_bytes: int = CACHE_BYTES
    ):
        self._dataset, self._layout = dataset, layout
        self._shard, self._num_shards = shard, num_shards
        self._cache: OrderedDict[int, Trajectory] = OrderedDict()
        self._cached_bytes, self._cache_bytes = 0, cache_bytes
        self._size = 0

    def available(self) -> Available:
        # Draws are of what this call has seen, so that a dataset that grows cannot change their probability.
        self._size = len(range(self._shard, len(self._dataset), self._num_shards))
        return Available(version=self._size, trajectories=self._size, total=float(self._size))

    @property
    def damage(self) -> Sequence[str]:
        return self._dataset.damage

    def draw(self, num: int, slices: SliceConfig, rng: np.random.Generator) -> dict[str, Any]:
        numbers = rng.integers(self._size, size=num)
        drawn = [self._load(number) for number in numbers.tolist()]
        first_time_idx = np.array([t.first_time_idx for t in drawn])
        columns, start, lengths = slice_tables([t.columns for t in drawn], first_time_idx, slices, rng)
        return {
            "columns": columns,
            "lengths": lengths,
            "first_time_idx": first_time_idx + start,
            "ids": np.array([(t.id.worker, t.id.incarnation, t.id.sequence) for t in drawn], dtype=np.int64),
            "number": numbers,
            "weight_version": np.array([t.weight_version for t in drawn], dtype=np.int64),
            "probability": np.full(num, 1.0 / self._size),
        }

    def _load(self, number: int) -> Trajectory:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        trajectory = self._dataset.trajectory(self._shard + number * self._num_shards, self._layout)
        self._cache[number] = trajectory
        self._cached_bytes += trajectory.num_bytes
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].num_bytes
        return trajectory


@gin.configurable
class OnlineReplay:
    """In a mixture: what the run itself collects."""


@gin.configurable
@dataclass(frozen=True)
class MixtureOfDatasets:
    """Several sources of data, drawn from with given weights.

        Experiment.dataset = @MixtureOfDatasets()
        MixtureOfDatasets.sources = (@OnlineReplay(), @MinariDataset())
        MixtureOfDatasets.weights = (0.1, 0.9)
        MixtureOfDatasets.final_weights = (1.0, 0.0)
        MixtureOfDatasets.anneal_epochs = (10, 50)

    sources: datasets, and at most one `OnlineReplay`. weights: of each, on any scale; a source that has nothing yet is
    left out, and the others share its part.
    final_weights: where the weights go, in a straight line from the first to the second of anneal_epochs.
    """

    sources: Sequence[TrajectoryDataset | OnlineReplay] = ()
    weights: Sequence[float] = ()
    final_weights: Sequence[float] | None = None
    anneal_epochs: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if not isinstance(self.sources, Sequence):
            raise ValueError(f"MixtureOfDatasets.sources={self.sources!r}: give a list of datasets")
        for source in self.sources:
            if not isinstance(source, TrajectoryDataset | OnlineReplay):
                raise ValueError(f"MixtureOfDatasets.sources: {source!r} is neither an RLDataset nor OnlineReplay()")
        if sum(isinstance(source, OnlineReplay) for source in self.sources) > 1:
            raise ValueError("MixtureOfDatasets.sources: there is one OnlineReplay at most")
        for name, weights in (("weights", self.weights), ("final_weights", self.final_weights)):
            if weights is None:
                continue
            given = _numbers(weights)
            if len(given) != len(self.sources) or min(given, default=1) < 0 or not 0 < sum(given) < math.inf:
                raise ValueError(
                    f"MixtureOfDatasets.{name}={weights!r}: give one number of 0 or more for each of the "
                    f"{len(self.sources)} sources, and not only zeros"
                )
        epochs = _numbers(self.anneal_epochs)
        if len(epochs) != 2 or not 0 <= epochs[0] < epochs[1]:
            raise ValueError(f"MixtureOfDatasets.anneal_epochs={self.anneal_epochs!r}: two epochs, the later one last")

    @property
    def learns_from_replay(self) -> bool:
        """Whether what the run collects is among the sources; where it is not, the run collects nothing."""
        return any(isinstance(source, OnlineReplay) for source in self.sources)

    @property
    def datasets(self) -> tuple[TrajectoryDataset, ...]:
        """The sources beside the run's own."""
        return tuple(source for source in self.sources if isinstance(source, TrajectoryDataset))

    def weights_at(self, epoch: int) -> tuple[float, ...]:
        """Weight of what the run collects, then of each of `datasets`; they add up to 1."""
        first, last = self.anneal_epochs
        done = min(max((epoch - first) / (last - first), 0.0), 1.0)
        begin = np.array(self.weights, dtype=np.float64) / sum(self.weights)
        end = begin if self.final_weights is None else np.array(self.final_weights) / sum(self.final_weights)
        now = (1 - done) * begin + done * end
        online = [isinstance(source, OnlineReplay) for source in self.sources]
        return (float(now[online].sum()), *(float(w) for w, mine in zip(now, online, strict=True) if not mine))


def _numbers(values: Any) -> list[float]:
    """A sequence of finite numbers as a list; an empty one for anything else."""
    given = list(values) if isinstance(values, Sequence | np.ndarray) else []
    numbers = all(isinstance(value, int | float | np.number) and math.isfinite(value) for value in given)
    return given if numbers else []


def mixture_of(dataset: TrajectoryDataset | MixtureOfDatasets | DiskTrajDataset | None) -> MixtureOfDatasets:
    """The mixture that `Experiment.dataset` stands for: a lone dataset is all that is learned from, None the buffer."""
    if isinstance(dataset, MixtureOfDatasets):
        return dataset
    if dataset is None or isinstance(dataset, DiskTrajDataset):
        return MixtureOfDatasets((OnlineReplay(),), (1.0,))
    return MixtureOfDatasets((dataset,), (1.0,))
