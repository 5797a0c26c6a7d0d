"""What a shard can sample from: its own buffer, or data that were there before the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amago_ray.replay.sampling.relabeling import Categories, Relabeler, relabeled
from amago_ray.replay.sampling.selection import Selection
from amago_ray.replay.sampling.slices import PaddedSampling, draw_slices
from amago_ray.replay.storage.records import Corrupt
from amago_ray.replay.storage.segments import StorageError
from amago_ray.replay.storage.store import TrajectoryStore

Columns = dict[str, np.ndarray]


class ReplayEmpty(RuntimeError):
    """There is nothing to sample: no rollout has finished yet, or a shard came back empty, or all of it is damaged."""


class Changed(Exception):
    """What is available has just become another, so that nothing was drawn."""


@dataclass(frozen=True)
class Available:
    """What a source could sample at one moment.

    version: another one after every change of what is visible. total: sum of the trajectories' weights.
    """

    version: int
    trajectories: int
    total: float


@dataclass(frozen=True)
class SliceConfig:
    """How slices are cut. max_seq_len: the longest, in transitions. padded_sampling: see `sampling.draw_slices`.

    categories: that what the relabeler answers is held to (see `relabeling.categories_of`).
    """

    max_seq_len: int
    padded_sampling: PaddedSampling = "none"
    relabeler: Relabeler | None = None
    categories: Categories = field(default_factory=dict)


class Source(ABC):
    """Trajectories that can be drawn, each with a weight."""

    @abstractmethod
    def available(self) -> Available:
        """What can be drawn now."""

    @abstractmethod
    def draw(self, num: int, slices: SliceConfig, rng: np.random.Generator) -> dict[str, Any]:
        """`num` slices of trajectories drawn with replacement, in proportion to their weights.

        Returns the fields of `SampledSequences` that a source knows: columns, lengths, first_time_idx, ids, number,
        weight_version, probability. Called when there is something to draw. Raises Changed, StorageError.
        """

    @property
    def damage(self) -> Sequence[str]:
        """What was found broken while the run drew from it, in words; what its dataset tells at the start is not."""
        return ()


class BufferSource(Source):
    """The trajectories of a `TrajectoryStore`, by the weights of a `Selection`."""

    def __init__(self, store: TrajectoryStore, selection: Selection):
        self.store, self.selection = store, selection

    def available(self) -> Available:
        version = hash((self.store.commits, self.store.table.first, self.store.table.end, len(self.store.damage)))
        return Available(version, len(self.store), self.selection.total)

    def draw(self, num: int, slices: SliceConfig, rng: np.random.Generator) -> dict[str, Any]:
        numbers, probability = self.selection.draw(num, rng)
        damaged = self.store.damaged(numbers)
        if damaged:
            self.selection.exclude(damaged)
            raise Changed
        facts = self.store.facts(numbers)
        try:
            columns, start, lengths = self._slices(numbers, facts, slices, rng)
        except (Corrupt, StorageError):
            damaged = self.store.damaged(numbers, anew=True)
            if not damaged:
                raise
            self.selection.exclude(damaged)
            raise Changed from None
        return {
            "columns": columns,
            "lengths": lengths,
            "first_time_idx": facts["first_time_idx"] + start,
            "ids": np.stack([facts["worker"], facts["incarnation"], facts["sequence"]], axis=1),
            "number": numbers,
            "weight_version": facts["weight_version"],
            "probability": probability,
        }

    def _slices(
        self, numbers: np.ndarray, facts: np.ndarray, slices: SliceConfig, rng: np.random.Generator
    ) -> tuple[Columns, np.ndarray, np.ndarray]:
        """One slice of each: columns end to end, first transitions (B,), lengths (B,) int64."""
        if slices.relabeler is None:
            start, lengths = draw_slices(facts["num_rows"] - 1, slices.max_seq_len, slices.padded_sampling, rng)
            return self.store.read(numbers, start, lengths + 1), start, lengths
        whole = self.store.read(numbers, np.zeros_like(numbers), facts["num_rows"])
        return slice_tables(separate(whole, facts["num_rows"]), facts["first_time_idx"], slices, rng)


def separate(columns: Columns, num_rows: np.ndarray) -> list[Columns]:
    """Tables of single trajectories, as views, from `columns` in which they lie end to end."""
    stops = np.cumsum(num_rows).tolist()
    return [
        {name: column[stop - count : stop] for name, column in columns.items()}
        for stop, count in zip(stops, num_rows.tolist(), strict=True)
    ]


def slice_tables(
    tables: list[Columns], first_time_idx: np.ndarray, slices: SliceConfig, rng: np.random.Generator
) -> tuple[Columns, np.ndarray, np.ndarray]:
    """One slice of each table, after relabelling: columns end to end, first transitions (B,), lengths (B,) int64.

    first_time_idx: (B,) index of each table's row 0 within its rollout.
    """
    if slices.relabeler is not None:
        tables = [
            relabeled(slices.relabeler, table, rng, first, slices.categories)
            for table, first in zip(tables, first_time_idx.tolist(), strict=True)
        ]
    num_transitions = np.array([len(table["reward"]) - 1 for table in tables], dtype=np.int64)
    start, lengths = draw_slices(num_transitions, slices.max_seq_len, slices.padded_sampling, rng)
    rows = [slice(first, first + n + 1) for first, n in zip(start.tolist(), lengths.tolist(), strict=True)]
    columns = {
        name: np.concatenate([table[name][r] for table, r in zip(tables, rows, strict=True)]) for name in tables[0]
    }
    return columns, start, lengths
