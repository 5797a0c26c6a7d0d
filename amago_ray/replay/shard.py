"""One shard of the replay buffer: stores what workers push, samples what the learner asks for."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from amago_ray.data import Batch, ReplayReport, Trajectory
from amago_ray.replay.packing import PackedTrajectories
from amago_ray.replay.sampling import PaddedSampling, check_padded_sampling, draw_slices
from amago_ray.replay.store import SeenIds, TrajectoryStore


class ReplayEmpty(RuntimeError):
    """There is nothing to sample: no rollout has finished yet, or the shard came back empty."""


@dataclass(frozen=True)
class ReplayConfig:
    """Settings of every shard.

    max_seq_len: longest sequence sampled, in transitions. padded_sampling: see `sampling.draw_slices`.
    capacity_bytes, capacity_trajectories: of one shard.
    """

    max_seq_len: int
    padded_sampling: PaddedSampling = "none"
    capacity_bytes: int = 1 << 30
    capacity_trajectories: int = 1 << 40
    seed: int = 0

    def __post_init__(self) -> None:
        check_padded_sampling(self.padded_sampling)


class ReplayShard:
    """Consumes pushes, produces samples.

        push    -> stored, once, when it returns
        commit  -> everything stored becomes visible to `sample`, in an order that does not depend on arrival
        sample  -> uniform over the visible trajectories, then a slice of each

    Visibility moves in steps, so that with one commit per epoch a seeded run samples the same whichever worker is
    faster.
    """

    def __init__(self, config: ReplayConfig, shard: int):
        self.config = config
        self.shard = shard
        self._store = TrajectoryStore(config.capacity_bytes, config.capacity_trajectories)
        self._seen = SeenIds()
        self._staged: list[Trajectory] = []
        self._inserted = self._repeated = self._sampled = 0
        self._life = time.time_ns()

    def push(self, packed: PackedTrajectories) -> int:
        """Store trajectories; returns how many were new. Repeats are recognised by their identity."""
        new = 0
        for trajectory in packed.unpack():
            self._store.check_fits(trajectory)
            if self._seen.add(trajectory.id):
                self._staged.append(trajectory)
                new += 1
        self._inserted += new
        self._repeated += len(packed) - new
        return new

    def commit(self) -> ReplayReport:
        """Make all that was pushed visible, ordered by identity, and evict beyond capacity."""
        for trajectory in sorted(self._staged, key=lambda t: t.id):
            self._store.append(trajectory)
        self._staged.clear()
        return self.report()

    def num_trajectories(self) -> int:
        """Visible trajectories: this shard's weight among the shards."""
        return len(self._store)

    def sample(self, num_sequences: int, num_available: int, draw: tuple[int, ...]) -> Batch:
        """`num_sequences` slices of trajectories drawn uniformly with replacement.

        num_available: visible trajectories in all shards, for the sampling probability that is reported.
        draw: names the random draw: equal names over equal contents give equal samples.
        Raises ReplayEmpty.
        """
        if len(self._store) == 0:
            raise ReplayEmpty(f"replay shard {self.shard} is empty")
        rng = np.random.default_rng((self.config.seed, self.shard, *draw))
        chosen = rng.integers(len(self._store), size=num_sequences)
        start, lengths = draw_slices(
            self._store.lengths(chosen), self.config.max_seq_len, self.config.padded_sampling, rng
        )
        trajectories = [self._store[i] for i in chosen]
        rows = [slice(first, first + n + 1) for first, n in zip(start, lengths, strict=True)]
        self._sampled += num_sequences
        return Batch(
            columns={
                name: np.concatenate([t.columns[name][r] for t, r in zip(trajectories, rows, strict=True)])
                for name in trajectories[0].columns
            },
            lengths=lengths,
            first_time_idx=np.array([t.first_time_idx for t in trajectories], dtype=np.int64) + start,
            shard=np.full(num_sequences, self.shard, dtype=np.int64),
            ids=np.array([(t.id.worker, t.id.incarnation, t.id.sequence) for t in trajectories], dtype=np.int64),
            weight_version=np.array([t.weight_version for t in trajectories], dtype=np.int64),
            probability=np.full(num_sequences, 1.0 / max(num_available, 1)),
        )

    def report(self) -> ReplayReport:
        return ReplayReport(
            shard=self.shard,
            life=self._life,
            trajectories=len(self._store),
            timesteps=self._store.num_transitions,
            bytes=self._store.num_bytes,
            inserted=self._inserted,
            repeated=self._repeated,
            evicted=self._store.evicted,
            sampled=self._sampled,
        )
