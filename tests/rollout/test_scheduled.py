"""The time that a thread has had something to run: sleep does not count, waiting for a core does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from amago_ray.rollout import scheduled


@pytest.mark.skipif(not scheduled.SCHEDSTAT.exists(), reason="only Linux tells")
def test_sleep_is_no_work_and_work_is_no_sleep() -> None:
    def runnable_part(seconds: float, sleeps: bool) -> float:
        started, before = time.perf_counter(), scheduled.runnable_s()
        if sleeps:
            time.sleep(seconds)
        while time.perf_counter() - started < seconds:
            pass
        after = scheduled.runnable_s()
        assert before is not None and after is not None
        return (after - before) / (time.perf_counter() - started)

    assert runnable_part(0.05, sleeps=False) > 0.8
    assert min(runnable_part(0.05, sleeps=True) for _ in range(5)) < 0.5  # of a busy machine too, sooner or later


def test_other_systems_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduled, "SCHEDSTAT", Path("nowhere/schedstat"))
    assert scheduled.runnable_s() is None
