"""Repeated pushes are recognised by a few numbers per life of a worker, in whatever order trajectories arrive."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from amago_ray.replay.storage import seen_ids as seen
from amago_ray.replay.storage.seen_ids import SeenIds


def ids_of(*sequences: int, worker: int = 0, incarnation: int = 0) -> np.ndarray:
    return np.array([(worker, incarnation, sequence) for sequence in sequences], dtype=np.int64).reshape(-1, 3)


def held(ids: SeenIds) -> int:
    """Numbers that it keeps."""
    return sum(len(x) for x in ids._early.values()) + sum(len(x) for x in ids._next.values())


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_it_does_what_a_set_does(stride: int) -> None:
    rng, ids, expected = random.Random(stride), SeenIds(stride), set()
    for step in range(2000):
        message = [(rng.randrange(2), rng.randrange(3), rng.randrange(1 + step // 10)) for _ in range(rng.randrange(5))]
        first = [id not in expected and id not in message[:i] for i, id in enumerate(message)]
        array = np.array(message, dtype=np.int64).reshape(-1, 3)
        assert ids.new(array).tolist() == first
        ids.add(array[first])
        expected |= set(message)
        if step % 100 == 0:
            ids = SeenIds.from_json(json.loads(json.dumps(ids.to_json())), stride)


@pytest.mark.parametrize(("stride", "shard"), [(1, 0), (3, 0), (3, 2)])
def test_it_stays_small_when_little_is_in_flight(stride: int, shard: int) -> None:
    ids, rng = SeenIds(stride), np.random.default_rng(0)
    for begin in range(0, 6000, 20):
        for sequence in begin + rng.permutation(20):  # they overtake one another
            ids.add(ids_of(shard + stride * int(sequence)))
    assert held(ids) == 1
    assert not ids.new(ids_of(*range(shard, 6000 * stride, stride))).any()
    assert ids.new(ids_of(shard + 6000 * stride)).all()
    assert ids.new(ids_of(shard, worker=1)).all() and ids.new(ids_of(shard, incarnation=1)).all()


def test_numbers_that_never_come_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "MAX_HOLES", 10)
    ids = SeenIds()
    ids.add(ids_of(0, 1, *range(3, 200)))
    assert held(ids) == 1
    assert not ids.new(ids_of(*range(3, 200))).any() and ids.new(ids_of(200)).all()
    ids.add(ids_of(*range(300, 400, 2)))
    assert held(ids) <= 11
    assert not ids.new(ids_of(*range(300, 400, 2))).any()


def test_another_number_of_shards_is_for_workers_to_come() -> None:
    ids = SeenIds(2)
    ids.add(ids_of(1, 3, 7))
    ids = SeenIds.from_json(json.loads(json.dumps(ids.to_json())), stride=3)
    assert ids.new(ids_of(1, 3, 5, 7, 9)).tolist() == [False, False, True, False, True]
    ids.add(ids_of(5))
    for sequence in range(0, 3000, 3):
        ids.add(ids_of(sequence, incarnation=1))
    assert held(ids) == 2
    assert not ids.new(ids_of(1, 3, 5, 7)).any()
