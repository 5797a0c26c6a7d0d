"""A run whose processes are killed and frozen, and whose disk is full for a while: a short form of `make chaos`."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from system.monkey import WANTED, WRITERS, Prey, end_and_check, one_by_one

LEARNERS = r"learner \d: .*; going on from"


@pytest.mark.timeout(3600)
def test_a_run_gets_over_everything_once(tmp_path: Path) -> None:
    prey = Prey(tmp_path, epochs=100_000, more=["Experiment.compile_acting = 'never'"])
    try:
        deeds = one_by_one(prey, seed=2)
        report = end_and_check(prey, deeds, by=signal.SIGKILL)
    finally:
        if prey.process.poll() is None:
            prey.kill_driver()
    kinds = {*WANTED, "driver"}
    for told in (r"rollout worker \d died; Ray restarts it", r"replay shard \d died and Ray restarted it", LEARNERS):
        assert re.search(told, prey.words_ever), told
    assert sum(row["collect/Worker Deaths"] for row in prey.rows("collect")) >= 2, "one was killed and one frozen"
    assert {deed.split()[0] for deed in report["deeds"]} == kinds and sum(report["deeds"].values()) >= 8
    assert report["a full disk was told"] >= len(WRITERS) and report["trajectories"] > 0
