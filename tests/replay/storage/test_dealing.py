"""What is stored, dealt out over another number of shards: nothing is lost, doubled or shown at another time."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from ring_cases import assert_same_trajectories, make_shards, stored_ids, stored_trajectories, trajectory

from amago_ray.replay.inspection import verify
from amago_ray.replay.shard import ReplayShard
from amago_ray.replay.storage import dealing, records
from amago_ray.replay.storage.config import StoreConfig
from amago_ray.replay.storage.segments import segment_path
from amago_ray.replay.storage.trajectory_pack import pack

WORKERS, SEQUENCES = 2, 24


def filled(folder: Path, num_shards: int) -> dict[str, Any]:
    """Shards with six commits and something staged, then more that a run's state knows nothing of; their marks."""
    shards = make_shards(num_shards, folder=folder, segment_bytes=800)
    marks: dict[str, Any] = {}
    for sequence in range(SEQUENCES + 6):
        for worker in range(WORKERS):
            t = trajectory(sequence, 1 + sequence % 5, worker)
            shards[(worker + sequence) % num_shards].push(pack([t]))
        if sequence == SEQUENCES + 2:
            marks = {str(i): shard.mark() for i, shard in enumerate(shards)}
        elif sequence % 4 == 3:
            for shard in shards:
                shard.commit(sequence // 4 + 1)
    for shard in shards:
        shard.close()
    return marks


def by_commit(shards: list[ReplayShard]) -> dict[int, set[tuple[int, int]]]:
    found: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for shard in shards:
        for row in shard.store.table.rows:
            found[int(row["commit"])].add((int(row["worker"]), int(row["sequence"])))
    return dict(found)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3), (4, 2)])
def test_everything_is_there_once_in_its_place(tmp_path: Path, before: int, after: int) -> None:
    marks = filled(tmp_path, before)
    done: list[int] = []
    made = dealing.deal_anew(tmp_path, after, marks, StoreConfig(segment_bytes=900), done.append)
    dealing.put_in_place(tmp_path, 7, made)
    assert sum(done) == WORKERS * (SEQUENCES + 3)
    assert dealing.marks_since(tmp_path, 7, marks) == made and dealing.marks_since(tmp_path, 8, marks) == marks
    shards = make_shards(after, folder=tmp_path, segment_bytes=900)
    assert sorted(path.name for path in tmp_path.glob("shard_*")) == [f"shard_{i}" for i in range(after)]
    assert by_commit(shards) == {
        c + 1: {(worker, 4 * c + i) for worker in range(WORKERS) for i in range(4)} for c in range(SEQUENCES // 4)
    }
    expected = [trajectory(s, 1 + s % 5, worker) for worker in range(WORKERS) for s in range(SEQUENCES + 3)]
    assert sum(shard.store.num_staged for shard in shards) == 3 * WORKERS
    for i, shard in enumerate(shards):
        assert shard.rewind(made[str(i)]).trajectories == len(shard.store) and shard.report().damage == ()
        assert all((worker + sequence) % after == i for worker, _, sequence in stored_ids([shard]))
        shard.commit(7)
        one = [t for t in expected if (t.id.worker + t.id.sequence) % after == i]
        stored = sorted(stored_trajectories(shard), key=lambda t: (t.id.worker, t.id.sequence))
        assert_same_trajectories(stored, one)
        assert shard.push(pack(one[:3])) == 0, "known by name"
        shard.close()


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("compressed", [(), ("pixels", "from")])
@pytest.mark.parametrize("where", ["facts", "columns"])
@pytest.mark.parametrize("which", [3, 9])
def test_what_is_damaged_is_named_and_left_out(
    tmp_path: Path, compressed: tuple[str, ...], where: str, which: int
) -> None:
    """It would get a checksum that it matches, and be learned from; `which` is a record in the middle, and the last."""
    shards = make_shards(2, folder=tmp_path, compressed=compressed)
    for sequence in range(20):
        shards[sequence % 2].push(pack([trajectory(sequence)]))
        if sequence == 11:
            for shard in shards:
                shard.commit()
    marks = {str(i): shard.mark() for i, shard in enumerate(shards)}
    record = shards[0].store._records[which]
    path = segment_path(tmp_path / "shard_0", 0)
    for shard in shards:
        shard.close()
    flip(path, record.offset + records.HEAD_BYTES + 20 if where == "facts" else record.columns_at + 3)
    told: list[str] = []
    made = dealing.deal_anew(tmp_path, 3, marks, StoreConfig(compressed=compressed), tell=told.append)
    (damage,) = told
    assert f"{path}, byte {record.offset}" in damage and "checksum" in damage
    dealing.put_in_place(tmp_path, 7, made)
    shards = make_shards(3, folder=tmp_path, compressed=compressed)
    for i, shard in enumerate(shards):
        shard.commit()
        left = [trajectory(s) for s in range(20) if s % 3 == i and s != 2 * which]
        assert_same_trajectories(sorted(stored_trajectories(shard), key=lambda t: t.id.sequence), left)
        assert shard.report().damage == ()
        shard.close()
    assert verify([tmp_path / f"shard_{i}" for i in range(3)]).damage == ()


def test_nothing_that_is_whole(tmp_path: Path) -> None:
    (shard,) = make_shards(1, folder=tmp_path)
    shard.push(pack([trajectory(0)]))
    shard.commit()
    record = shard.store._records[0]
    marks = {"0": shard.mark()}
    shard.close()
    flip(segment_path(tmp_path / "shard_0", 0), record.columns_at)
    told: list[str] = []
    made = dealing.deal_anew(tmp_path, 2, marks, StoreConfig(), tell=told.append)
    assert [mark["end"] for mark in made.values()] == [0, 0] and len(told) == 1


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_what_was_evicted_is_known_and_not_waited_for(tmp_path: Path, before: int, after: int) -> None:
    """Else every later trajectory is remembered one by one; what was on its way is taken all the same."""
    shards = make_shards(before, folder=tmp_path, segment_bytes=800, capacity_trajectories=12)
    on_its_way = 57
    for sequence in set(range(60)) - {on_its_way}:
        shards[sequence % before].push(pack([trajectory(sequence)]))
        if sequence % 6 == 5:
            for shard in shards:
                shard.commit(sequence // 6 + 1)
    marks = {str(i): shard.mark() for i, shard in enumerate(shards)}
    assert sum(len(shard.store) for shard in shards) < 40
    for shard in shards:
        shard.close()
    made = dealing.deal_anew(tmp_path, after, marks, StoreConfig(segment_bytes=900))
    dealing.put_in_place(tmp_path, 7, made)
    shards = make_shards(after, folder=tmp_path, segment_bytes=900)
    for sequence in range(60):
        new = shards[sequence % after].push(pack([trajectory(sequence)]))
        assert new == (sequence == on_its_way), sequence
    for sequence in range(60, 120):
        assert shards[sequence % after].push(pack([trajectory(sequence)])) == 1
    for shard in shards:
        assert not any(shard.store._seen._early.values())
        shard.close()


def test_killed_while_it_is_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step of it, the next process brings it to its end; before, all that was there is there."""
    rename, rmdir = Path.rename, Path.rmdir
    finished = []

    class Killed(BaseException):
        pass

    def renames_until(left: list[int]) -> Any:
        def replacement(self: Path, target: Any) -> Path:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return rename(self, target)

        return replacement

    def no_rmdir(self: Path) -> None:
        if self.name == dealing.FINISHED:
            raise Killed
        rmdir(self)

    for allowed in range(7):  # the last but one is killed when all is in place but for the empty folder
        folder = tmp_path / str(allowed)
        marks = filled(folder, 2)
        made = dealing.deal_anew(folder, 3, marks, StoreConfig())
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", renames_until([allowed]))
            if allowed == 5:
                patch.setattr(Path, "rmdir", no_rmdir)
            try:
                dealing.put_in_place(folder, 7, made)
                finished.append(allowed)
            except Killed:
                pass
        dealing.finish(folder)
        assert not (folder / dealing.FINISHED).exists()
        if dealing.marks_since(folder, 7, marks) == marks:  # the old ones are whole
            made = dealing.deal_anew(folder, 3, marks, StoreConfig())
            dealing.put_in_place(folder, 7, made)
        shards = make_shards(3, folder=folder)
        assert len(stored_ids(shards)) == WORKERS * SEQUENCES
        for shard in shards:
            shard.close()
    assert finished == [6]
