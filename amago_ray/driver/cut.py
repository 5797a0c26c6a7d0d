"""What shards and workers are at the end of an epoch, and taking them back there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from amago_ray.driver.liveness import Liveness
from amago_ray.driver.remote import RemoteCall
from amago_ray.driver.topology import Topology
from amago_ray.messages import ReplayReport
from amago_ray.pending import CallTimeout, ProcessDied

RETRY_INTERVAL_S = 0.2


class CutTaker:
    """Asks shards and workers for what they are, as plain values by number, and lets them go on from it."""

    def __init__(self, topology: Topology, liveness: Liveness, timeout_s: float, say: Callable[[str], None]):
        self._topology, self._liveness, self._timeout_s, self._say = topology, liveness, timeout_s, say
        self._held = False

    def take(self, resets: int | None) -> dict[str, Any]:
        """What all are now. A worker that does not answer is missing; what asks it for work finds out why.

        Shards that are away are waited for: there are marks of all of them, or, where one does not come back, none.
        resets: as in the workers' next calls of `collect`; None while they are at work, which then have no state.
        """
        workers: dict[str, Any] = {}
        if resets is not None:
            calls = {w: self._topology.pause(w, resets) for w in self._liveness.here}
            workers = self._answers(calls, time.monotonic() + self._timeout_s)
        marks = self._marks()  # of what a pause stored, too
        return {"workers": workers} | ({"marks": marks} if marks else {})

    def _marks(self) -> dict[str, dict[str, Any]]:
        deadline = time.monotonic() + self._timeout_s
        while True:
            calls = dict(enumerate(self._topology.mark_shards()))
            marks = self._answers(calls, deadline)
            if len(marks) == len(calls):
                return marks
            if time.monotonic() > deadline:
                return {}
            time.sleep(RETRY_INTERVAL_S)  # Ray restarts it

    def _answers(self, calls: dict[int, RemoteCall[dict[str, Any]]], deadline: float) -> dict[str, dict[str, Any]]:
        answers = {}
        for who, call in calls.items():
            with contextlib.suppress(ProcessDied, CallTimeout):
                answers[str(who)] = call.result(max(deadline - time.monotonic(), 0.0))
        return answers

    def hold(self, cut: Mapping[str, Any], unless_held: bool = False) -> None:
        """Let the shards keep what a cut needs to be gone back to. unless_held: if they keep none so far."""
        if unless_held and self._held:
            return
        self._held = True
        for shard, mark in cut.get("marks", {}).items():
            self._topology.hold_shard(int(shard), mark)

    def rewind(self, marks: Mapping[str, Any]) -> list[ReplayReport]:
        """Take every shard back to its mark, through restarts of its process. Raises ProcessDied, CallTimeout."""
        wanted = {int(shard): mark for shard, mark in marks.items()}
        reports: dict[int, ReplayReport] = {}
        started = time.monotonic()
        while missing := sorted(wanted.keys() - reports.keys()):
            for shard, call in [(shard, self._topology.rewind_shard(shard, wanted[shard])) for shard in missing]:
                try:
                    reports[shard] = call.result(self._timeout_s)
                except ProcessDied:
                    if time.monotonic() - started > self._timeout_s:
                        raise
                    time.sleep(RETRY_INTERVAL_S)  # Ray restarts it
        self._held = True
        return [report for _, report in sorted(reports.items())]

    def load_workers(self, states: Mapping[str, Any], epoch: int) -> None:
        """Let those workers that are up go on from what they were; others begin under a name of their own."""
        known = {worker: states[str(worker)] for worker in self._liveness.here if states.get(str(worker))}
        for worker, call in [(w, self._topology.load_worker(w, state, epoch)) for w, state in known.items()]:
            try:
                call.result(self._timeout_s)
            except (ProcessDied, CallTimeout, KeyError, ValueError) as error:
                self._say(f"rollout worker {worker} begins anew, and not from what it had ({error})")
