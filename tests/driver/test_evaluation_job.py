"""Shares of an evaluation on the workers that are there."""

from __future__ import annotations

from typing import Any

from amago_ray.driver.jobs import Evaluation
from amago_ray.messages import RolloutReport


class Call:
    def __init__(self) -> None:
        self.report: Any = None

    def done(self) -> bool:
        return self.report is not None

    def result(self, timeout_s: float | None = None) -> Any:
        return self.report


class Here:
    """A liveness of some workers."""

    def __init__(self, *here: int):
        self.here = list(here)

    def look(self) -> None:
        pass

    def worked(self, worker: int) -> None:
        pass

    def hangs(self, worker: int) -> None:
        pass


class Rollouts:
    def __init__(self, liveness: Here, num_shares: int, timeout_s: float = 60.0):
        self.started: list[tuple[int, int]] = []
        self.restarted: list[int] = []
        any_liveness: Any = liveness
        self.job = Evaluation(any_liveness, num_shares, self.start, self.restarted.append, timeout_s)

    def start(self, worker: int, share: int) -> Any:
        self.started.append((worker, share))
        return Call()


def report() -> RolloutReport:
    return object.__new__(RolloutReport)


def test_a_worker_gets_one_share_at_a_time_and_its_own_first() -> None:
    rollouts = Rollouts(Here(1, 3), num_shares=4)
    calls = rollouts.job.calls()
    assert rollouts.started == [(1, 1), (3, 3)], "those of workers 0 and 2 wait until somebody is free"
    calls[0].report = report()
    rollouts.job.take(calls[0])
    rollouts.job.calls()
    assert rollouts.started[2:] == [(1, 0)]


def test_only_who_has_not_answered_is_restarted() -> None:
    rollouts = Rollouts(Here(0, 1), num_shares=2, timeout_s=0.0)
    calls = rollouts.job.calls()
    rollouts.restarted.clear()
    calls[0].report = report()  # there, but nobody has looked at it yet
    rollouts.job.calls()
    assert rollouts.restarted == [1]
