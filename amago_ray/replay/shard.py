"""One shard of the replay buffer: stores what workers push, samples what the learner asks for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from amago_ray.messages import ReplayReport, SampledSequences
from amago_ray.replay.sampling.relabeling import Categories, Relabeler
from amago_ray.replay.sampling.selection import Selection, SelectionConfig
from amago_ray.replay.sampling.slices import PaddedSampling, check_padded_sampling
from amago_ray.replay.sampling.sources import Available, BufferSource, Changed, ReplayEmpty, SliceConfig, Source
from amago_ray.replay.storage.config import Mark, StoreConfig, share_of
from amago_ray.replay.storage.folders import shard_folder
from amago_ray.replay.storage.segments import StorageError
from amago_ray.replay.storage.store import TrajectoryStore
from amago_ray.replay.storage.trajectory_pack import PackedTrajectories

BUFFER = 0  # the source that is the shard's own buffer
COUNTERS = ("inserted", "repeated", "sampled")


@dataclass(frozen=True)
class ReplayConfig:
    """Settings of every shard.

    max_seq_len: longest sequence sampled, in transitions. padded_sampling: see `sampling.draw_slices`.
    selection: how often each trajectory is drawn. store: of one shard; `store.folder` holds a folder per shard.
    max_trajectories: of all shards together, which share it as they share workers; None for what `store` says of one.
    relabeler: changes trajectories as they are sampled (see `relabeling`); None for none.
    categories: that what it answers is held to (see `relabeling.categories_of`).
    """

    max_seq_len: int
    padded_sampling: PaddedSampling = "none"
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    max_trajectories: int | None = None
    relabeler: Relabeler | None = None
    categories: Categories = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        check_padded_sampling(self.padded_sampling)


class ReplayShard:
    """Consumes pushes, produces samples.

        push    -> stored, once, when it returns
        commit  -> everything stored becomes visible to `sample`, in an order that does not depend on arrival
        sample  -> trajectories drawn by weight, then a slice of each

    Visibility moves in steps, so that with one commit per epoch a seeded run samples the same whichever worker is
    faster. A shard that keeps files has, when it starts again, everything that it had acknowledged.

    datasets: sources beside the buffer, which are never written to or evicted from; they are numbered from 1.
    """

    def __init__(self, config: ReplayConfig, shard: int, datasets: Sequence[Source] = ()):
        self.config = config
        self.shard = shard
        self._folder = None if config.store.folder is None else shard_folder(config.store.folder, shard)
        self._datasets = datasets
        self._slices = SliceConfig(config.max_seq_len, config.padded_sampling, config.relabeler, config.categories)
        self._inserted = self._repeated = self._sampled = 0
        self._life = time.time_ns()
        self._open()

    def _open(self) -> None:
        folder = self._folder
        store, total = self.config.store, self.config.max_trajectories
        share = store.capacity_trajectories if total is None else share_of(total, self.shard, store.stride)
        self.store = TrajectoryStore(replace(store, folder=folder, capacity_trajectories=share))
        if self.store.renumbered and folder is not None:
            (folder / "priorities").unlink(missing_ok=True)
        self.selection = Selection(
            self.config.selection, self.store.table, folder, commit=self.store.commits, damage=self.store.damage
        )
        self._sources: tuple[Source, ...] = (BufferSource(self.store, self.selection), *self._datasets)
        self._restored = len(self.store) + self.store.num_staged

    def push(self, packed: PackedTrajectories) -> int:
        """Store trajectories; returns how many were new. Repeats are recognised by their identity.

        Where the disk is full, the oldest that are visible may make room. Raises ValueError for a trajectory that is
        larger than the shard, and StorageError.
        """
        first = self.store.table.first
        try:
            new = self.store.push(packed)
        finally:
            if self.store.table.first != first:
                self.selection.table_changed()
        self._inserted += new
        self._repeated += len(packed) - new
        return new

    def commit(self, number: int | None = None) -> ReplayReport:
        """Make all that was pushed visible, ordered by identity, and evict beyond capacity.

        number: of the commit, the same on all shards, by which ages are told: it rises by one an epoch. The next one by
        default.
        Where the disk has no room for it, the report says so, and the next commit shows what this one would have.
        Raises StorageError for other faults of the disk.
        """
        full = ""
        try:
            self.store.commit(number)
        except StorageError as error:
            if not error.is_full:
                raise
            full = error.strerror or str(error)
        # Its own newest commit may be an older one, where the disk was full: ages must be those of the other shards.
        self.selection.table_changed(self.store.commits if number is None else number)
        return replace(self.report(), full=full)

    def available(self) -> tuple[Available, ...]:
        """What each source can sample now; the totals are this shard's weight among the shards."""
        return tuple(source.available() for source in self._sources)

    def sample(
        self, num_sequences: int, version: int, draw: tuple[int, ...], source: int = BUFFER
    ) -> SampledSequences | None:
        """`num_sequences` slices of trajectories drawn with replacement from one source.

        version: of `available` when the draws were shared out over the shards. Where it is not the current one any
        more, nothing is drawn and the answer is None.
        draw: names the random draw: equal names over equal contents give equal samples.
        Raises ReplayEmpty, StorageError.
        """
        available = self._sources[source].available()
        if available.total <= 0:
            raise ReplayEmpty(f"replay shard {self.shard} is empty")
        if version != available.version:
            return None
        rng = np.random.default_rng((self.config.seed, self.shard, *draw))
        try:
            drawn = self._sources[source].draw(num_sequences, self._slices, rng)
        except Changed:
            return None
        self._sampled += num_sequences
        return SampledSequences(
            shard=np.full(num_sequences, self.shard), life=self._life, total=available.total, source=source, **drawn
        )

    def update_priorities(self, life: int, numbers: np.ndarray, priorities: np.ndarray, largest: float) -> None:
        """Take the learner's priorities (n,) of trajectories sampled from the buffer.

        life: of the shard that they were sampled from; numbers of another life may mean other trajectories, and those
        are left alone. largest: priority that the learner has seen so far, which new trajectories begin with.
        """
        if life == self._life:
            self.selection.set_priorities(numbers, priorities, largest)

    def mark(self) -> dict[str, Any]:
        """What `rewind` needs to come back here: the place in the log, and what was counted; plain values."""
        counted = {name: getattr(self, f"_{name}") for name in COUNTERS}
        return {**vars(self.store.mark()), **counted, "evicted": self.store.evicted}

    def hold(self, mark: dict[str, Any]) -> None:
        """Keep what a `mark` needs, and nothing of earlier ones, as far as there is room (see `store.hold`)."""
        self.store.hold(mark["oldest"])

    def rewind(self, mark: dict[str, Any]) -> ReplayReport:
        """Forget everything that was stored after `mark` was made, and hold what it needs.

        Where what was evicted since could not be held, as many trajectories are missing; a shard that keeps no files
        begins empty. Raises StorageError.
        """
        place = Mark(**{field.name: mark[field.name] for field in fields(Mark)})
        if self._folder is not None:
            self.store.close()
            TrajectoryStore.take_back(self._folder, place)
            self._open()
        for name in COUNTERS:
            setattr(self, f"_{name}", mark[name])
        self.store.evicted = mark["evicted"]
        self.store.hold(mark["oldest"])
        return self.report()

    def report(self) -> ReplayReport:
        return ReplayReport(
            shard=self.shard,
            life=self._life,
            trajectories=len(self.store),
            timesteps=self.store.num_transitions,
            bytes=self.store.num_bytes,
            inserted=self._inserted,
            repeated=self._repeated,
            evicted=self.store.evicted,
            sampled=self._sampled,
            restored=self._restored,
            staged=self.store.num_staged,
            damage=(*self.store.damage, *(text for source in self._datasets for text in source.damage)),
        )

    def close(self) -> None:
        """Let go of the files, so that another process may open them."""
        self.store.close()
