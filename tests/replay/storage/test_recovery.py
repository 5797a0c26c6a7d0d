"""A broken or full disk costs what it must, is told in words that name the file, and leaves the rest as it was."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ring_cases import (
    ROW_BYTES,
    assert_same_trajectories,
    make_shards,
    sample,
    stored_ids,
    stored_trajectories,
    trajectory,
)

from amago_ray.messages import Trajectory
from amago_ray.replay.shard import ReplayShard
from amago_ray.replay.storage import records
from amago_ray.replay.storage.config import StoreConfig
from amago_ray.replay.storage.segments import StorageError, segment_path
from amago_ray.replay.storage.store import TrajectoryStore
from amago_ray.replay.storage.trajectory_pack import pack

SENT = [trajectory(i, 4 + i % 3) for i in range(12)]


def folder_of(tmp_path: Path, **settings: Any) -> Path:
    """The folder of a shard that was closed: twelve messages of one trajectory, a commit after each."""
    (shard,) = make_shards(1, folder=tmp_path, **settings)
    for t in SENT:
        shard.push(pack([t]))
        shard.commit()
    shard.close()
    return tmp_path / "shard_0"


def heads(path: Path) -> list[int]:
    """Offsets of the records in a file."""
    data, mark = path.read_bytes(), records.MAGIC.to_bytes(4, "little")
    return [i for i in range(4, len(data)) if data[i : i + 4] == mark]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 16
    path.write_bytes(data)


def healthy(shard: ReplayShard) -> list[Trajectory]:
    """What is drawn in the end, once each."""
    for draw in range(30):
        version = shard.available()[0].version
        drawn = shard.sample(200, version, (draw,))
    assert drawn is not None
    stored = {t.id.sequence: t for t in SENT}
    for i, stop in enumerate(drawn.stops.tolist()):
        start, n = int(drawn.first_time_idx[i]), int(drawn.lengths[i])
        for name, column in drawn.columns.items():
            expected = stored[int(drawn.ids[i, 2])].columns[name][start : start + n + 1]
            np.testing.assert_array_equal(column[stop - n - 1 : stop], expected)
    return [stored[sequence] for sequence in sorted(set(drawn.ids[:, 2].tolist()))]


@pytest.mark.parametrize("where", ["head", "facts", "columns"])
@pytest.mark.parametrize("compressed", [(), ("pixels", "from")])
def test_a_flipped_byte_costs_one_message(tmp_path: Path, where: str, compressed: tuple[str, ...]) -> None:
    path = segment_path(folder_of(tmp_path, compressed=compressed), 0)
    begin, end = heads(path)[6:8]  # the fourth message, then its commit
    flip(path, {"head": begin + 9, "facts": begin + records.HEAD_BYTES + 20, "columns": end - 30}[where])
    (shard,) = make_shards(1, folder=tmp_path, compressed=compressed)
    assert_same_trajectories(healthy(shard), SENT[:3] + SENT[4:])
    (damage,) = shard.report().damage
    assert f"{path}, byte {begin}" in damage and "checksum" in damage
    shard.push(pack([trajectory(20)]))
    assert shard.commit().inserted == 1
    shard.close()


@pytest.mark.parametrize("compressed", [("pixels", "from"), ()])
def test_a_file_that_breaks_under_the_process_costs_what_was_in_it(tmp_path: Path, compressed: tuple[str, ...]) -> None:
    (shard,) = make_shards(1, folder=tmp_path, segment_bytes=1, compressed=compressed)
    for t in SENT:
        shard.push(pack([t]))
        shard.commit()
    path = segment_path(tmp_path / "shard_0", 3)
    os.truncate(path, heads(path)[0] + records.HEAD_BYTES + 100)
    assert_same_trajectories(healthy(shard), SENT[:3] + SENT[4:])
    assert [str(path) in damage for damage in shard.report().damage] == [True]
    shard.close()


def test_a_segment_whose_header_is_broken_is_put_aside(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, segment_bytes=1)
    path = segment_path(folder, 4)
    flip(path, 40)
    for damages in (1, 0):
        (shard,) = make_shards(1, folder=tmp_path, segment_bytes=1)
        assert_same_trajectories(stored_trajectories(shard), SENT[:4] + SENT[5:])
        assert len(shard.report().damage) == damages and all(str(path) in damage for damage in shard.report().damage)
        assert shard.push(pack(SENT)) == 0  # also what was lost was stored once
        shard.close()
    assert path.with_suffix(".damaged").exists()


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "not numbers"])
def test_broken_priorities_start_anew(tmp_path: Path, how: str) -> None:
    path = folder_of(tmp_path, mode="prioritized") / "priorities"
    data = path.read_bytes()
    changed = {"flipped": data[:3] + b"x" + data[4:], "cut": data[:-2], "empty": b""}
    path.write_bytes(changed.get(how, data[:-4] + np.float32(np.nan).tobytes()))
    (shard,) = make_shards(1, folder=tmp_path, mode="prioritized")
    assert shard.selection.priorities(np.arange(12)).tolist() == [1.0] * 12
    (damage,) = shard.report().damage
    assert str(path) in damage and "anew" in damage
    assert_same_trajectories(healthy(shard), SENT)
    shard.close()


def test_numbers_and_priorities_are_the_same_after_a_restart(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mode": "prioritized", "capacity_trajectories": 5, "segment_bytes": 1}
    folder_of(tmp_path, **settings)
    for _ in range(3):
        (shard,) = make_shards(1, folder=tmp_path, **settings)
        assert (shard.store.table.first, shard.store.table.end) == (7, 12)
        shard.update_priorities(shard.report().life, np.array([9, 11]), np.array([3.0, 0.5]), 4.0)
        assert shard.selection.priorities(np.arange(7, 12)).tolist() == [1.0, 1.0, 3.0, 1.0, 0.5]
        shard.close()
    (shard,) = make_shards(1, folder=tmp_path, **settings)
    assert shard.selection.priorities(np.arange(7, 12)).tolist() == [1.0, 1.0, 3.0, 1.0, 0.5]
    shard.push(pack([trajectory(12)]))
    shard.commit()
    assert shard.selection.priorities(np.arange(8, 13)).tolist() == [1.0, 3.0, 1.0, 0.5, 4.0]
    shard.close()


def full(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def pwritev(fd: int, buffers: Any, offset: int) -> int:
        os.pwrite(fd, b"half of it", offset)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwritev", pwritev)


@pytest.mark.parametrize(
    ("code", "hint"),
    [(errno.ENOSPC, "No space left.*lower Experiment.replay_capacity_gb"), (errno.EIO, "Input/output")],
)
@pytest.mark.parametrize("segment_bytes", [1, 1 << 20])
def test_a_full_disk_is_told_and_nothing_else_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, hint: str, segment_bytes: int
) -> None:
    folder_of(tmp_path, segment_bytes=segment_bytes)
    (shard,) = make_shards(1, folder=tmp_path, segment_bytes=segment_bytes)
    with monkeypatch.context() as patch:
        full(patch, code)
        for call in (lambda: shard.push(pack([trajectory(50)])), shard.store.commit):
            with pytest.raises(StorageError, match=rf"cannot write to the replay segment .*{hint}") as caught:
                call()
            assert caught.value.errno == code and str(tmp_path) in str(caught.value)
        assert_same_trajectories(healthy(shard), SENT)
    assert shard.push(pack([trajectory(50)])) == 1  # there is space again
    with monkeypatch.context() as patch:
        full(patch, code)
        if code == errno.ENOSPC:
            assert "No space left" in shard.commit().full
        else:
            with pytest.raises(StorageError, match="Input/output"):
                shard.commit()
        assert_same_trajectories(healthy(shard), SENT)
    assert shard.commit().full == ""
    shard.close()
    (shard,) = make_shards(1, folder=tmp_path, segment_bytes=segment_bytes)
    assert_same_trajectories(stored_trajectories(shard), [*SENT, trajectory(50)])
    assert shard.report().damage == ()
    shard.close()


def small_disk(monkeypatch: pytest.MonkeyPatch, folder: Path, size: int) -> None:
    """Let files of a folder hold no more than `size` bytes together."""
    write: Callable[..., int] = os.pwritev

    def pwritev(fd: int, buffers: Any, offset: int) -> int:
        if sum(path.stat().st_size for path in folder.rglob("*.segment")) + sum(map(len, buffers)) > size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)


@pytest.mark.parametrize("mode", ["trajectories", "timesteps", "recent", "prioritized"])
@pytest.mark.parametrize("per_commit", [4, 30])
def test_the_oldest_make_room_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, per_commit: int
) -> None:
    """A disk that is larger than the capacity, and not by enough: it goes on with the newest trajectories."""
    settings: dict[str, Any] = {"mode": mode, "capacity_bytes": 60_000, "segment_bytes": 4000}
    (shard,) = make_shards(1, folder=tmp_path, **settings)
    small_disk(monkeypatch, tmp_path, 62_000)
    for number in range(150):
        assert shard.push(pack([trajectory(number, 40)])) == 1
        if number == 70:
            shard.hold(shard.mark())  # keeps no room for good
        if len(shard.store):
            drawn = sample(shard, 20, (number,))
            assert set(drawn.ids[:, 2]) <= set(shard.store.table.rows["sequence"])
        if number % per_commit == per_commit - 1:
            assert not shard.commit().full
            numbers = shard.store.table.rows["sequence"].tolist()
            assert numbers == list(range(number + 1 - len(numbers), number + 1)), "the newest"
    assert shard.store.evicted == 150 - len(shard.store) - shard.store.num_staged
    assert shard.store.num_bytes >= 20_000
    damage = [text for text in shard.report().damage if "priorities" not in text]
    assert len(damage) == 1 and f"{tmp_path}/shard_0: the disk is full below the capacity of 60,000 bytes" in damage[0]
    numbers = stored_ids([shard])
    shard.close()
    (shard,) = make_shards(1, folder=tmp_path, **settings)
    assert stored_ids([shard]) == numbers
    shard.close()


def test_a_disk_that_others_fill_does_not_cost_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = make_shards(1, folder=tmp_path, capacity_bytes=60_000, segment_bytes=4000)
    for number in range(200):
        shard.push(pack([trajectory(number, 40)]))
        shard.commit()
    small_disk(monkeypatch, tmp_path, 0)
    for _ in range(20):
        with pytest.raises(StorageError, match="No space left"):
            shard.push(pack([trajectory(200)]))
    assert 30_000 <= sum(path.stat().st_size for path in tmp_path.rglob("*.segment")) < 34_000
    assert len(sample(shard, 5).lengths) == 5
    shard.close()


def test_a_limit_on_file_sizes_is_told(tmp_path: Path) -> None:
    (shard,) = make_shards(1, folder=tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            for t in SENT * 2:
                shard.push(pack([trajectory(t.id.sequence, 60)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    stored = shard.commit().trajectories
    shard.close()
    (shard,) = make_shards(1, folder=tmp_path)
    assert len(shard.store) == stored > 0 and shard.report().damage == ()
    assert_same_trajectories(stored_trajectories(shard), [trajectory(i, 60) for i in range(stored)])
    shard.close()


FIRST_WRITABLE = "Read-only file system; make it writable, then --resume auto .*without the data"


def test_a_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="replay cannot use the folder .*file.*; set Experiment.replay_dir"):
        TrajectoryStore(StoreConfig(tmp_path / "file"))
    (shard,) = make_shards(1, folder=tmp_path)
    opened = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=FIRST_WRITABLE):
        shard.push(pack([trajectory(0)]))
    monkeypatch.undo()
    assert shard.push(pack([trajectory(0)])) == 1
    shard.close()


def test_priorities_that_cannot_be_written_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = make_shards(1, folder=tmp_path, mode="prioritized")
    shard.push(pack(SENT))
    replace: Callable[..., Any] = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    shard.commit()
    monkeypatch.setattr(Path, "write_bytes", replace)
    shard.update_priorities(shard.report().life, np.array([3]), np.array([7.0]), 7.0)
    (damage,) = shard.report().damage
    assert str(tmp_path) in damage and "No space left" in damage and "stay in memory" in damage
    assert shard.selection.priorities(np.array([2, 3])).tolist() == [1.0, 7.0]
    assert len(sample(shard, 5).lengths) == 5
    shard.close()


def test_two_processes_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from amago_ray.replay.storage import folders

    monkeypatch.setattr(folders, "LOCK_TIMEOUT_S", 0.0)
    (shard,) = make_shards(1, folder=tmp_path)
    with pytest.raises(StorageError, match="in use by another process"):
        make_shards(1, folder=tmp_path)
    shard.push(pack(SENT))
    assert len(TrajectoryStore(StoreConfig(tmp_path / "shard_0"), read_only=True).damage) == 0
    shard.close()
    make_shards(1, folder=tmp_path)[0].close()


def test_what_was_evicted_does_not_come_back(tmp_path: Path) -> None:
    """A commit orders by identity: what was evicted may share a segment with what was not, in front of a freed one."""
    settings: dict[str, Any] = {"folder": tmp_path, "capacity_bytes": 20 * ROW_BYTES, "segment_bytes": 100}
    (shard,) = make_shards(1, **settings)
    shard.push(pack([trajectory(0, 7, worker=1)]))
    shard.push(pack([trajectory(0, 1, worker=0), trajectory(0, 1, worker=2)]))
    shard.commit()
    shard.push(pack([trajectory(1, 12, worker=0)]))
    shard.commit()
    left = [(2, 0, 0), (0, 0, 1)]
    assert stored_ids([shard]) == left and shard.store.table.first == 2
    shard.close()
    for _ in range(2):  # what the first one finds is what the second one does
        (again,) = make_shards(1, **settings)
        assert stored_ids([again]) == left and (again.store.table.first, again.store.table.end) == (2, 4)
        assert again.report().damage == ()
        again.close()
    looked_at = TrajectoryStore(StoreConfig(tmp_path / "shard_0", 20 * ROW_BYTES), read_only=True)
    assert [row["worker"] for row in looked_at.table.rows] == [2, 0]
    looked_at.close()


@pytest.mark.parametrize("lost", [1, 2, 3])
@pytest.mark.parametrize("where", ["head", "header"])
def test_what_was_evicted_does_not_come_back_where_records_are_lost(tmp_path: Path, lost: int, where: str) -> None:
    """Whether what is lost was evicted, the oldest that was not, or newer; also after more has been evicted."""
    settings: dict[str, Any] = {"capacity_trajectories": 50, "segment_bytes": 3000 if where == "header" else 1 << 20}
    (shard,) = make_shards(1, folder=tmp_path, **settings)
    shard.store.hold(0)  # so that evicted ones stay in their files
    for begin in range(0, 100, 20):
        shard.push(pack([trajectory(i) for i in range(begin, begin + 20)]))
        shard.commit()
    record = shard.store._records[lost]
    assert [sequence for _, _, sequence in stored_ids([shard])] == list(range(50, 100))
    shard.close()
    flip(segment_path(tmp_path / "shard_0", record.segment), 40 if where == "header" else record.offset + 70)
    gone = range(20 * lost, 20 * lost + 20)
    alive = [i for i in range(50, 100) if i not in gone]
    looked_at = TrajectoryStore(StoreConfig(tmp_path / "shard_0"), read_only=True)
    assert looked_at.table.rows["sequence"].tolist() == alive and len(looked_at.damage) == 1
    looked_at.close()
    (shard,) = make_shards(1, folder=tmp_path, **settings)
    assert [sequence for _, _, sequence in stored_ids([shard])] == alive
    shard.push(pack([trajectory(i) for i in range(100, 100 + 50 - len(alive) + 3)]))  # three too many
    shard.commit()
    shard.close()
    (shard,) = make_shards(1, folder=tmp_path, **settings)
    left = [*alive[3:], *range(100, 100 + 50 - len(alive) + 3)]
    assert [sequence for _, _, sequence in stored_ids([shard])] == left
    shard.close()


def test_where_nothing_was_left_nothing_comes_back(tmp_path: Path) -> None:
    (shard,) = make_shards(1, folder=tmp_path, capacity_trajectories=0)
    shard.push(pack(SENT[:6]))
    record = shard.store._records[0]
    shard.push(pack(SENT[6:]))
    shard.commit()
    shard.close()
    flip(segment_path(tmp_path / "shard_0", 0), record.offset + 70)
    (shard,) = make_shards(1, folder=tmp_path)
    assert len(shard.store) == 0
    shard.push(pack([trajectory(20)]))
    shard.commit()
    shard.close()
    (shard,) = make_shards(1, folder=tmp_path)
    assert stored_ids([shard]) == [(0, 0, 20)]
    shard.close()


def test_less_capacity_evicts_once_and_for_all(tmp_path: Path) -> None:
    (shard,) = make_shards(1, folder=tmp_path, segment_bytes=100)
    shard.push(pack([trajectory(0, 7, worker=1)]))
    shard.push(pack([trajectory(0, 1, worker=0), trajectory(0, 1, worker=2)]))
    shard.commit()
    shard.close()
    for capacity in (9, 9, 100):
        (shard,) = make_shards(1, folder=tmp_path, segment_bytes=100, capacity_bytes=capacity * ROW_BYTES)
        assert stored_ids([shard]) == [(2, 0, 0)] and shard.store.table.first == 2
        shard.close()
