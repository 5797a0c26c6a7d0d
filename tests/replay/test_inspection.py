"""What is stored is found, counted and verified as it is, while its writer has it open, and nothing is changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ring_cases import assert_same_trajectories, make_shards, trajectory

from amago_ray.messages import Trajectory
from amago_ray.replay import inspection
from amago_ray.replay.datasets.stored_source import UNBOUNDED
from amago_ray.replay.inspection import Contents, Damage, StoredShard, find_stored_data, read_priorities, verify
from amago_ray.replay.shard import ReplayShard
from amago_ray.replay.storage.config import StoreConfig
from amago_ray.replay.storage.folders import shard_folder
from amago_ray.replay.storage.records import Corrupt
from amago_ray.replay.storage.segments import StorageError, segment_numbers, segment_path
from amago_ray.replay.storage.store import TrajectoryStore
from amago_ray.replay.storage.trajectory_pack import pack

SETTINGS = "Experiment.replay_capacity_gb = {gb}\nExperiment.replay_capacity_trajectories = {num}\n"


def store_of(folder: Path, trajectories: list[Trajectory], per_commit: int = 5, **settings: object) -> TrajectoryStore:
    """A shard's store, open for writing, with a record per trajectory."""
    config = StoreConfig(folder, **{"capacity_bytes": UNBOUNDED, "segment_bytes": 2000} | settings)
    store = TrajectoryStore(config)
    for i, t in enumerate(trajectories, start=1):
        store.push(pack([t]))
        if i % per_commit == 0:
            store.commit()
    return store


def run_folder(run: Path, num_shards: int = 2, gb: float = 1.0, num: int | None = None) -> Path:
    for i in range(num_shards):
        store_of(shard_folder(run / "replay", i), [trajectory(n, 3) for n in range(20)]).close()
    text = SETTINGS.format(gb=gb, num=num)
    text += f"Experiment.num_replay_shards = {num_shards}\nExperiment.agent_type = @Agent\n"
    (run / "config.txt").write_text("Experiment.num_replay_shards = 7\n" + text)
    return run


def test_data_are_found_from_every_folder_of_a_run(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", num_shards=11)
    shards = tuple(shard_folder(run / "replay", i) for i in range(11))
    for path in (run, run / "replay"):
        found = find_stored_data(path)
        assert found.shards == shards and found.config == run / "config.txt"
    assert find_stored_data(shards[10]).shards == shards[10:]
    assert find_stored_data(shards[10]).config == run / "config.txt"
    (run / "replay").rename(tmp_path / "imported")
    found = find_stored_data(tmp_path / "imported")
    assert len(found.shards) == 11 and found.config is None and found.capacity_bytes == UNBOUNDED


def test_data_in_another_replay_dir_are_found(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (tmp_path / "disk").mkdir()
    (run / "replay").rename(tmp_path / "disk" / "run")
    with open(run / "config.txt", "a") as file:
        file.write(f"Experiment.run_name = 'run'\nExperiment.replay_dir = {str(tmp_path / 'disk')!r}\n")
    assert find_stored_data(run).shards == tuple(tmp_path / "disk" / "run" / f"shard_{i}" for i in range(2))


def test_folders_without_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        find_stored_data(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no stored data: name the folder of a run.*replay_durable"):
        find_stored_data(tmp_path)


def test_what_the_run_has_evicted_counts_as_evicted(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", num_shards=2, num=15)
    found = find_stored_data(run)
    assert (found.capacity_bytes, found.capacity_trajectories, found.num_shards) == (500_000_000, 15, 2)
    for folder, expected in ((run, [8, 7]), (run / "replay" / "shard_1", [7])):
        shards = find_stored_data(folder).open()
        assert [len(shard) for shard in shards] == expected
        assert all(shard.table.first == 20 - len(shard) for shard in shards)
        for shard in shards:
            shard.close()
    (shard,) = make_shards(1, folder=tmp_path / "live", capacity_bytes=1500, segment_bytes=1000)
    for n in range(20):
        shard.push(pack([trajectory(n, 3)]))
        shard.commit()
    looked_at = StoredShard(tmp_path / "live" / "shard_0", capacity_bytes=1500)
    np.testing.assert_array_equal(looked_at.table.rows["sequence"], shard.store.table.rows["sequence"])
    assert looked_at.table.first == shard.store.evicted > 0


def test_a_shard_is_read_while_its_writer_has_it_open(tmp_path: Path) -> None:
    stored = [trajectory(n, 2 + n) for n in range(12)]
    before_s = time.time()
    store = store_of(tmp_path, stored, per_commit=5, compressed=("pixels",))
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    shard = StoredShard(tmp_path)
    assert (len(shard), shard.num_staged, shard.commits) == (10, 2, 2)
    assert shard.bytes_on_disk == sum(path.stat().st_size for path in tmp_path.glob("*.segment"))
    assert shard.uncompressed_bytes == sum(t.num_bytes for t in stored[:10]) > shard.num_bytes
    assert (shard.written_at >= before_s).all() and (np.diff(shard.written_at) >= 0).all()
    assert_same_trajectories(list(shard.trajectories()), stored[:10])
    shard.show_staged()
    assert_same_trajectories(list(shard.trajectories()), stored)
    shard.close()
    assert files == {path: path.read_bytes() for path in tmp_path.iterdir()}
    store.push(pack([trajectory(12)]))
    store.close()


def test_a_segment_that_is_evicted_while_we_look_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing is stale once: the run has deleted the first segments of it."""
    store_of(tmp_path, [trajectory(n) for n in range(40)]).close()
    listed = segment_numbers(tmp_path)
    assert len(listed) > 3
    stale = [listed]
    for number in listed[:2]:
        segment_path(tmp_path, number).unlink()
    monkeypatch.setattr(
        "amago_ray.replay.storage.store.segment_numbers", lambda p: stale.pop() if stale else listed[2:]
    )
    descriptors = len(os.listdir("/proc/self/fd"))
    shard = StoredShard(tmp_path)
    assert 0 < len(shard) < 40 and shard.damage == []
    shard.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    monkeypatch.setattr("amago_ray.replay.storage.store.segment_numbers", lambda p: listed)
    with pytest.raises(StorageError, match="No such file"):
        StoredShard(tmp_path)
    monkeypatch.setattr(inspection, "segment_numbers", lambda p: listed)
    assert verify([tmp_path]).segments == len(listed) - 2


def test_contents_of_several_shards(tmp_path: Path) -> None:
    names = ("maze", "lake", "maze")
    for i in range(2):
        stored = [
            trajectory(n, 2 + n, env_name=names[n % 3 - i], weight_version=10 * i + n, first_time_idx=n)
            for n in range(6)
        ]
        store_of(tmp_path / f"shard_{i}", stored, per_commit=3).close()
    contents = Contents.of(find_stored_data(tmp_path).open())
    assert len(contents) == 12 and contents.env_names == ("lake", "maze")
    assert [contents.env_names[i] for i in contents.env] == ["maze", "lake", "maze"] * 2 + ["maze", "maze", "lake"] * 2
    lengths = np.tile(np.arange(2, 8), 2)
    np.testing.assert_array_equal(contents.lengths, lengths)
    np.testing.assert_array_equal(contents.returns, lengths * (lengths + 1) / 2)
    np.testing.assert_array_equal(contents.age_epochs, [1, 1, 1, 0, 0, 0] * 2)
    np.testing.assert_array_equal(contents.weight_version, [*range(6), *range(10, 16)])
    assert (contents.first_time_idx > 0).sum() == 10 and len(contents.priorities) == 0
    assert ((0 <= contents.age_s) & (contents.age_s < 60)).all()


def prioritized(folder: Path) -> ReplayShard:
    (shard,) = make_shards(1, folder=folder, mode="prioritized", segment_bytes=1000)
    shard.push(pack([trajectory(n) for n in range(8)]))
    shard.commit()
    shard.update_priorities(shard._life, np.array([2, 5]), np.array([0.25, 4.0]), 4.0)
    return shard


def test_priorities_are_read_beside_a_writer(tmp_path: Path) -> None:
    shard = prioritized(tmp_path)
    unfinished = tmp_path / "shard_0" / ".priorities.1.tmp"  # as the writer has while it replaces the file
    unfinished.touch()
    found = Contents.of(find_stored_data(tmp_path).open()).priorities
    np.testing.assert_array_equal(found, [1, 1, 0.25, 1, 1, 4, 1, 1])
    assert unfinished.exists() and verify([tmp_path / "shard_0"]).damage == ()
    shard.close()


def test_what_is_whole_is_verified(tmp_path: Path) -> None:
    for i in range(2):
        store_of(tmp_path / f"shard_{i}", [trajectory(n) for n in range(20)], compressed=("pixels",)).close()
    done: list[int] = []
    found = verify(find_stored_data(tmp_path).shards, done.append)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.segment"))
    assert found.damage == () and found.unfinished == 0
    assert found.trajectories == 40 and found.records == 48 and found.segments > 4
    assert found.num_bytes == sum(done) == size


def test_the_end_of_what_is_being_written_is_no_damage(tmp_path: Path) -> None:
    """Every length that the newest segment has while its last record is written."""
    store = store_of(tmp_path, [trajectory(n) for n in range(4)], segment_bytes=1 << 20)
    segment = tmp_path / "0000000000.segment"
    before = segment.stat().st_size
    store.push(pack([trajectory(4)]))
    store.close()
    whole = segment.read_bytes()
    for size in range(before, len(whole) + 1):
        segment.write_bytes(whole[:size])
        found = verify([tmp_path])
        assert found.damage == () and found.num_bytes == size, size
        assert found.unfinished == (0 if size == len(whole) else size - before)
        assert found.trajectories == 4 + (size == len(whole))


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("offset_in_record", "what", "lost"),
    [
        (-3, "data do not match their checksum", "1 trajectories, 5 timesteps of made up"),
        (60, "facts do not match their checksum", "{record:,} bytes of records"),
        (1, "does not begin as records do", "{record:,} bytes of records"),
    ],
    ids=["column", "facts", "mark"],
)
@pytest.mark.parametrize("which", [1, 3], ids=["in the middle", "at the end"])
def test_flipped_bytes_of_a_record(tmp_path: Path, which: int, offset_in_record: int, what: str, lost: str) -> None:
    store = store_of(tmp_path, [trajectory(n) for n in range(4)], per_commit=9, segment_bytes=1 << 20)
    found = sorted(store._records.values(), key=lambda record: record.offset)
    store.close()
    record = found[which]
    path = tmp_path / "0000000000.segment"
    flip(path, record.offset + offset_in_record if offset_in_record > 0 else record.end + offset_in_record)
    done: list[int] = []
    result = verify([tmp_path], done.append)
    (damage,) = result.damage
    assert (damage.file, damage.offset) == (path, record.offset)
    assert what in damage.what and damage.lost == lost.format(record=record.end - record.offset)
    assert str(damage).startswith(f"{path}, byte {record.offset:,}: ") and str(damage).count(str(path)) == 1
    assert result.trajectories == 3 and result.unfinished == 0 and sum(done) == path.stat().st_size


def damage_header(folder: Path) -> tuple[Path, str, str]:
    path = segment_path(folder, 1)
    flip(path, 30)
    return path, "header does not match", f"all {path.stat().st_size:,} bytes"


def damage_by_deleting(folder: Path) -> tuple[Path, str, str]:
    segment_path(folder, 1).unlink()
    return segment_path(folder, 1), "the file is missing", "the segment"


def damage_set_aside(folder: Path) -> tuple[Path, str, str]:
    damage_header(folder)
    TrajectoryStore(StoreConfig(folder)).close()
    return segment_path(folder, 1).with_suffix(".damaged"), "set it aside", "the segment"


def damage_priorities(folder: Path) -> tuple[Path, str, str]:
    flip(folder / "priorities", 8)
    with pytest.raises(Corrupt, match="priorities, byte 0: it is not as it was written"):
        read_priorities(folder)
    return folder / "priorities", "not as it was written", "priorities"


@pytest.mark.parametrize("damage", [damage_header, damage_by_deleting, damage_set_aside, damage_priorities])
def test_damaged_files(tmp_path: Path, damage: Callable[[Path], tuple[Path, str, str]]) -> None:
    folder = tmp_path / "shard_0"
    shard = prioritized(tmp_path)
    for n in range(8, 40):
        shard.push(pack([trajectory(n)]))
    shard.commit()
    shard.close()
    assert segment_numbers(folder)[:3] == [0, 1, 2] and verify([folder]).damage == ()
    path, what, lost = damage(folder)
    (found,) = verify([folder]).damage
    assert isinstance(found, Damage) and (found.file, found.offset) == (path, 0)
    assert what in found.what and lost in found.lost
