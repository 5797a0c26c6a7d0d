"""Collecting and learning at the same time, each as far as the rate limiter lets it."""

from __future__ import annotations

import time

from amago_ray.driver.collection import CHUNK_S, Collection
from amago_ray.driver.learning import Learning, merge_reports
from amago_ray.driver.rate_limiter import RateLimiter
from amago_ray.driver.remote import RemoteCall
from amago_ray.driver.ring import Ring
from amago_ray.messages import LearnReport, ReplayReport

COMMIT_INTERVAL_S = 1.0  # between two looks of the learner at what came in


class Stopwatch:
    """Adds up the seconds in which something was so."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self._since: float | None = None

    def run(self, running: bool) -> None:
        """From now on it is, or is not, so."""
        now = time.monotonic()
        if self._since is not None:
            self.total_s += now - self._since
        self._since = now if running else None


class PacedCollection:
    """Collecting without end, as far as the rate limiter lets it; it makes room for others when `until` is finished.

    waited_s: seconds in which no worker had anything to do.
    """

    def __init__(self, ring: Ring, collection: Collection, limiter: RateLimiter, until: PacedLearning):
        self._ring, self._collection, self._limiter, self._until = ring, collection, limiter, until
        self._committed = time.monotonic()
        self.waiting = Stopwatch()
        self._replay: list[ReplayReport] = []  # of the newest commit

    @property
    def finished(self) -> bool:
        return self._until.finished

    @property
    def done(self) -> int:
        return self._collection.done

    def calls(self) -> list[RemoteCall]:
        if room := self._limiter.may_collect(self._collection.under_way):
            self._collection.grant(room)
        calls = self._collection.calls()
        self.waiting.run(not self._collection.under_way)
        return calls

    def take(self, call: RemoteCall) -> None:
        before = self._collection.done
        self._collection.take(call)
        self._limiter.collected(self._collection.done - before)
        if not self._replay or time.monotonic() - self._committed > COMMIT_INTERVAL_S or not self._limiter.may_learn():
            self._replay = self._ring.commit()
            self._committed = time.monotonic()
            full = any(report.evicted for report in self._replay)
            stored = sum(report.timesteps for report in self._replay)
            self._limiter.stored(max(stored, self._limiter.min_timesteps) if full else stored)


class PacedLearning:
    """An epoch's batches, in portions of a few seconds that the rate limiter lets through.

    After every portion the weights are published. waited_s: seconds in which the learners had nothing to do.
    """

    def __init__(self, ring: Ring, epoch: int, collection: Collection, limiter: RateLimiter, portion: int):
        self._ring, self._epoch, self._collection, self._limiter = ring, epoch, collection, limiter
        self._portion = portion
        self._now: Learning | None = None
        self._reports: list[LearnReport] = []
        self._finished_portions = 0
        self.total = ring.batches_wanted(epoch)
        self.waiting = Stopwatch()

    @property
    def finished(self) -> bool:
        return self._finished_portions >= self.total

    @property
    def done(self) -> int:
        return self._finished_portions + (self._now.done if self._now is not None else 0)

    @property
    def portion(self) -> int:
        """How many batches the next portion has, where the limiter lets it."""
        return self._portion

    @property
    def report(self) -> LearnReport | None:
        return merge_reports(self._reports)

    def poll_progress(self) -> None:
        if self._now is not None:
            self._now.poll_progress()

    def calls(self) -> list[RemoteCall]:
        wanted = min(self._portion, self.total - self._finished_portions)
        if self._now is None and wanted and (allowed := min(wanted, self._limiter.may_learn())):
            self._now = self._ring.learn_batches(allowed, self._epoch)
        self.waiting.run(self._now is None and not self.finished)
        return self._now.calls() if self._now is not None else []

    def take(self, call: RemoteCall) -> None:
        assert self._now is not None
        self._now.take(call)
        if not self._now.finished:
            return
        self._finished_portions += self._now.total
        self._limiter.learned(self._now.total)
        if self._now.report is not None:
            self._reports.append(self._now.report)
            speed = self._now.report.batches / max(self._now.report.total_s, 1e-3)
            self._portion = max(int(speed * CHUNK_S), 1)
        self._now = None
        self._ring.publish()
        self._ring.act_by_newest(self._collection)
