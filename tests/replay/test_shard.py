"""One shard: what is pushed is stored once, shown in a fixed order, and sampled evenly."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ring_cases import (
    ROW_BYTES,
    as_batch,
    assert_same_batch,
    assert_same_trajectories,
    assert_uniform,
    make_shards,
    sample,
    stored_ids,
    stored_trajectories,
    trajectory,
)

from amago_ray.messages import Trajectory
from amago_ray.replay.sampling.sources import ReplayEmpty
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.replay.storage.segments import StorageError
from amago_ray.replay.storage.trajectory_pack import pack


def filled(trajectories: list[Trajectory], **settings: object) -> ReplayShard:
    (shard,) = make_shards(1, **settings)
    shard.push(pack(trajectories))
    shard.commit()
    return shard


def test_what_is_pushed_is_visible_after_commit() -> None:
    (shard,) = make_shards(1)
    assert shard.push(pack([trajectory(0), trajectory(1, length=3)])) == 2
    assert len(shard.store) == 0
    with pytest.raises(ReplayEmpty, match="replay shard 0 is empty"):
        shard.sample(1, 1, (0,))
    report = shard.commit()
    assert len(shard.store) == report.trajectories == report.inserted == 2
    assert report.timesteps == 8 and report.bytes == (6 + 4) * 25
    sample(shard, 5)
    assert shard.report().sampled == 5 and shard.report().evicted == shard.report().repeated == 0


def test_repeated_pushes_are_stored_once() -> None:
    (shard,) = make_shards(1)
    message = pack([trajectory(0), trajectory(1)])
    assert shard.push(message) == 2
    assert shard.push(message) == 0
    shard.commit()
    assert shard.push(message) == 0  # also after it became visible
    assert shard.push(pack([trajectory(1), trajectory(2), trajectory(1, worker=1)])) == 2
    report = shard.commit()
    assert stored_ids([shard]) == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 0, 1)]
    assert (report.inserted, report.repeated) == (4, 5)


def test_order_does_not_depend_on_arrival() -> None:
    sent = [trajectory(1, worker=0), trajectory(0, worker=1), trajectory(0, worker=0, incarnation=2), trajectory(0)]
    samples = []
    for order in permutations(sent):
        (shard,) = make_shards(1)
        for t in order:
            shard.push(pack([t]))
        shard.commit()
        assert stored_ids([shard]) == [(0, 0, 0), (0, 0, 1), (0, 2, 0), (1, 0, 0)]
        samples.append(as_batch(sample(shard, 16, (3,))))
    for other in samples[1:]:
        assert_same_batch(samples[0], other)


def test_equal_names_give_equal_draws() -> None:
    shard = filled([trajectory(i, length=12) for i in range(30)])
    first = as_batch(sample(shard, 64, (0, 1, 2, 3)))
    other = as_batch(sample(shard, 64, (0, 1, 2, 4)))
    assert_same_batch(first, as_batch(sample(shard, 64, (0, 1, 2, 3))))
    assert not np.array_equal(first.gather("ids"), other.gather("ids"))
    assert not np.array_equal(first.first_time_idx, other.first_time_idx)


def test_shards_and_seeds_draw_apart() -> None:
    draws = set()
    for shard, seed in ((0, 0), (1, 0), (0, 1)):
        replay = ReplayShard(ReplayConfig(4, seed=seed), shard)
        replay.push(pack([trajectory(i) for i in range(100)]))
        replay.commit()
        draws.add(tuple(sample(replay, 20, (5,)).ids[:, 2].tolist()))
    assert len(draws) == 3


def test_trajectories_are_equally_likely_whatever_their_length() -> None:
    shard = filled([trajectory(i, length=1 + 3 * i) for i in range(20)])
    batch = sample(shard, 8000)
    assert_uniform(np.bincount(batch.ids[:, 2], minlength=20))


@pytest.mark.parametrize("padded_sampling", ["none", "both", "left", "right"])
def test_a_sample_is_slices_of_what_was_stored(padded_sampling: str) -> None:
    stored = [
        trajectory(i, length=2 + i, worker=i % 2, first_time_idx=100 * i, weight_version=7 * i) for i in range(10)
    ]
    shard = filled(stored, max_seq_len=5, padded_sampling=padded_sampling)
    batch = sample(shard, 300)
    assert len(batch.lengths) == 300 and batch.lengths.max() == 5
    assert (batch.shard == 0).all() and batch.probability.tolist() == [1 / 10] * 300
    by_id = {(t.id.worker, t.id.incarnation, t.id.sequence): t for t in stored}
    stops = batch.stops
    assert all(len(column) == stops[-1] for column in batch.columns.values())
    for i, stop in enumerate(stops):
        t = by_id[tuple(batch.ids[i].tolist())]
        rows = slice(stop - batch.lengths[i] - 1, stop)
        start = batch.first_time_idx[i] - t.first_time_idx
        assert batch.weight_version[i] == t.weight_version
        for name, column in t.columns.items():
            np.testing.assert_array_equal(batch.columns[name][rows], column[start : start + batch.lengths[i] + 1])


def test_dtypes_and_copies() -> None:
    sent = trajectory(0)
    message = pack([sent, trajectory(1)])
    shard = filled([sent, trajectory(1)])
    for name, column in message.columns.items():
        assert sample(shard, 3).columns[name].dtype == column.dtype == sent.columns[name].dtype
    shard = make_shards(1)[0]
    shard.push(message)
    shard.commit()
    message.columns["reward"][:] = -1  # a message may be a view of memory that is reused
    assert (sample(shard, 10).columns["reward"] >= 0).all()


def test_capacity_is_kept_at_commit() -> None:
    shard = filled([trajectory(i) for i in range(10)], capacity_trajectories=4)
    assert [sequence for _, _, sequence in stored_ids([shard])] == [6, 7, 8, 9]
    assert shard.report().evicted == 6 and shard.report().inserted == 10


@pytest.mark.parametrize(
    ("total", "shares"), [(10, [4, 3, 3]), (9, [3, 3, 3]), (2, [1, 1, 1]), (None, [20, 20, 20])], ids=str
)
def test_shards_hold_together_what_the_setting_says(total: int | None, shares: list[int]) -> None:
    shards = make_shards(3, max_trajectories=total)
    for shard in shards:
        shard.push(pack([trajectory(i) for i in range(20)]))
        assert shard.commit(1).trajectories == shares[shard.shard]


def test_ages_are_those_of_the_epoch_where_the_disk_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what a full shard holds stays young, and takes more than its share of the draws over all shards."""

    def refuse(*args: object) -> None:
        raise StorageError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shards = make_shards(2, mode="recent", half_life=2.0, folder=tmp_path)
    for i, shard in enumerate(shards):
        shard.push(pack([trajectory(i)]))
        shard.commit(1)
    monkeypatch.setattr(shards[1].store, "_write", refuse)
    for epoch in range(2, 8):
        shards[0].push(pack([trajectory(2 * epoch)]))
        assert [bool(shard.commit(epoch).full) for shard in shards] == [False, True]
    weights = [2.0 ** ((epoch - 7) / 2) for epoch in range(1, 8)]
    assert [shard.available()[0].total for shard in shards] == pytest.approx([sum(weights), weights[0]])


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="padded_sampling='all'"):
        ReplayConfig(4, padded_sampling="all")


def test_packing_there_and_back() -> None:
    sent = [trajectory(0, length=1), trajectory(3, length=6, truncated=True, first_time_idx=6, weight_version=2)]
    for a, b in zip(sent, pack(sent).unpack(), strict=True):
        assert (a.id, a.env_name, a.first_time_idx, a.truncated, a.weight_version) == (
            (b.id, b.env_name, b.first_time_idx, b.truncated, b.weight_version)
        )
        for name, column in a.columns.items():
            np.testing.assert_array_equal(column, b.columns[name])
            assert b.columns[name].base is None


def test_nothing_is_drawn_from_what_has_changed_meanwhile() -> None:
    shard = filled([trajectory(i) for i in range(5)], capacity_trajectories=5)
    version = shard.available()[0].version
    assert shard.sample(3, version, (0,)) is not None
    shard.push(pack([trajectory(5)]))
    assert shard.sample(3, version, (0,)) is not None  # it is not visible yet
    shard.commit()  # and one is evicted, so that there are as many as before
    assert len(shard.store) == 5 and shard.sample(3, version, (0,)) is None


def test_a_shard_goes_back_to_a_mark(tmp_path: Path) -> None:
    """What was stored, staged, evicted and counted after it is as if it had never been."""
    settings: dict[str, Any] = {"segment_bytes": 400, "capacity_trajectories": 8, "capacity_bytes": 80_000}
    shards = [make_shards(1, folder=tmp_path / name, **settings)[0] for name in ("rewound", "untouched")]

    def store(shard: ReplayShard, sequences: range) -> None:
        for i in sequences:
            shard.push(pack([trajectory(i)]))
            if i % 3 == 2:
                shard.commit()

    for shard in shards:
        store(shard, range(13))  # the last one is staged
    rewound, untouched = shards
    mark = json.loads(json.dumps(rewound.mark()))
    rewound.hold(mark)
    store(rewound, range(13, 31))
    assert not set(stored_ids([rewound])) & set(stored_ids([untouched])), "all that was there is evicted"
    assert rewound.rewind(mark).trajectories == mark["end"] - mark["first"]
    for _ in range(2):
        assert rewound.report() == replace(
            untouched.report(), life=rewound.report().life, restored=rewound.report().restored
        )
        assert_same_trajectories(stored_trajectories(rewound), stored_trajectories(untouched))
        assert rewound.store.num_staged == untouched.store.num_staged
        assert vars(rewound.store.mark()) == vars(untouched.store.mark()) | {"oldest": rewound.store.mark().oldest}
        for shard in shards:
            store(shard, range(13, 20))
        np.testing.assert_array_equal(sample(rewound, 50).ids, sample(untouched, 50).ids)
    for shard in shards:
        shard.close()


def test_what_cannot_be_held_is_missed(tmp_path: Path) -> None:
    (shard,) = make_shards(1, folder=tmp_path, segment_bytes=1, capacity_bytes=60 * ROW_BYTES)
    for i in range(10):
        shard.push(pack([trajectory(i)]))
    shard.commit()
    mark = shard.mark()
    shard.hold(mark)
    held = [(0, 0, i) for i in range(10)]
    assert stored_ids([shard]) == held
    for i in range(10, 40):
        shard.push(pack([trajectory(i)]))
        shard.commit()
    assert shard.store.num_segments < 15, "what is held has a limit"
    missing = 10 - shard.rewind(mark).trajectories
    assert 0 < missing <= 10 and stored_ids([shard]) == held[missing:]
    shard.close()


def test_a_shard_in_memory_begins_empty_after_a_rewind() -> None:
    (before,) = make_shards(1)
    before.push(pack([trajectory(0)]))
    before.commit()
    (after,) = make_shards(1)
    report = after.rewind(before.mark())
    assert report.inserted == 1 and report.trajectories == 0
