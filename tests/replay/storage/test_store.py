"""The store forgets its oldest trajectories, and only those, when it is full, and does not grow."""

from __future__ import annotations

import gc
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ring_cases import ROW_BYTES, assert_same_trajectories, make_shards, stored_ids, stored_trajectories, trajectory

from amago_ray.messages import Trajectory
from amago_ray.replay.shard import ReplayShard
from amago_ray.replay.storage.config import MAX_SEGMENTS, SEGMENT_BYTES, StoreConfig
from amago_ray.replay.storage.trajectory_pack import PackedTrajectories, pack


def fill(shard: ReplayShard, *trajectories: Trajectory) -> list[int]:
    for t in trajectories:
        shard.push(pack([t]))
    shard.commit()
    return [sequence for _, _, sequence in stored_ids([shard])]


def test_the_oldest_goes_first_beyond_a_number() -> None:
    (shard,) = make_shards(1, capacity_trajectories=3)
    for sequence in range(5):
        assert fill(shard, trajectory(sequence, 1 + sequence)) == list(range(max(sequence - 2, 0), sequence + 1))
    assert shard.store.evicted == 2 and shard.store.num_transitions == 3 + 4 + 5


def test_the_oldest_go_first_beyond_a_size() -> None:
    small, large = 5 * ROW_BYTES, 30 * ROW_BYTES
    (shard,) = make_shards(1, capacity_bytes=large + small)
    assert fill(shard, *(trajectory(i, 4) for i in range(7))) == list(range(7))
    assert shard.store.num_bytes == 7 * small and shard.store.evicted == 0
    assert fill(shard, trajectory(7, 29)) == [6, 7]
    assert shard.store.num_bytes == large + small
    assert fill(shard, trajectory(8, 4)) == [7, 8]


def test_one_that_fits_exactly_is_kept_and_a_larger_one_is_refused() -> None:
    (shard,) = make_shards(1, capacity_bytes=10 * ROW_BYTES)
    assert fill(shard, trajectory(0, 9)) == [0]
    with pytest.raises(ValueError, match=r"of 275 bytes \(10 timesteps of 'made up'\).*250 bytes.*replay_capacity_gb"):
        shard.push(pack([trajectory(1, 2), trajectory(2, 10)]))
    assert fill(shard) == [0]  # and nothing of the message


@pytest.mark.parametrize("durable", [True, False])
def test_a_message_larger_than_a_segment_is_stored_in_pieces(tmp_path: Path, durable: bool) -> None:
    (shard,) = make_shards(1, folder=tmp_path if durable else None, segment_bytes=1000)
    sent = [trajectory(i, 1 + i) for i in range(60)]
    shard.push(pack(sent))
    shard.commit()
    assert shard.store.num_segments > 10
    assert_same_trajectories(stored_trajectories(shard), sent)


def with_columns(packed: PackedTrajectories, **columns: np.ndarray) -> PackedTrajectories:
    return replace(packed, columns=packed.columns | columns)


@pytest.mark.parametrize("compressed", [(), ("wide", "empty", "flag", "deep")])
def test_columns_of_all_shapes_and_types(tmp_path: Path, compressed: tuple[str, ...]) -> None:
    rng, packed = np.random.default_rng(0), pack([trajectory(i, 20 + i) for i in range(4)])
    rows = int(packed.num_rows.sum())
    columns = {
        "obs.wide": rng.normal(size=(rows, 7)).astype(np.float16),
        "obs.empty": np.zeros((rows, 0), dtype=np.float32),
        "obs.flag": rng.random((rows, 3, 1)) < 0.5,
        "obs.deep": rng.integers(1 << 40, size=(2, rows, 2)).transpose(1, 0, 2),  # not contiguous
    }
    for folder in (None, tmp_path):
        (shard,) = make_shards(1, folder=folder, compressed=compressed)
        shard.push(with_columns(packed, **columns))
        shard.commit()
        numbers, start, length = np.array([2, 0, 3]), np.array([3, 0, 15]), np.array([17, 1, 2])
        first = np.cumsum(packed.num_rows)[numbers] - packed.num_rows[numbers] + start
        read = shard.store.read(numbers, start, length)
        for name, column in (packed.columns | columns).items():
            expected = np.concatenate([column[f : f + n] for f, n in zip(first, length, strict=True)])
            assert read[name].dtype == column.dtype
            np.testing.assert_array_equal(read[name], expected)
        shard.close()


def test_what_is_compressed_may_change_between_runs(tmp_path: Path) -> None:
    sent = [trajectory(i, 40) for i in range(6)]
    for i, compressed in enumerate([(), ("pixels",), ("from", "pixels")]):
        (shard,) = make_shards(1, folder=tmp_path, compressed=compressed)
        fill(shard, *sent[2 * i : 2 * i + 2])
        numbers = np.arange(shard.store.table.end)[::-1]
        read = shard.store.read(numbers, np.full_like(numbers, 3), np.full_like(numbers, 30))
        for name, column in read.items():
            expected = np.concatenate([sent[n].columns[name][3:33] for n in numbers])
            np.testing.assert_array_equal(column, expected)
        assert_same_trajectories(stored_trajectories(shard), sent[: 2 * i + 2])
        shard.close()


@pytest.mark.parametrize("durable", [True, False])
def test_it_does_not_grow(tmp_path: Path, durable: bool) -> None:
    """24,000 tiny trajectories through a store of a hundred: 240 times what it holds, and dozens of segments."""
    folder = tmp_path if durable else None
    (shard,) = make_shards(1, folder=folder, capacity_trajectories=100, segment_bytes=20_000)
    message = pack([trajectory(i, 1) for i in range(300)])
    sizes = []
    tracemalloc.start()
    try:
        for i in range(80):
            ids = message.ids + np.array([0, 0, 300 * i])
            shard.push(replace(message, ids=ids))
            shard.commit()
            if i % 20 == 19:
                gc.collect()
                sizes.append((tracemalloc.get_traced_memory()[0], len(os.listdir("/proc/self/fd"))))
    finally:
        tracemalloc.stop()
    assert sizes[-1][0] < sizes[0][0] + 20_000 and sizes[-1][1] <= sizes[0][1] + 3
    assert shard.report().evicted == 23_900 and len(shard.store) == 100
    assert shard.store.num_segments <= 3 and len(shard.store._records) <= 10 and len(shard.store.table._rows) < 8000
    if durable:
        assert sum(path.stat().st_size for path in (tmp_path / "shard_0").iterdir()) < 300_000
    shard.close()


@pytest.mark.parametrize("gigabytes", [0.001, 1, 4, 100, 4000])
def test_segments_are_neither_large_nor_many(gigabytes: float) -> None:
    config = StoreConfig(capacity_bytes=int(gigabytes * 1e9))
    assert config.bytes_per_segment >= SEGMENT_BYTES[0]
    assert config.capacity_bytes / config.bytes_per_segment <= MAX_SEGMENTS + 1
