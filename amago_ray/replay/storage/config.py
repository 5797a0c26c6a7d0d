"""Where and how a store keeps its trajectories, and places in its log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from amago_ray.replay.storage.segments import OF_A_RUN, Hints

SEGMENT_BYTES = (1 << 20, 256 << 20)
SEGMENTS_PER_STORE = 16
MAX_SEGMENTS = 256  # each has an open file, and a process commonly may have 1024


@dataclass(frozen=True)
class Mark:
    """A place in a store's log, which it can be taken back to.

    oldest, newest: segments, None for an empty log. size: bytes of the newest. first, end: numbers of the visible
    trajectories.
    """

    oldest: int | None
    newest: int | None
    size: int
    first: int
    end: int


@dataclass(frozen=True)
class StoreConfig:
    """Where and how one shard keeps its trajectories.

    folder: of the segment files; None keeps them in memory. capacity_bytes, capacity_trajectories: the oldest are
    evicted beyond either. compressed: observation arrays that are stored as lz4 blocks.
    segment_bytes: size at which a new segment is begun; by default a sixteenth of the capacity, within SEGMENT_BYTES
    as long as that makes at most MAX_SEGMENTS.
    fsync_interval_s: at most so much of what was acknowledged is lost when the power fails. Nothing is lost when a
    process dies.
    stride: number of shards that share each worker's trajectories in turn.
    hints: of errors of the disk.
    """

    folder: Path | None = None
    capacity_bytes: int = 1 << 30
    capacity_trajectories: int = 1 << 40
    compressed: tuple[str, ...] = ()
    segment_bytes: int | None = None
    fsync_interval_s: float = 10.0
    stride: int = 1
    hints: Hints = OF_A_RUN

    @property
    def bytes_per_segment(self) -> int:
        least, most = SEGMENT_BYTES
        size = min(max(self.capacity_bytes // SEGMENTS_PER_STORE, least), most)
        return self.segment_bytes or max(size, self.capacity_bytes // MAX_SEGMENTS)


def share_of(total: int, shard: int, num_shards: int) -> int:
    """How many trajectories a shard may hold, so that all of them hold `total`; one at least."""
    return max(total // num_shards + (shard < total % num_shards), 1)
