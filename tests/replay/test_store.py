"""The store forgets its oldest trajectories, and only those, when it is full."""

from __future__ import annotations

import numpy as np
import pytest
from ring_cases import trajectory

from amago_ray.data import TrajectoryId
from amago_ray.replay.store import SeenIds, TrajectoryStore


def sequences(store: TrajectoryStore) -> list[int]:
    return [store[i].id.sequence for i in range(len(store))]


def test_the_oldest_goes_first_beyond_a_number() -> None:
    store = TrajectoryStore(capacity_bytes=1 << 30, capacity_trajectories=3)
    for sequence in range(5):
        store.append(trajectory(sequence, length=1 + sequence))
        assert len(store) == min(sequence + 1, 3)
    assert sequences(store) == [2, 3, 4]
    assert store.evicted == 2 and store.num_transitions == 3 + 4 + 5
    assert store.lengths(np.array([2, 0, 0])).tolist() == [5, 3, 3]


def test_the_oldest_go_first_beyond_a_size() -> None:
    small, large = trajectory(0, length=4), trajectory(0, length=29)
    store = TrajectoryStore(capacity_bytes=large.num_bytes + small.num_bytes, capacity_trajectories=1 << 40)
    for sequence in range(7):
        store.append(trajectory(sequence, length=4))
    assert store.num_bytes == 7 * small.num_bytes <= store.capacity_bytes and store.evicted == 0
    store.append(trajectory(7, length=29))
    assert sequences(store) == [6, 7] and store.evicted == 6
    assert store.num_bytes == store.capacity_bytes and store.num_transitions == 4 + 29
    store.append(trajectory(8, length=4))
    assert sequences(store) == [7, 8]


def test_bytes_are_those_of_the_columns() -> None:
    t = trajectory(0, length=9)
    assert t.num_bytes == 10 * (4 * 2 + 4 + 8 + 4 + 1)


def test_one_that_fits_exactly_is_kept_and_a_larger_one_is_refused() -> None:
    t = trajectory(0, length=9)
    store = TrajectoryStore(t.num_bytes, 10)
    store.append(t)
    with pytest.raises(ValueError, match=r"of 275 bytes \(10 timesteps of 'made up'\).*250 bytes.*replay_capacity_gb"):
        store.append(trajectory(1, length=10))
    assert sequences(store) == [0] and store.num_bytes == t.num_bytes


def test_indices_stay_right_while_the_gap_of_evicted_entries_is_compacted() -> None:
    store = TrajectoryStore(1 << 30, capacity_trajectories=100)
    one = trajectory(0, length=1).num_bytes
    for sequence in range(4000):
        store.append(trajectory(sequence, length=1))
        assert store[0].id.sequence == max(0, sequence - 99) and store[len(store) - 1].id.sequence == sequence
        assert len(store._entries) < 1300
    assert sequences(store) == list(range(3900, 4000))
    assert store.evicted == 3900 and store.num_bytes == 100 * one


def test_repeats_are_recognised_within_the_window_of_one_life() -> None:
    seen = SeenIds(window=3)
    assert all(seen.add(TrajectoryId(0, 0, sequence)) for sequence in range(3))
    assert not any(seen.add(TrajectoryId(0, 0, sequence)) for sequence in range(3))
    assert seen.add(TrajectoryId(1, 0, 0)) and seen.add(TrajectoryId(0, 1, 0))  # another worker, another life
    assert not seen.add(TrajectoryId(1, 0, 0))
    assert seen.add(TrajectoryId(0, 0, 3))
    assert not seen.add(TrajectoryId(0, 0, 1)) and not seen.add(TrajectoryId(0, 0, 3))
    assert len(seen._newest[0, 0][0]) == len(seen._newest[0, 0][1]) == 3  # it does not grow
