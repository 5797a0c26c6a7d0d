"""An epoch's batches on the learner group, whatever happens to the group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from amago_ray.driver.remote import RemoteCall
from amago_ray.driver.topology import LearnerDied, Topology
from amago_ray.messages import LearnReport
from amago_ray.pending import CallTimeout, ProcessDied
from amago_ray.replay.sampling.sources import ReplayEmpty


class Learning:
    """An epoch's batches on the learner group.

    A group that dies, or makes no progress for `timeout_s`, is rebuilt, and what its successor lacks is learned again:
    when the job is finished, every batch of it and of all epochs before is in the weights. Only what was collected
    meanwhile makes it another run than one in which nobody died.

    rebuild: makes the new group; returns how many batches that were learned before this job it does not have. Raises
        when the failure policy says so.
    is_excused: whether somebody else, such as a silent shard, is why there was no progress.
    finished: told the number of batches and the report, when all is learned. hear: told what learners have warned of.
    report: of the group, once all of its learners have answered.
    mixture: weight of each source of data; None for replay alone.
    Learning ends early, without a report, when all that was stored went down with its shards.
    """

    def __init__(
        self,
        topology: Topology,
        num_batches: int,
        timeout_s: float,
        message: Callable[[str], None],
        rebuild: Callable[[LearnerDied], int],
        finished: Callable[[int, LearnReport], None],
        is_excused: Callable[[], bool],
        hear: Callable[[Iterable[str]], None],
        mixture: tuple[float, ...] | None = None,
    ):
        self._topology, self._timeout_s, self._message = topology, timeout_s, message
        self._rebuild, self._finished, self._is_excused, self._mixture = rebuild, finished, is_excused, mixture
        self._hear = hear
        self.total = num_batches
        self.report: LearnReport | None = None
        self._start(again=0)

    def _start(self, again: int) -> None:
        """Ask for all batches, after `again` others that were learned before this job and went down with a group."""
        self._again = again
        self._calls = self._topology.train(again + self.total, self._mixture)
        self._in_flight = list(self._calls)
        self._reports: dict[RemoteCall[LearnReport], LearnReport] = {}
        self._progress: RemoteCall[int] | None = None
        self._first: int | None = None
        self._heard = time.monotonic()
        self._batches = 0
        self.report = None

    @property
    def finished(self) -> bool:
        return not self._in_flight

    @property
    def done(self) -> int:
        return self.total if self.report is not None else max(self._batches - self._again, 0)

    def calls(self) -> list[RemoteCall]:
        return list(self._in_flight)

    def poll_progress(self) -> None:
        """Refresh `done` without waiting; a group that has stood still for `timeout_s` is rebuilt."""
        if self.finished:
            return
        if self._progress is None:
            self._progress = self._topology.learn_progress()
        elif self._progress.done():
            try:
                batches = self._progress.result()
            except ProcessDied:
                return  # the call to `train` tells
            self._first = batches if self._first is None else self._first
            if batches - self._first > self._batches:
                self._batches, self._heard = batches - self._first, time.monotonic()
            self._progress = None
        if time.monotonic() - self._heard > self._timeout_s:
            if self._is_excused():
                self._heard = time.monotonic()
            else:
                self._go_on(LearnerDied(f"the learner made no progress for {self._timeout_s:g} s (call_timeout_s)"))

    def take(self, call: RemoteCall) -> None:
        if call not in self._in_flight:
            return  # of a group that was rebuilt since
        try:
            report = call.result(self._timeout_s)
        except (ProcessDied, CallTimeout) as death:
            self._go_on(LearnerDied(str(death)))
            return
        except ReplayEmpty as empty:
            if len(self._in_flight) > 1:  # the others wait for this learner's gradients
                self._go_on(LearnerDied(f"a learner found nothing to learn from: {empty}"))
                return
            self._message(f"learning ends early in this epoch: {empty}")
            self._in_flight.clear()
            return
        self._in_flight.remove(call)
        self._hear(report.warned)
        self._reports[call] = report
        if self.finished:
            self.report = report_of_group([self._reports[of_learner] for of_learner in self._calls])
            self._finished(self.total, self.report)

    def _go_on(self, death: LearnerDied) -> None:
        self._start(again=self._rebuild(death))


def report_of_group(reports: Sequence[LearnReport]) -> LearnReport:
    """One report of the learners of a group, in the order of their ranks: whoever answers first does not matter.

    Updates and batches are each learner's, so those of one. Metrics are averaged over learners, extremes and seconds
    are the largest (or, for minima, the least) of any: the whole group waits for its slowest.
    """
    first = reports[0]
    names = dict.fromkeys(name for report in reports for name in report.metrics)
    values = {name: [report.metrics[name] for report in reports if name in report.metrics] for name in names}
    return replace(
        first,
        metrics={name: _mean_or_extreme(name, found, [1] * len(found)) for name, found in values.items()},
        wait_s=max(report.wait_s for report in reports),
        total_s=max(report.total_s for report in reports),
        warned=(),  # heard of each
    )


def _mean_or_extreme(name: str, values: Sequence[float], weights: Sequence[int]) -> float:
    if name.endswith(" Min"):
        return min(values)
    weighted = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return max(values) if name.endswith(" Max") else weighted / sum(weights)


def merge_reports(reports: list[LearnReport]) -> LearnReport | None:
    """One report of several calls: sums, extremes, and means over all of their logged batches."""
    if not reports:
        return None
    last = reports[-1]
    batches = sum(report.batches for report in reports)
    names = dict.fromkeys(name for report in reports for name in report.metrics)
    metrics = {
        name: _mean_or_extreme(name, [r.metrics[name] for r in found], [max(r.logged, 1) for r in found])
        for name in names
        if (found := [report for report in reports if name in report.metrics])
    }
    return LearnReport(
        updates=sum(report.updates for report in reports),
        total_updates=last.total_updates,
        batches=batches,
        weight_version=last.weight_version,
        metrics=metrics,
        wait_s=sum(report.wait_s for report in reports),
        total_s=sum(report.total_s for report in reports),
        logged=sum(report.logged for report in reports),
    )
