"""Every way of sampling draws over all shards as over one big buffer, while they change, die, and lose data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from ring_cases import assert_drawn_as, make_shards, trajectory

from amago_ray.messages import Batch
from amago_ray.pending import Pending, ProcessDied, Ready
from amago_ray.replay import client
from amago_ray.replay.client import LocalShard, ReplayReader
from amago_ray.replay.shard import ReplayShard
from amago_ray.replay.storage.trajectory_pack import pack

MODES = ("trajectories", "timesteps", "recent", "prioritized")
SIZES = [(30,), (4, 26), (1, 14, 0, 6, 9)]
ALPHA, HALF_LIFE = 0.6, 2.0


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RETRY_INTERVAL_S", 0.0)


def length(sequence: int) -> int:
    return 1 + sequence % 7


def filled(sizes: Sequence[int], mode: str, **settings: Any) -> list[ReplayShard]:
    """Shards with trajectories numbered through, in three commits each, and a priority for each trajectory."""
    shards, sequence = make_shards(len(sizes), mode=mode, half_life=HALF_LIFE, **settings), 0
    for shard, size in zip(shards, sizes, strict=True):
        for part in np.array_split(np.arange(sequence, sequence + size), 3):
            if len(part):
                shard.push(pack([trajectory(int(i), length(int(i))) for i in part]))
            shard.commit()
        sequence += size
        prioritize(shard)
    return shards


def prioritize(shard: ReplayShard) -> None:
    table = shard.store.table
    if shard.config.selection.mode == "prioritized" and len(table):
        numbers, sequences = np.arange(table.first, table.end), table.rows["sequence"]
        shard.update_priorities(shard.report().life, numbers, 0.2 + sequences % 5, 4.2)


def true_probabilities(shards: Sequence[ReplayShard], mode: str, num: int) -> np.ndarray:
    """(num,) of each trajectory by its sequence number, from the definitions."""
    weights = np.zeros(num)
    for shard in shards:
        for row in shard.store.table.rows:
            age = shard.store.commits - row["commit"]
            weights[row["sequence"]] = {
                "trajectories": 1.0,
                "timesteps": row["num_rows"] - 1,
                "recent": 0.5 ** (age / HALF_LIFE),
                "prioritized": np.float32(0.2 + row["sequence"] % 5) ** ALPHA,
            }[mode]
    return weights / weights.sum()


def check(batches: Sequence[Batch], expected: np.ndarray) -> None:
    drawn = np.concatenate([batch.gather("ids")[:, 2] for batch in batches])
    reported = np.concatenate([batch.probability for batch in batches])
    np.testing.assert_allclose(reported, expected[drawn], rtol=1e-6)
    assert_drawn_as(np.bincount(drawn, minlength=len(expected)), expected)


class ChangingShard(LocalShard):
    """Does something to the shard before some of its calls."""

    def __init__(self, shard: ReplayShard, before: Callable[[ChangingShard], None] = lambda self: None):
        super().__init__(shard)
        self.before, self.calls, self.down = before, 0, False

    def _called(self) -> Any:
        self.calls += 1
        self.before(self)
        return Down() if self.down else None

    def available(self) -> Pending[Any]:
        return self._called() or super().available()

    def sample(self, *args: Any) -> Pending[Any]:
        return self._called() or super().sample(*args)


class Down:
    def done(self) -> bool:
        return True

    def result(self, timeout_s: float | None = None) -> Any:
        raise ProcessDied("gone")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_draws_have_the_true_probabilities(sizes: tuple[int, ...], mode: str) -> None:
    shards = filled(sizes, mode)
    reader = ReplayReader([LocalShard(shard) for shard in shards], 16, seed=1)
    check(list(reader.batches(400, first=0)), true_probabilities(shards, mode, sum(sizes)))


@pytest.mark.parametrize("mode", MODES)
def test_while_commits_evict(mode: str) -> None:
    """What was shared out before a commit is not drawn after it: all that arrives is as of one moment."""
    shards = filled((10, 20), mode, capacity_trajectories=20)

    def commit(handle: ChangingShard) -> None:
        if handle.calls % 7 == 3 and len(handle.shard.store.table) == 20:  # evicts as many as it shows
            newest = int(handle.shard.store.table.rows["sequence"].max())
            handle.shard.push(pack([trajectory(newest + i, length(newest + i)) for i in range(1, 6)]))
            handle.shard.commit()
            prioritize(handle.shard)

    changing = ChangingShard(shards[1], commit)
    reader = ReplayReader([LocalShard(shards[0]), changing], 16, seed=1, max_in_flight=2)
    for i in range(30):
        (batch,) = reader.batches(1, first=4 * i)
        ids, expected = batch.gather("ids")[:, 2], true_probabilities(shards, mode, 1000)
        np.testing.assert_allclose(batch.probability, expected[ids], rtol=1e-6)
    assert shards[1].report().evicted >= 20
    changing.before = lambda handle: None
    num = int(shards[1].store.table.rows["sequence"].max()) + 1
    check(list(reader.batches(400, first=1000)), true_probabilities(shards, mode, num))


@pytest.mark.parametrize("mode", MODES)
def test_while_a_shard_is_down_and_when_it_is_back(mode: str) -> None:
    shards = filled((8, 12, 10), mode)
    handles = [ChangingShard(shard) for shard in shards]
    reader = ReplayReader(handles, 16, seed=1)
    handles[1].down = True
    check(list(reader.batches(300, first=0)), true_probabilities([shards[0], shards[2]], mode, 30))
    batches = reader.batches(300, first=300)
    next(batches)
    handles[1].down = False
    later = list(batches)[20:]  # past what was on its way
    check(later, true_probabilities(shards, mode, 30))


@pytest.mark.parametrize("mode", MODES)
def test_after_damage(mode: str, tmp_path: Any) -> None:
    for shard in filled((12, 18), mode, folder=tmp_path):
        shard.close()
    segment = tmp_path / "shard_1" / "0000000000.segment"
    data = bytearray(segment.read_bytes())
    data[-60 - len(data) // 6] ^= 1  # in the columns of the last message
    segment.write_bytes(data)
    shards = make_shards(2, folder=tmp_path, mode=mode, half_life=HALF_LIFE)
    reader = ReplayReader([LocalShard(shard) for shard in shards], 16, seed=1)
    list(reader.batches(20, first=0))
    (damage,) = shards[1].report().damage
    assert str(segment) in damage and "left out of sampling" in damage
    expected = true_probabilities(shards, mode, 30)
    expected[24:] = 0
    check(list(reader.batches(400, first=20)), expected / expected.sum())
    for shard in shards:
        shard.close()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights(beta: float) -> None:
    shards = filled((4, 26), "prioritized")
    expected = true_probabilities(shards, "prioritized", 30)
    reader = ReplayReader([LocalShard(shard) for shard in shards], 16, seed=1, importance_exponent=beta)
    for batch in reader.batches(20, first=0):
        weight = (30 * expected[batch.gather("ids")[:, 2]]) ** -beta
        assert batch.weight is not None and batch.weight.dtype == np.float32
        np.testing.assert_allclose(batch.weight, weight / weight.max(), rtol=1e-5)


def test_the_learners_priorities_reach_the_trajectories_that_they_are_of() -> None:
    shards = filled((4, 26), "prioritized")
    reader = ReplayReader([LocalShard(shard) for shard in shards], 16, seed=1)
    batches = list(reader.batches(40, first=0))
    ids = np.stack([batch.gather("ids")[:, 2] for batch in batches])
    reader.update_priorities(batches, (1.0 + ids).astype(np.float32))
    for shard in shards:
        table = shard.store.table
        rows = table.rows["sequence"]
        learned = np.isin(rows, ids)
        found = shard.selection.priorities(np.arange(table.first, table.end))
        np.testing.assert_allclose(found, np.where(learned, 1.0 + rows, 0.2 + rows % 5), rtol=1e-6)
    shards[0].push(pack([trajectory(100)]))
    shards[0].commit()
    assert shards[0].selection.priorities(np.array([4])) == 1.0 + ids.max()  # new ones begin with the largest of all


def test_very_old_commits_have_finite_weights() -> None:
    (shard,) = make_shards(1, mode="recent", half_life=1.0)
    for number in (1, 5000):
        shard.push(pack([trajectory(number % 7)]))
        shard.commit(number)
    assert Ready(shard.available()).result()[0].total == 1.0
    shard.commit(20_000)
    assert Ready(shard.available()).result()[0].total > 0, "what is old is drawn where there is nothing newer"
    drawn = shard.sample(2000, Ready(shard.available()).result()[0].version, (0,)).number
    assert_drawn_as(np.bincount(drawn), [0.5, 0.5])


@pytest.mark.parametrize("num_shards", [1, 2])
def test_priorities_decide_between_shards_while_batches_are_drawn(num_shards: int) -> None:
    """Ten trajectories of priority 1 on one shard, and ten of 0.01 on the other."""
    shards = make_shards(num_shards, mode="prioritized", priority_exponent=1.0)
    for i in range(20):
        shards[i >= 10 if num_shards == 2 else 0].push(pack([trajectory(i)]))
    for shard in shards:
        shard.commit()
    reader = ReplayReader([LocalShard(s) for s in shards], 32, 0, batches_per_request=1, importance_exponent=0.0)
    low, expected = [], 10 * 0.01 / (10 * 0.01 + 10)
    for number, batch in enumerate(reader.batches(300, 0)):
        ids = batch.gather("ids")[:, 2]
        if number >= 100:
            low.append(ids < 10)
            np.testing.assert_allclose(batch.probability[ids >= 10], 1 / 10.1, rtol=1e-3)
        reader.update_priorities([batch], np.where(ids < 10, 0.01, 1.0)[None])
    drawn = np.concatenate(low)
    assert_drawn_as(np.bincount(drawn), [1 - expected, expected])


def test_how_often_timesteps_are_seen() -> None:
    """In "timesteps": as often in all trajectories that are long enough, T / max_seq_len as often in others."""
    (shard,) = make_shards(1, max_seq_len=20, mode="timesteps")
    lengths = np.array([5, 10, 20, 80])
    shard.push(pack([trajectory(i, int(n)) for i, n in enumerate(lengths)]))
    shard.commit()
    batches = list(ReplayReader([LocalShard(shard)], batch_size=500, seed=0).batches(80, 0))
    ids = np.concatenate([batch.gather("ids")[:, 2] for batch in batches])
    seen = np.bincount(ids, np.concatenate([batch.lengths for batch in batches])) / lengths
    np.testing.assert_allclose(seen / seen[3], [5 / 20, 10 / 20, 1.0, 1.0], rtol=0.05)
