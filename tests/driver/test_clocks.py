"""Clocks that are set, forward and back, at any moment: no wait is longer or shorter for it, and nothing is lost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from driver.test_ring import DIED, HANGS, SCHEDULES, Run, assert_all_was_done, no_time_passes  # noqa: F401
from fake_topology import FakeTopology
from ring_cases import assert_same_trajectories, make_shards, stored_trajectories, trajectory

from amago_ray.replay.storage.trajectory_pack import pack

YEAR_S = 365 * 24 * 3600


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Each look at the clock finds it up to ten years from where it was; returns how often somebody looked."""
    rng, now, count = random.Random(0), time.time(), [0]

    def at() -> float:
        count[0] += 1
        return now + rng.uniform(-10 * YEAR_S, 10 * YEAR_S)

    monkeypatch.setattr(time, "time", at)
    monkeypatch.setattr(time, "time_ns", lambda: int(at() * 1e9))
    return lambda: count[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nobody_is_waited_for_longer_or_given_up_sooner(
    tmp_path: Path, schedule: str, looks: Callable[[], int]
) -> None:
    script = {("train", 1): DIED, ("collect", 1): DIED, ("commit", 1): HANGS, ("write_state", 0): DIED}
    run = Run(tmp_path, schedule, FakeTopology(script=script, collect=3, train=3)).start().learn()
    assert_all_was_done(run)
    assert not [line for line in run.said if "call_timeout_s" in line], "nobody was silent"
    assert looks()


def test_what_is_stored_is_there_in_its_order(tmp_path: Path, looks: Callable[[], int]) -> None:
    sent = [trajectory(sequence) for sequence in range(6)]
    for one in sent:
        (shard,) = make_shards(1, folder=tmp_path, mode="recent")
        shard.push(pack([one]))
        shard.commit()
        assert shard.push(pack([one])) == 0, "a repeat is known, whichever life of the shard is asked"
        shard.close()
    (shard,) = make_shards(1, folder=tmp_path, mode="recent")
    assert_same_trajectories(stored_trajectories(shard), sent)
    assert shard.selection.total > 0 and looks()
    shard.close()
