"""Workers that come, go and stay away, as the driver sees them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from amago_ray.driver import liveness
from amago_ray.driver.failures import RULES, FailurePolicy
from amago_ray.driver.liveness import Liveness
from amago_ray.driver.placement import WORKER
from amago_ray.pending import CallTimeout, ProcessDied


class Ping:
    """An answer that the test gives: True when the worker is up, a ProcessDied when it is not to be had."""

    def __init__(self) -> None:
        self.answer: bool | ProcessDied = False

    def done(self) -> bool:
        return self.answer is not False

    def result(self, timeout_s: float | None = None) -> Any:
        if isinstance(self.answer, ProcessDied):
            raise self.answer
        return self.answer


class Workers:
    def __init__(self, num: int, timeout_s: float = 60.0, start_timeout_s: float = 0.0):
        self.pings: dict[int, Ping] = {}
        self.said: list[str] = []
        self.liveness = Liveness(self.ping, num, FailurePolicy(), timeout_s, self.said.append, start_timeout_s)

    def ping(self, worker: int) -> Any:
        self.pings[worker] = Ping()
        return self.pings[worker]

    def come_up(self, *workers: int) -> None:
        for worker in workers:
            self.pings[worker].answer = True


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "RETRY_INTERVAL_S", 0.0)
    monkeypatch.setattr(liveness, "LAST_WORDS_S", 0.0)


def test_a_worker_that_dies_while_a_run_starts_is_asked_again() -> None:
    workers = Workers(1)
    first = workers.pings[0]
    first.answer = ProcessDied("rollout worker 0: out of memory")

    def ping(worker: int) -> Ping:
        answer = Ping()
        answer.answer = True
        return answer

    workers.liveness._ping = ping  # the next is answered
    workers.liveness.wait_for(certain={0}, likely={0}, timeout_s=5, grace_s=5)
    assert workers.liveness.here == [0]
    assert workers.said == [
        "rollout worker 0 died before it was ready; Ray restarts it (rollout worker 0: out of memory)"
    ]


def test_a_run_begins_with_those_that_have_room_and_the_others_join_later() -> None:
    workers = Workers(3)
    workers.come_up(0, 1)
    workers.liveness.wait_for(certain={0, 1}, likely={0, 1}, timeout_s=5, grace_s=5)
    assert workers.liveness.here == [0, 1]
    assert workers.said == [
        "1 of 3 rollout workers wait for a node and join when there is one; the others do their share meanwhile"
    ]
    workers.liveness.look()
    assert not workers.liveness.is_here(2)
    workers.come_up(2)
    workers.liveness.look()
    assert workers.liveness.here == [0, 1, 2]
    assert workers.said[1:] == ["rollout worker 2 has a node now and joins: 3 of 3 at work"]


def test_a_run_waits_for_those_that_are_just_starting() -> None:
    workers = Workers(2)
    workers.come_up(0)
    late = threading.Timer(0.2, workers.come_up, [1])
    late.start()
    workers.liveness.wait_for(certain={0, 1}, likely={0, 1}, timeout_s=30, grace_s=0)
    late.join()
    assert workers.liveness.here == [0, 1] and workers.said == []


def test_a_worker_that_starts_has_the_time_that_a_start_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, workers that were silent for a short `timeout_s` take longer than that to come back."""
    workers = Workers(1, timeout_s=15.0, start_timeout_s=300.0)
    workers.come_up(0)
    workers.liveness.look()
    workers.liveness.lost(0, ProcessDied("killed for its silence"))
    now = liveness.time.monotonic()
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now + 299)
    workers.liveness.look()
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now + 301)
    with pytest.raises(ProcessDied, match="no rollout worker has been up for 300 s"):
        workers.liveness.look()


def test_why_nobody_comes_up_is_told() -> None:
    workers = Workers(1)
    workers.pings[0].answer = ProcessDied("rollout worker 0: killed by signal 11")
    with pytest.raises(ProcessDied, match="came up within 0.1 s; the last to go was rollout worker 0: killed by sig"):
        workers.liveness.wait_for(certain={0}, likely={0}, timeout_s=0.1, grace_s=0)


def test_nobody_comes_up() -> None:
    with pytest.raises(ProcessDied, match="no rollout worker came up within 0.1 s"):
        Workers(2).liveness.wait_for(certain={0}, likely={0}, timeout_s=0.1, grace_s=0)


def test_a_worker_that_died_is_away_until_it_answers() -> None:
    workers = Workers(2)
    workers.come_up(0, 1)
    workers.liveness.look()
    workers.said.clear()
    assert workers.liveness.lost(1, ProcessDied("its node is gone"))
    assert not workers.liveness.lost(1, ProcessDied("the second of its calls")), "one death is told once"
    workers.liveness.look()  # asks again
    workers.pings[1].answer = ProcessDied("restarting")
    workers.liveness.look()
    workers.liveness.look()
    assert workers.liveness.here == [0]
    workers.come_up(1)
    workers.liveness.look()
    assert workers.liveness.here == [0, 1]
    assert workers.said == [
        "rollout worker 1 died; Ray restarts it, the others take over meanwhile (its node is gone)",
        "rollout worker 1 is back: 2 of 2 at work",
    ]


def test_a_worker_that_does_nothing_but_die_ends_the_run() -> None:
    workers = Workers(1)

    def die() -> None:
        workers.liveness.look()
        workers.come_up(0)
        workers.liveness.look()
        workers.liveness.lost(0, ProcessDied("again"))

    die()
    workers.liveness.worked(0)  # what it did since counts
    for _ in range(RULES[WORKER, ProcessDied].at_most or 0):
        die()
    with pytest.raises(ProcessDied, match="again"):
        die()


def test_without_anybody_the_run_ends_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(1, timeout_s=50.0)
    workers.come_up(0)
    workers.liveness.look()
    workers.liveness.lost(0, ProcessDied("cut off"))
    now = liveness.time.monotonic()
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now + 49)
    workers.liveness.look()
    monkeypatch.setattr(liveness.time, "monotonic", lambda: now + 51)
    with pytest.raises(ProcessDied, match="no rollout worker has been up for 50 s"):
        workers.liveness.look()


def test_a_worker_that_hangs_and_is_killed_for_it_has_failed_once() -> None:
    workers = Workers(1)
    for _ in range(RULES[WORKER, CallTimeout].at_most or 0):
        workers.liveness.look()
        workers.come_up(0)
        workers.liveness.look()
        assert workers.liveness.hangs(0)
        assert workers.liveness.lost(0, ProcessDied("killed"))
    with pytest.raises(CallTimeout, match="rollout worker 0 is silent for 60 s"):
        workers.liveness.hangs(0)
