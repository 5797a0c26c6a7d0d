"""The writer loses and doubles nothing, and the reader draws from all shards as from one."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from ring_cases import assert_same_batch, assert_uniform, make_shards, stored_ids, trajectory

from amago_ray.messages import Batch, Trajectory
from amago_ray.pending import CallTimeout, ProcessDied, ShardAway
from amago_ray.replay import client
from amago_ray.replay.client import LocalShard, ReplayReader, ReplayWriter
from amago_ray.replay.datasets.dataset import RowLayout, TrajectoryDataset
from amago_ray.replay.sampling.sources import ReplayEmpty
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.replay.storage.segments import StorageError
from amago_ray.replay.storage.trajectory_pack import PackedTrajectories, pack


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RETRY_INTERVAL_S", 0.0)


class Later:
    """A call whose answer is made when somebody waits for it."""

    def __init__(self, answer: Callable[[], Any]):
        self._answer = answer

    def done(self) -> bool:
        return False

    def result(self, timeout_s: float | None = None) -> Any:
        return self._answer()


class FaultyShard:
    """A `ShardHandle` over a real shard that fails where `faults` says so.

    faults: for each call that is waited for, in order, what goes wrong: None, an exception that is raised in place of
    doing the call, or an exception and "after" for one that is raised after it was done. None when it runs out.
    """

    def __init__(self, shard: ReplayShard, faults: Sequence[Any] = ()):
        self.shard = shard
        self.faults = list(faults)
        self.unanswered = self.most_unanswered = self.pushes = 0

    def _answer(self, call: Callable[[], Any]) -> Any:
        self.unanswered -= 1
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        result = call()
        if fault is not None:
            raise fault[0]
        return result

    def _later(self, call: Callable[[], Any]) -> Later:
        self.unanswered += 1
        self.most_unanswered = max(self.most_unanswered, self.unanswered)
        return Later(lambda: self._answer(call))

    def push(self, packed: PackedTrajectories) -> Later:
        self.pushes += 1
        return self._later(lambda: self.shard.push(packed))

    def available(self) -> Later:
        return self._later(lambda: self.shard.available())

    def sample(self, num_sequences: int, version: int, draw: tuple[int, ...], source: int) -> Later:
        return self._later(lambda: self.shard.sample(num_sequences, version, draw, source))

    def update_priorities(self, life: int, numbers: np.ndarray, priorities: np.ndarray, largest: float) -> Later:
        return self._later(lambda: self.shard.update_priorities(life, numbers, priorities, largest))


DIED = ProcessDied("gone")
SIZE = trajectory(0).num_bytes


def commit(shards: Sequence[ReplayShard]) -> list[tuple[int, int, int]]:
    for shard in shards:
        shard.commit()
    return sorted(stored_ids(shards))


# The writer


def test_messages_are_gathered_up_to_their_size() -> None:
    shard = FaultyShard(*make_shards(1))
    writer = ReplayWriter([shard], message_bytes=3 * SIZE)
    for sequence in range(7):
        writer.write(trajectory(sequence))
        assert shard.pushes == (sequence + 1) // 3
    writer.flush()
    assert shard.pushes == 3 and shard.unanswered == 0
    writer.flush()
    assert shard.pushes == 3  # there was nothing to send
    assert commit([shard.shard]) == [(0, 0, i) for i in range(7)]


FULL = StorageError(errno.ENOSPC, "cannot write to the segment: No space left on device")


def test_what_a_full_disk_refuses_is_kept_and_stored_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each; those before and after are none the worse, and who flushes hears of it in the disk's own words."""
    monkeypatch.setattr(client, "FULL_PATIENCE_S", -1.0)
    shard = FaultyShard(*make_shards(1), faults=[None, FULL, FULL, FULL])
    writer = ReplayWriter([shard], message_bytes=SIZE, max_in_flight=1)
    for sequence in range(3):
        writer.write(trajectory(sequence))
    for _ in range(2):
        with pytest.raises(ShardAway, match="^[^(]*No space left on device$"):
            writer.flush()
        assert commit([shard.shard]) == [(0, 0, 0)]
    writer.write(trajectory(3))
    writer.flush()
    assert commit([shard.shard]) == [(0, 0, i) for i in range(4)]


def test_a_disk_that_is_full_for_a_moment_only_holds_the_writer_up() -> None:
    shard = FaultyShard(*make_shards(1), faults=[FULL, FULL])
    writer = ReplayWriter([shard])
    writer.write(trajectory(0))
    writer.flush()
    assert commit([shard.shard]) == [(0, 0, 0)] and shard.pushes == 3


def test_other_faults_of_the_disk_and_too_much_that_waits_for_room_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = StorageError(errno.EIO, "cannot write to the segment: Input/output error")
    writer = ReplayWriter([FaultyShard(*make_shards(1), faults=[broken])])
    writer.write(trajectory(0))
    with pytest.raises(StorageError, match="Input/output"):
        writer.flush()
    monkeypatch.setattr(client, "FULL_PATIENCE_S", -1.0)
    monkeypatch.setattr(client, "MAX_KEPT_BYTES", 3 * SIZE)
    writer = ReplayWriter([FaultyShard(*make_shards(1), faults=[FULL] * 10)], message_bytes=SIZE, max_in_flight=1)
    with pytest.raises(StorageError, match="No space left"):
        for sequence in range(10):
            writer.write(trajectory(sequence))


@pytest.mark.parametrize("max_in_flight", [1, 2, 5])
def test_a_slow_shard_holds_the_writer_back(max_in_flight: int) -> None:
    shard = FaultyShard(*make_shards(1))
    writer = ReplayWriter([shard], message_bytes=1, max_in_flight=max_in_flight)
    for sequence in range(20):
        writer.write(trajectory(sequence))
        assert shard.unanswered == min(sequence + 1, max_in_flight)
    writer.flush()
    assert shard.unanswered == 0 and shard.most_unanswered == max_in_flight
    assert commit([shard.shard]) == [(0, 0, i) for i in range(20)]


def test_the_limit_is_over_all_shards_together() -> None:
    shards = [FaultyShard(shard) for shard in make_shards(3)]
    writer = ReplayWriter(shards, message_bytes=1, max_in_flight=2)
    for sequence in range(12):
        writer.write(trajectory(sequence))
        assert sum(shard.unanswered for shard in shards) <= 2
    writer.flush()
    assert sum(shard.unanswered for shard in shards) == 0 and writer.wait_s > 0


def test_shards_fill_evenly() -> None:
    shards = make_shards(3)
    for worker in range(2):
        writer = ReplayWriter([LocalShard(shard) for shard in shards])
        for sequence in range(9):
            writer.write(trajectory(sequence, worker=worker))
        writer.flush()
    commit(shards)
    assert [len(shard.store) for shard in shards] == [6, 6, 6]


@pytest.mark.parametrize(
    "faults",
    [[DIED], [DIED, DIED, DIED], [(DIED, "after")], [None, (DIED, "after"), DIED, (DIED, "after"), None, DIED]],
    ids=["lost", "lost thrice", "stored but not acknowledged", "all kinds"],
)
@pytest.mark.parametrize("message_bytes", [1, 4 * SIZE])
def test_a_dying_shard_gets_its_messages_again(faults: list[Any], message_bytes: int) -> None:
    replay = make_shards(2)
    shards = [FaultyShard(replay[0], faults), FaultyShard(replay[1])]
    writer = ReplayWriter(shards, message_bytes=message_bytes)
    for sequence in range(40):
        writer.write(trajectory(sequence, length=1 + sequence % 5))
    writer.flush()
    assert shards[0].faults == []
    assert commit(replay) == [(0, 0, i) for i in range(40)]
    assert sum(shard.report().inserted for shard in replay) == 40
    assert (replay[0].report().repeated > 0) == any(isinstance(fault, tuple) for fault in faults)


@pytest.mark.parametrize("error", [DIED, CallTimeout("slow")])
def test_what_is_not_acknowledged_is_kept_when_waiting_ends(error: Exception) -> None:
    shard = FaultyShard(*make_shards(1), faults=[error])
    writer = ReplayWriter([shard], timeout_s=-1.0)  # as if the time were up
    writer.write(trajectory(0))
    with pytest.raises(ShardAway):
        writer.flush()
    writer.flush()
    assert commit([shard.shard]) == [(0, 0, 0)]


def test_a_shard_that_is_away_stops_no_worker_in_the_middle_of_a_step() -> None:
    """Writing goes on, the flush says which shard it is, and once it is back everything is stored, once."""
    shards = [FaultyShard(shard) for shard in make_shards(2)]
    shards[1].faults = [DIED] * 40
    writer = ReplayWriter(shards, message_bytes=1, timeout_s=-1.0)
    for sequence in range(20):
        writer.write(trajectory(sequence))
    for _ in range(2):
        with pytest.raises(ShardAway, match=r"replay shard 1 has been away .*gone"):
            writer.flush()
    shards[1].faults = []
    writer.flush()
    assert commit([shard.shard for shard in shards]) == [(0, 0, i) for i in range(20)]
    assert all(shard.shard.report().inserted == 10 for shard in shards)


def test_a_bug_in_a_shard_is_raised_at_once() -> None:
    shard = FaultyShard(*make_shards(1), faults=[KeyError("a bug")])
    writer = ReplayWriter([shard])
    writer.write(trajectory(0))
    with pytest.raises(KeyError, match="a bug"):
        writer.flush()
    assert shard.pushes == 1


# The reader


def filled(
    sizes: Sequence[int], length: Callable[[int], int] = lambda i: 1 + i % 7, **settings: Any
) -> list[ReplayShard]:
    """Shards that hold `sizes` trajectories, numbered through."""
    shards = make_shards(len(sizes), **settings)
    sequence = 0
    for shard, size in zip(shards, sizes, strict=True):
        for _ in range(size):
            shard.push(pack([trajectory(sequence, length(sequence))]))
            sequence += 1
        shard.commit()
    return shards


def reader_of(shards: Sequence[Any], batch_size: int = 8, seed: int = 0, **settings: Any) -> ReplayReader:
    handles = [LocalShard(shard) if isinstance(shard, ReplayShard) else shard for shard in shards]
    return ReplayReader(handles, batch_size, seed, **settings)


def drawn(batches: list[Batch], num: int) -> np.ndarray:
    """How often each trajectory was drawn."""
    return np.bincount(np.concatenate([batch.gather("ids")[:, 2] for batch in batches]), minlength=num)


def assert_rows_belong(batch: Batch) -> None:
    """Each sequence's rows are those of its trajectory, from its first row on."""
    ids = batch.gather("ids")
    for i, rows in enumerate(batch.rows("obs.from")):
        expected = np.arange(batch.lengths[i] + 1) + batch.first_time_idx[i]
        np.testing.assert_array_equal(rows[:, 3], expected)
        assert (rows[:, :3] == ids[i]).all()


@pytest.mark.parametrize("sizes", [(40,), (3, 37), (1, 20, 0, 7, 12)], ids=str)
def test_every_trajectory_is_equally_likely(sizes: tuple[int, ...]) -> None:
    shards = filled(sizes)
    batches = list(reader_of(shards, batch_size=16).batches(300, first=0))
    assert len(batches) == 300
    assert_uniform(drawn(batches, sum(sizes)))
    for batch in batches:
        assert batch.num_sequences == 16
        np.testing.assert_allclose(batch.probability, 1 / sum(sizes), rtol=1e-12)
    for batch in batches[:20]:
        assert_rows_belong(batch)


def test_batches_are_not_grouped_by_shard() -> None:
    sizes, batch_size, per_request = (10, 30), 4, 4
    batches = list(reader_of(filled(sizes), batch_size, batches_per_request=per_request).batches(2000, first=0))
    of_first = np.stack([batch.gather("shard") == 0 for batch in batches]).reshape(-1, per_request * batch_size)
    assert_uniform(of_first.sum(axis=0))  # at every place within a request
    unmixed = np.mean([(batch.gather("shard") == 1).all() for batch in batches])
    assert abs(unmixed - 0.75**4) < 5 * np.sqrt(0.75**4 * (1 - 0.75**4) / 2000)


def same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert_same_batch(x, y)


def test_a_run_of_batches_may_be_cut_at_whole_requests() -> None:
    shards = filled((5, 9))
    whole = list(reader_of(shards).batches(10, first=0))
    parts = [batch for num, first in ((4, 0), (4, 4), (2, 8)) for batch in reader_of(shards).batches(num, first)]
    same(whole, parts)
    same(whole[4:], list(reader_of(shards).batches(6, first=4)))
    same(whole, list(reader_of(shards, max_in_flight=1).batches(10, first=0)))
    same(whole[:6], list(islice(reader_of(shards).batches(10, first=0), 6)))


def test_every_number_seed_and_learner_draws_for_itself() -> None:
    shards = filled((20, 30))
    runs = [
        list(reader_of(shards, seed=seed, rank=rank).batches(8, first))
        for seed, rank, first in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 8))
    ]
    assert len({tuple(batch.gather("ids")[:, 2]) for run in runs for batch in run}) == 32


def test_a_dead_shards_requests_are_drawn_again_over_the_rest() -> None:
    replay = filled((10, 20, 10))
    shards = [FaultyShard(shard) for shard in replay]
    batches = reader_of(shards, batch_size=16).batches(400, first=0)
    before = list(islice(batches, 8))
    shards[1].faults = [DIED] * 100_000
    after = list(batches)
    assert len(before) + len(after) == 400 and all(batch.num_sequences == 16 for batch in after)
    counts = drawn(after, 40)
    assert counts[10:30].sum() == 0
    assert_uniform(np.delete(counts, range(10, 30)))
    assert {tuple(batch.probability) for batch in before} == {(1 / 40,) * 16}
    assert {tuple(batch.probability) for batch in after} == {(1 / 20,) * 16}
    for batch in after[:20]:
        assert_rows_belong(batch)


def test_a_shard_that_comes_back_is_drawn_from_again() -> None:
    replay = filled((10, 20))
    shards = [FaultyShard(replay[0]), FaultyShard(replay[1], faults=[None, DIED, DIED])]  # its size, then two calls
    reader = reader_of(shards, batch_size=16)
    assert len(list(reader.batches(4, first=0))) == 4
    assert shards[1].faults == []
    after = list(reader.batches(300, first=4))
    assert_uniform(drawn(after, 30))


def test_a_shard_that_comes_back_empty_is_left_out() -> None:
    replay = filled((10, 20))
    shards = [FaultyShard(shard) for shard in replay]
    batches = reader_of(shards).batches(100, first=0)
    next(batches)
    shards[1].shard = make_shards(2)[1]
    after = list(islice(batches, 3, None))  # past the request that was answered already
    assert len(after) == 96
    assert all((batch.gather("shard") == 0).all() and (batch.probability == 1 / 10).all() for batch in after)


class Nothing(TrajectoryDataset):
    """A dataset that is not ready yet."""

    def __len__(self) -> int:
        return 0

    def read(self, index: int, layout: RowLayout) -> Trajectory:
        raise IndexError(index)


def of_nothing(num: int) -> list[ReplayShard]:
    layout = RowLayout(Box(0, 1, (1,)), Discrete(2))
    return [ReplayShard(ReplayConfig(4), i, [Nothing().source(layout, i, num)]) for i in range(num)]


def test_there_is_nothing_to_draw() -> None:
    no_rollout, no_data = "no rollout has finished yet", "Experiment.dataset holds nothing that can be drawn"
    for mixture, message in (
        (None, f"the replay buffer is empty: {no_rollout}"),
        ((1.0, 0.0), f"the replay buffer is empty: {no_rollout}"),
        ((0.5, 0.5), f"{no_data}, and {no_rollout}"),
        ((0.0, 1.0), no_data),
    ):
        with pytest.raises(ReplayEmpty) as caught:
            next(reader_of(of_nothing(2)).batches(1, 0, mixture))
        assert str(caught.value) == message
    assert list(reader_of(filled([2])).batches(0, first=0)) == []


def test_dead_shards_are_waited_for() -> None:
    (replay,) = filled([5])
    assert len(list(reader_of([FaultyShard(replay, [DIED] * 3)]).batches(2, first=0))) == 2
    with pytest.raises(ReplayEmpty, match="1 of 1 replay shards are down"):
        next(reader_of([FaultyShard(replay, [DIED] * 3)], timeout_s=-1.0).batches(2, first=0))


def test_a_bug_in_sampling_is_raised() -> None:
    (replay,) = filled([5])
    with pytest.raises(KeyError, match="a bug"):
        next(reader_of([FaultyShard(replay, [None, KeyError("a bug")])]).batches(2, first=0))
