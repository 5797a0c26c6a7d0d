"""Which rollout workers can be given work now."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection

from amago_ray.driver.failures import Decision, FailurePolicy
from amago_ray.driver.placement import WORKER
from amago_ray.driver.remote import RemoteCall
from amago_ray.pending import CallTimeout, ProcessDied

RETRY_INTERVAL_S = 0.5
LAST_WORDS_S = 0.5  # that they may take to get into the file they are read from


class Liveness:
    """Keeps apart the workers that are up from those that are away: restarting, or waiting for a node.

    ping: asks a worker; answered when it is up. num_workers: in all, away until `wait_for` or `look` finds them up.
    failures: says how often one may die. timeout_s: after which a call counts as silent. start_timeout_s: that a
    process may take to start; with no worker up for longer than both, there is nobody left to do the work.

        liveness.look()                       # now and then: who has come up?
        if liveness.is_here(worker): ...      # then it may be called
        liveness.lost(worker, death)          # when a call raised ProcessDied
        liveness.worked(worker)               # when a call was answered
        liveness.has_died(worker, life)       # when a report says which life it is of
    """

    def __init__(
        self,
        ping: Callable[[int], RemoteCall],
        num_workers: int,
        failures: FailurePolicy,
        timeout_s: float,
        message: Callable[[str], None],
        start_timeout_s: float = 0.0,
    ):
        self._ping, self._failures, self._timeout_s, self._message = ping, failures, timeout_s, message
        self._absence_s = max(timeout_s, start_timeout_s)
        self._pings: dict[int, RemoteCall] = {worker: ping(worker) for worker in range(num_workers)}
        self._not_before: dict[int, float] = {}
        self._seen: set[int] = set()
        self._killed: set[int] = set()
        self._lives: dict[int, int] = {}  # as of the newest report; none of those whose death is known
        self._unready: dict[int, tuple[float, RemoteCall]] = {}  # died before it was up: when to tell
        self._last_words = ""  # why a worker was not up when it was asked last
        self._somebody_at = time.monotonic()
        self.num_workers = num_workers

    def is_here(self, worker: int) -> bool:
        return worker not in self._pings and worker not in self._not_before

    @property
    def here(self) -> list[int]:
        return [worker for worker in range(self.num_workers) if self.is_here(worker)]

    def wait_for(self, certain: Collection[int], likely: Collection[int], timeout_s: float, grace_s: float) -> None:
        """Wait at the start of a run until the workers that have room are up.

        certain: there is room for them now. likely: there will be when others make it; they get at least `grace_s`.
        Raises ProcessDied when not one is up after `timeout_s`.
        """
        started = time.monotonic()
        while True:
            self._ask_again()
            self._take_answers(quiet=True)
            waited = time.monotonic() - started
            wanted = {*certain, *(likely if waited < grace_s else ())}
            if wanted <= set(self.here) and self.here:
                break
            if waited > timeout_s:
                if not self.here:
                    raise ProcessDied(f"no rollout worker came up within {timeout_s:g} s{self._last_words}")
                break
            time.sleep(0.05)  # between two looks at who is up
        self.forgive()
        away = self.num_workers - len(self.here)
        if away:
            self._message(
                f"{away} of {self.num_workers} rollout workers wait for a node and join when there is one; "
                "the others do their share meanwhile"
            )

    def look(self) -> None:
        """Find out who came up since the last look. Raises ProcessDied when nobody has been up for too long."""
        now = time.monotonic()
        self._ask_again()
        self._take_answers(quiet=False)
        if self.here:
            self._somebody_at = now
        elif now - self._somebody_at > self._absence_s:
            raise ProcessDied(f"no rollout worker has been up for {self._absence_s:g} s{self._last_words}")

    def _ask_again(self) -> None:
        for worker, moment in list(self._not_before.items()):
            if time.monotonic() >= moment:
                del self._not_before[worker]
                self._pings[worker] = self._ping(worker)

    def _take_answers(self, quiet: bool) -> None:
        for worker, ping in list(self._pings.items()):
            if not ping.done():
                continue
            del self._pings[worker]
            try:
                ping.result()
            except ProcessDied as death:
                self._last_words = f"; the last to go was {death}"
                if worker not in self._seen:
                    self._unready.setdefault(worker, (time.monotonic() + LAST_WORDS_S, ping))
                self._not_before[worker] = time.monotonic() + RETRY_INTERVAL_S
                continue
            if not quiet:
                news = "is back" if worker in self._seen else "has a node now and joins"
                self._message(f"rollout worker {worker} {news}: {len(self.here)} of {self.num_workers} at work")
            self._seen.add(worker)
        self._tell_of_the_unready()

    def _tell_of_the_unready(self) -> None:
        for worker, (moment, ping) in self._unready.items():
            if time.monotonic() < moment:
                continue
            try:
                ping.result()
            except ProcessDied as death:
                self._message(f"rollout worker {worker} died before it was ready; Ray restarts it ({death})")
            self._unready[worker] = math.inf, ping

    def lost(self, worker: int, death: ProcessDied) -> bool:
        """A call to this worker ended with `death`. Returns whether that is news.

        Raises `death` when the worker has died time and again, without finishing anything in between.
        """
        if not self.is_here(worker):
            return False
        self._not_before[worker] = time.monotonic() + RETRY_INTERVAL_S
        self._lives.pop(worker, None)
        if worker in self._killed:  # for its silence, which was decided on
            self._killed.remove(worker)
            return True
        if self._failures.decide(WORKER, worker, death) is Decision.RAISE:
            raise death
        if self._failures.is_first(WORKER, worker):
            self._message(f"rollout worker {worker} died; Ray restarts it, the others take over meanwhile ({death})")
        return True

    def hangs(self, worker: int) -> bool:
        """A call to this worker is not answered in time. Returns whether the caller is to kill it.

        Raises CallTimeout when it has hung time and again, without finishing anything in between.
        """
        silent = CallTimeout(f"rollout worker {worker} is silent for {self._timeout_s:g} s (call_timeout_s)")
        decision = self._failures.decide(WORKER, worker, silent)
        if decision is Decision.RAISE:
            raise silent
        if decision is Decision.RETRY:
            return False
        self._message(f"{silent}: restarting it")
        self._killed.add(worker)
        return True

    def moves(self, worker: int) -> None:
        """The caller kills this worker, for no fault of its own."""
        self._killed.add(worker)
        self._lives.pop(worker, None)

    def forgive(self) -> None:
        """The driver itself was busy for a while: nobody was away for that."""
        self._somebody_at = time.monotonic()

    def worked(self, worker: int) -> None:
        """A call to this worker was answered."""
        self._failures.recovered(WORKER, worker)

    def has_died(self, worker: int, life: int) -> bool:
        """A report is of this life of the worker: another number than before. Returns whether its death is news.

        So it is when it died while nothing was asked of it.
        """
        before, self._lives[worker] = self._lives.get(worker), life
        if before in (None, life):
            return False
        self._message(f"rollout worker {worker} died while it had nothing to do; Ray has restarted it")
        return True
