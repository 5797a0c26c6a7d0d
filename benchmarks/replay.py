"""Rates at which replay shards take trajectories in and give sequences out, beside copying the same bytes.

A writer and a reader talk to 1, 2 or 4 shards in this very process, so this measures the work of one core: packing,
storing, drawing, gathering and shuffling. Transport between processes is not in it.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count, product

import measure
import numpy as np
from measure import Column, Row, Table

from amago_ray.allocator import keep_freed_memory
from amago_ray.data import Batch, Trajectory, TrajectoryId
from amago_ray.replay.client import LocalShard, ReplayReader, ReplayWriter
from amago_ray.replay.shard import ReplayConfig, ReplayShard

NUM_SHARDS = (1, 2, 4)
LARGEST_COPY = 1 << 26  # bytes copied at once by the plain copies; more than a processor's cache

CASE = (Column("data", "data"), Column("num_shards", "shards"))
TABLES = (
    Table(
        "Pushing: ReplayWriter to shards, visible to the reader",
        (
            *CASE,
            Column("push_trajectories_per_s", "trajectories/s", ",.0f"),
            Column("push_steps_per_s", "timesteps/s", ",.0f"),
            Column("push_bytes_per_s", "GB/s", ".2f", scale=1e9),
            Column("push_copy_bytes_per_s", "copy GB/s", ".2f", scale=1e9),
            Column("push_ratio", "push / copy", ".3f"),
            Column("push_new_ratio", "push / copy to new memory", ".3f"),
            Column("runs", "runs"),
        ),
    ),
    Table(
        "Sampling: shards to ReplayReader",
        (
            *CASE,
            Column("sample_sequences_per_s", "sequences/s", ",.0f"),
            Column("sample_steps_per_s", "sequence-steps/s", ",.0f"),
            Column("sample_bytes_per_s", "GB/s", ".2f", scale=1e9),
            Column("sample_copy_bytes_per_s", "copy GB/s", ".2f", scale=1e9),
            Column("sample_ratio", "sample / copy", ".3f"),
            Column("sample_new_ratio", "sample / copy to new memory", ".3f"),
            Column("runs", "runs"),
        ),
    ),
)


@dataclass(frozen=True)
class Data:
    """One kind of trajectory, and how much of it is used.

    shape, dtype: of an observation. length: transitions of a trajectory. max_seq_len: of a sampled sequence.
    num_stored: trajectories in all shards together. num_pushed: in one timed run, of as many different ones.
    num_batches: sampled in one timed run. batches_per_request, max_in_flight: see `ReplayReader`.
    """

    shape: tuple[int, ...]
    dtype: str
    length: int
    max_seq_len: int
    num_stored: int
    num_pushed: int
    batch_size: int
    num_batches: int
    batches_per_request: int = 4
    max_in_flight: int = 3


DATA = {
    "vectors 32 x 100": Data((32,), "float32", 100, 100, 20_000, 2_000, 24, 32),
    "vectors 32 x 10,000": Data((32,), "float32", 10_000, 512, 150, 30, 24, 16),
    # The reader holds max_in_flight requests in memory: twelve batches of 24 would be 4 GB.
    "images 84 x 84 x 4 x 512": Data(
        (84, 84, 4), "uint8", 512, 512, 28, 7, 4, 3, batches_per_request=1, max_in_flight=1
    ),
}


class Ring:
    """A writer, shards and a reader over made-up data; the oldest trajectories are evicted as new ones come."""

    def __init__(self, data: Data, num_shards: int):
        self.data = data
        rng = np.random.default_rng(0)
        self._made = [self._trajectory(rng) for _ in range(data.num_pushed)]
        self._sequence, self._request = count(), count()
        config = ReplayConfig(data.max_seq_len, capacity_trajectories=data.num_stored // num_shards)
        self.shards = [ReplayShard(config, i) for i in range(num_shards)]
        handles = [LocalShard(shard) for shard in self.shards]
        self.writer = ReplayWriter(handles)
        self.reader = ReplayReader(
            handles,
            data.batch_size,
            seed=0,
            batches_per_request=data.batches_per_request,
            max_in_flight=data.max_in_flight,
        )
        while self.shards[0].num_trajectories() < config.capacity_trajectories:
            self.name_new()
            self.push()

    @property
    def pushed_bytes(self) -> int:
        return sum(trajectory.num_bytes for trajectory in self._made)

    def name_new(self) -> None:
        """Make the trajectories of the next push new ones."""
        self._made = [replace(made, id=TrajectoryId(0, 0, next(self._sequence))) for made in self._made]

    def push(self) -> None:
        for trajectory in self._made:
            self.writer.write(trajectory)
        self.writer.flush()
        for shard in self.shards:
            shard.commit()

    def sample(self, consume: Callable[[Batch], object] = lambda batch: None) -> None:
        for batch in self.reader.batches(self.data.num_batches, next(self._request) * self.data.num_batches):
            consume(batch)

    def _trajectory(self, rng: np.random.Generator) -> Trajectory:
        rows = self.data.length + 1
        if self.data.dtype == "uint8":
            obs = rng.integers(256, size=(rows, *self.data.shape), dtype=np.uint8)
        else:
            obs = rng.standard_normal((rows, *self.data.shape), dtype=self.data.dtype)
        columns = {
            "obs.observation": obs,
            "action": rng.integers(5, size=rows),
            "reward": rng.standard_normal(rows, dtype=np.float32),
            "terminated": np.arange(rows) == rows - 1,
        }
        return Trajectory(TrajectoryId(0, 0, 0), "made up", columns, 0, False, 0)


class Copy:
    """Copies `num_bytes`, in pieces that a buffer holds, into the same memory each time."""

    def __init__(self, num_bytes: int):
        whole, last = divmod(num_bytes, LARGEST_COPY)
        self.pieces = [LARGEST_COPY] * whole + [last] * (last > 0)
        self.source = np.ones(min(num_bytes, LARGEST_COPY), np.uint8)
        self.target = np.zeros_like(self.source)

    def __call__(self) -> None:
        for size in self.pieces:
            np.copyto(self.target[:size], self.source[:size])

    def to_new(self) -> None:
        """The same into new memory, which the system has to find and clear first."""
        for size in self.pieces:
            self.source[:size].copy()


def measure_case(name: str, num_shards: int, quick: bool, seconds: float) -> Row:
    data = DATA[name]
    if quick:
        pushed = max(data.num_pushed // 10, 2)
        data = replace(
            data, num_stored=4 * pushed, num_pushed=pushed, num_batches=2, batch_size=min(data.batch_size, 8)
        )
    ring = Ring(data, num_shards)
    batches: list[tuple[int, int]] = []
    ring.sample(lambda batch: batches.append((int(batch.lengths.sum()), sum(c.nbytes for c in batch.columns.values()))))
    steps, sampled_bytes = (sum(parts) for parts in zip(*batches))
    push_copy, sample_copy = Copy(ring.pushed_bytes), Copy(sampled_bytes)
    timings = measure.interleaved(
        {
            "push": ring.push,
            "push copy": push_copy,
            "push copy to new": push_copy.to_new,
            "sample": ring.sample,
            "sample copy": sample_copy,
            "sample copy to new": sample_copy.to_new,
        },
        seconds,
        before={"push": ring.name_new},
    )
    row = {"data": name, "num_shards": num_shards, "runs": len(timings["push"].seconds)}
    row |= {
        "push_trajectories_per_s": timings["push"].spread(data.num_pushed),
        "push_steps_per_s": data.num_pushed * data.length / timings["push"].median,
        "sample_sequences_per_s": timings["sample"].spread(data.num_batches * data.batch_size),
        "sample_steps_per_s": steps / timings["sample"].median,
        "bytes_per_push_run": ring.pushed_bytes,
        "bytes_per_sample_run": sampled_bytes,
    }
    for what, num_bytes in (("push", ring.pushed_bytes), ("sample", sampled_bytes)):
        row |= {
            f"{what}_bytes_per_s": num_bytes / timings[what].median,
            f"{what}_copy_bytes_per_s": num_bytes / timings[f"{what} copy"].median,
            f"{what}_ratio": measure.ratio(timings[f"{what} copy"], timings[what]),
            f"{what}_new_ratio": timings[f"{what} copy to new"].median / timings[what].median,
        }
    return row


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    rows = []
    for name, num_shards in product(DATA, (1, 2) if options.quick else NUM_SHARDS):
        if options.only in name:
            measure.say(f"{name}, {num_shards} shards")
            rows.append(measure_case(name, num_shards, options.quick, 0.1 if options.quick else options.seconds))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"memcpy_bytes_per_s": measure.memcpy_bytes_per_s(), "peak_resident_bytes": memory}, rows


if __name__ == "__main__":
    keep_freed_memory()  # as in shard and learner processes
    measure.main(measure.parser("replay", __doc__, seconds=8.0).parse_args(), TABLES, run)
