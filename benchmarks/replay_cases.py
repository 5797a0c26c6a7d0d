"""What the benchmarks of replay share: made-up trajectories, shards that hold them, and two things to compare with.

The shards are in this very process, so what is measured is the work of one core: packing, storing, drawing, gathering
and shuffling. Transport between processes is not in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from amago_ray.messages import Batch, Trajectory, TrajectoryId
from amago_ray.replay.client import LocalShard, ReplayReader, ReplayWriter
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.replay.storage.config import StoreConfig

OBS = "observation"
NUM_ACTIONS = 5
LARGEST_COPY = 1 << 26  # bytes copied at once by the plain copies; more than a processor's cache


@dataclass(frozen=True)
class Data:
    """One kind of trajectory, and how much of it is used.

    shape, dtype: of an observation. length: transitions of a trajectory. max_seq_len: of a sampled sequence.
    num_stored: trajectories in all shards together. num_pushed: in one timed run, of as many different ones.
    num_batches: sampled in one timed run. batches_per_request, max_in_flight: see `ReplayReader`.
    num_files: of one trajectory each, to compare with. num_read: of them, in one timed run.
    """

    shape: tuple[int, ...]
    dtype: str
    length: int
    max_seq_len: int
    num_stored: int
    num_pushed: int
    batch_size: int
    num_batches: int
    num_files: int
    num_read: int
    batches_per_request: int = 4
    max_in_flight: int = 3

    def quick(self) -> Data:
        """The same kind of trajectory, and as little of it as runs at all."""
        pushed = max(self.num_pushed // 10, 2)
        batch_size = min(self.batch_size, 8)
        few = {"num_stored": 4 * pushed, "num_pushed": pushed, "num_files": 2, "num_read": 2}
        return replace(self, **few, num_batches=2, batch_size=batch_size)


# A reader holds max_in_flight requests in memory: twelve batches of images would be gigabytes.
IMAGES = Data((84, 84, 4), "uint8", 512, 512, 28, 7, 4, 3, 8, 3, batches_per_request=1, max_in_flight=1)
DATA = {
    "vectors 32 x 100": Data((32,), "float32", 100, 100, 20_000, 2_000, 24, 32, 200, 100),
    "vectors 32 x 10,000": Data((32,), "float32", 10_000, 128, 150, 30, 24, 16, 50, 20),
    "images 84 x 84 x 4 x 512": IMAGES,
    "images, sequences of 128": replace(IMAGES, max_seq_len=128, batch_size=16),
}


def trajectory(data: Data, rng: np.random.Generator) -> Trajectory:
    """A made-up trajectory. Images are blocks of 7 x 7 equal pixels, and a seventh of them noise."""
    rows = data.length + 1
    if data.dtype == "uint8":
        blocks = rng.integers(256, size=(rows, 12, 12, 4), dtype=np.uint8)
        obs = blocks.repeat(7, axis=1).repeat(7, axis=2)
        obs[:, :12] = rng.integers(256, size=(rows, 12, 84, 4), dtype=np.uint8)
    else:
        obs = rng.standard_normal((rows, *data.shape), dtype=data.dtype)
    columns = {
        f"obs.{OBS}": obs,
        "action": rng.integers(NUM_ACTIONS, size=rows),
        "reward": rng.standard_normal(rows, dtype=np.float32),
        "terminated": np.arange(rows) == rows - 1,
    }
    return Trajectory(TrajectoryId(0, 0, 0), "made up", columns, 0, False, 0)


class Ring:
    """A writer, shards and a reader over made-up data; the oldest trajectories are evicted as new ones come.

    folder: of the segment files; None for shards in memory. compressed: observations are stored as lz4 blocks.
    """

    def __init__(self, data: Data, num_shards: int, folder: Path | None, compressed: bool = False):
        self.data = data
        rng = np.random.default_rng(0)
        self._made = [trajectory(data, rng) for _ in range(data.num_pushed)]
        self._sequence, self._request = count(), count()
        per_shard = data.num_stored // num_shards
        store = StoreConfig(
            folder,
            capacity_bytes=per_shard * self._made[0].num_bytes,
            capacity_trajectories=per_shard,  # compressed ones are not as many as the bytes would allow
            compressed=(OBS,) if compressed else (),
            stride=num_shards,
        )
        self.shards = [ReplayShard(ReplayConfig(data.max_seq_len, store=store), i) for i in range(num_shards)]
        handles = [LocalShard(shard) for shard in self.shards]
        self.writer = ReplayWriter(handles)
        self.reader = ReplayReader(
            handles,
            data.batch_size,
            seed=0,
            batches_per_request=data.batches_per_request,
            max_in_flight=data.max_in_flight,
        )
        while sum(shard.report().trajectories for shard in self.shards) < per_shard * num_shards:
            self.name_new()
            self.push()

    @property
    def pushed_bytes(self) -> int:
        """Bytes of what a push holds, before any compression."""
        return sum(made.num_bytes for made in self._made)

    @property
    def stored_fraction(self) -> float:
        """Stored bytes of a trajectory over those that it had when it was pushed."""
        reports = [shard.report() for shard in self.shards]
        stored = sum(report.bytes for report in reports) / sum(report.trajectories for report in reports)
        return stored * len(self._made) / self.pushed_bytes

    def name_new(self) -> None:
        """Make the trajectories of the next push new ones."""
        self._made = [replace(made, id=TrajectoryId(0, 0, next(self._sequence))) for made in self._made]

    def push(self) -> None:
        for made in self._made:
            self.writer.write(made)
        self.writer.flush()
        for shard in self.shards:
            shard.commit()

    def sample(self, consume: Callable[[Batch], object] = lambda batch: None) -> None:
        for batch in self.reader.batches(self.data.num_batches, next(self._request) * self.data.num_batches):
            consume(batch)

    def sampled(self) -> tuple[int, int]:
        """Sequence-steps and bytes of one `sample`."""
        batches: list[Batch] = []
        self.sample(batches.append)
        row_bytes = self.pushed_bytes // (len(self._made) * (self.data.length + 1))
        steps = sum(int(batch.lengths.sum()) for batch in batches)
        return steps, (steps + sum(batch.num_sequences for batch in batches)) * row_bytes

    def close(self) -> None:
        for shard in self.shards:
            shard.close()


class NpzFiles:
    """One uncompressed .npz file per trajectory; a call reads some of them at random and cuts a sequence out of each.

    As AMAGO keeps its replay buffer on disk.
    """

    def __init__(self, data: Data, folder: Path):
        folder.mkdir(parents=True)
        self.data, self._rng = data, np.random.default_rng(0)
        self.paths = [folder / f"{i}.npz" for i in range(data.num_files)]
        for path in self.paths:
            np.savez(path, **trajectory(data, self._rng).columns)

    def __call__(self) -> list[dict[str, np.ndarray]]:
        return [self._read(self.paths[i]) for i in self._rng.integers(len(self.paths), size=self.data.num_read)]

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        with np.load(path) as file:
            columns = dict(file)
        first = int(self._rng.integers(self.data.length - self.data.max_seq_len + 1))
        return {name: column[first : first + self.data.max_seq_len + 1] for name, column in columns.items()}

    def delete(self) -> None:
        shutil.rmtree(self.paths[0].parent)


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
