"""Sampling from segments that other processes wrote, without changing anything there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from amago_ray.messages import TERMINATED
from amago_ray.replay.datasets.dataset import RowLayout
from amago_ray.replay.sampling.selection import Selection, SelectionConfig
from amago_ray.replay.sampling.sources import Available, BufferSource, Columns, SliceConfig, Source, separate
from amago_ray.replay.storage.store import TrajectoryStore

UNBOUNDED = 1 << 62  # bytes: nothing that is there is evicted


class StoredSource(Source):
    """Every `num_shards`-th trajectory of several stores, by the weights of a `SelectionConfig`."""

    def __init__(
        self,
        stores: Sequence[TrajectoryStore],
        layout: RowLayout,
        selection: SelectionConfig,
        shard: int,
        num_shards: int,
    ):
        self._layout = layout
        self._parts: list[tuple[int, BufferSource]] = []
        self._stores = [(store, len(store.damage)) for store in stores]  # whoever checks the dataset tells of that
        self._trajectories = 0
        for i, store in enumerate(stores):
            chosen = Selection(selection, store.table, commit=store.commits)
            numbers = np.arange(store.table.first, store.table.end)
            mine = (numbers + i) % num_shards == shard
            if not mine.all():
                chosen.exclude(numbers[~mine].tolist())
            if mine.any():
                self._parts.append((i, BufferSource(store, chosen)))
                self._trajectories += int(mine.sum())

    def available(self) -> Available:
        parts = [part.available() for _, part in self._parts]
        version = hash(tuple(part.version for part in parts))
        return Available(version, self._trajectories, sum(part.total for part in parts))

    @property
    def damage(self) -> Sequence[str]:
        return [f"StoredDataset: {text}" for store, known in self._stores for text in store.damage[known:]]

    def draw(self, num: int, slices: SliceConfig, rng: np.random.Generator) -> dict[str, Any]:
        totals = np.array([part.available().total for _, part in self._parts])
        share = totals / totals.sum()
        drawn = []
        for (i, part), n, p in zip(self._parts, rng.multinomial(num, share).tolist(), share.tolist(), strict=True):
            if n > 0:
                fields = part.draw(n, slices, rng)
                fields["probability"] = fields["probability"] * p
                fields["number"] = fields["number"] * len(self._stores) + i  # one number means one trajectory
                drawn.append(fields)
        columns = {name: np.concatenate([d["columns"][name] for d in drawn]) for name in drawn[0]["columns"]}
        facts = {name: np.concatenate([d[name] for d in drawn]) for name in drawn[0] if name != "columns"}
        self._check(columns, facts)
        return facts | {"columns": columns}

    def _check(self, columns: Columns, facts: dict[str, np.ndarray]) -> None:
        """Raises ValueError, naming the trajectory and the timestep, for what cannot be learned from."""
        stops = np.cumsum(facts["lengths"] + 1)
        ended = columns[TERMINATED].copy()
        ended[stops - 1] = False
        try:
            self._layout.check_rows(columns | {TERMINATED: ended})  # all at once: what is stored is rarely wrong
        except ValueError:
            for b, part in enumerate(separate(columns, facts["lengths"] + 1)):
                try:
                    self._layout.check_rows(part)
                except ValueError as error:
                    worker, life, number = facts["ids"][b].tolist()
                    raise ValueError(
                        f"StoredDataset, trajectory {number} of worker {worker} (life {life}), rows from timestep "
                        f"{facts['first_time_idx'][b]} on: {error}"
                    ) from error
            raise
