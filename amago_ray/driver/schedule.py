"""How collecting and learning share an epoch.

All schedules speak of the same two jobs: a `Collection` (the epoch's quota of timesteps, chunk by chunk, over the
workers) and a `Learning` (the epoch's batches, on the learner group).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

from amago_ray.driver.jobs import CHUNK_S, Collection, CollectJob, CollectSummary, Learning, LearnJob
from amago_ray.driver.rate_limiter import RateLimiter
from amago_ray.driver.remote import RemoteCall
from amago_ray.messages import LearnReport, ReplayReport
from amago_ray.settings import ScheduleName
from amago_ray.watch.metrics import summarize_episodes

COMMIT_INTERVAL_S = 1.0  # between two looks of the learner at what came in


@dataclass
class EpochResult:
    """What one epoch did.

    collected, learned: None where it was not the time for it, or nothing was stored yet. rate: how the two kept pace,
    where they run freely.
    """

    collected: CollectSummary | None
    learned: LearnReport | None
    replay: list[ReplayReport]
    rate: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, dict[str, float]]:
        """What is logged of it, by section, in the order in which it happened."""
        sections: dict[str, dict[str, float]] = {}
        if self.collected is not None:
            sections["collect"] = summarize_episodes(self.collected.episodes) | self.collected.metrics()
        if self.learned is not None:
            total_s = max(self.learned.total_s, 1e-9)
            sections["train"] = self.learned.metrics | {
                "Updates per Second": self.learned.updates / total_s,
                "Time Waiting for Batches (fraction)": self.learned.wait_s / total_s,
            }
        if self.replay:
            sections["replay"] = {
                "Trajectories": sum(r.trajectories for r in self.replay),
                "Timesteps": sum(r.timesteps for r in self.replay),
                "GB": sum(r.bytes for r in self.replay) / 1e9,
                "Trajectories Evicted": sum(r.evicted for r in self.replay),
                "Sequences Sampled": sum(r.sampled for r in self.replay),
            }
        if self.rate:
            sections["rate"] = self.rate
        return sections


class Epochs(Protocol):
    """What a schedule needs from the experiment."""

    def start_collecting(self, epoch: int) -> Collection | None: ...

    def start_learning(self, epoch: int) -> Learning | None: ...

    def open_collection(self) -> Collection: ...

    def learn_batches(self, num: int, epoch: int) -> Learning: ...

    def act_by_newest(self, collection: Collection) -> None: ...

    def batches_wanted(self, epoch: int) -> int: ...

    def frames_wanted(self, epoch: int) -> int: ...

    def commit(self) -> list[ReplayReport]: ...

    def publish(self) -> None: ...

    def run(self, collection: CollectJob | None, learning: LearnJob | None) -> None: ...


class Schedule(ABC):
    """Runs epochs: collect a quota, learn a number of batches, publish the weights."""

    @abstractmethod
    def run_epoch(self, epoch: int, last: bool) -> EpochResult:
        """Run epoch number `epoch`; `last` says that no other follows. Raises LearnerDied."""


class Alternate(Schedule):
    """Collect, then learn. Deterministic given the seed."""

    def __init__(self, epochs: Epochs):
        self._epochs = epochs

    def run_epoch(self, epoch: int, last: bool) -> EpochResult:
        collection = self._epochs.start_collecting(epoch)
        self._epochs.run(collection, None)
        replay = self._epochs.commit()
        learning = self._epochs.start_learning(epoch)
        self._epochs.run(None, learning)
        self._epochs.publish()
        return EpochResult(collection.summary if collection else None, learning.report if learning else None, replay)


class Overlap(Schedule):
    """Learn from the data of epochs 0..e while the data of epoch e + 1 are collected.

    Workers act by weights that are one epoch old, and batches of epoch e never contain data of epoch e + 1, so this is
    as deterministic as `Alternate` and keeps the ratio of updates to data exact.
    """

    def __init__(self, epochs: Epochs):
        self._epochs = epochs
        self._ahead: tuple[int, Collection | None] | None = None

    def run_epoch(self, epoch: int, last: bool) -> EpochResult:
        if self._ahead is None or self._ahead[0] != epoch:
            self._ahead = (epoch, self._epochs.start_collecting(epoch))
            self._epochs.run(self._ahead[1], None)
        collection = self._ahead[1]
        replay = self._epochs.commit()
        learning = self._epochs.start_learning(epoch)
        following = None if last else self._epochs.start_collecting(epoch + 1)
        self._epochs.run(following, learning)
        self._epochs.publish()
        self._ahead = (epoch + 1, following)
        return EpochResult(collection.summary if collection else None, learning.report if learning else None, replay)


class PacedCollection:
    """Collecting without end, as far as the rate limiter lets it; it makes room for others when `until` is finished.

    waited_s: seconds in which no worker had anything to do.
    """

    def __init__(self, epochs: Epochs, collection: Collection, limiter: RateLimiter, until: PacedLearning):
        self._epochs, self._collection, self._limiter, self._until = epochs, collection, limiter, until
        self._committed = time.monotonic()
        self.waiting = Stopwatch()
        self.replay: list[ReplayReport] = []

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
        if not self.replay or time.monotonic() - self._committed > COMMIT_INTERVAL_S or not self._limiter.may_learn():
            self.replay = self._epochs.commit()
            self._committed = time.monotonic()
            full = any(report.evicted for report in self.replay)
            stored = sum(report.timesteps for report in self.replay)
            self._limiter.stored(max(stored, self._limiter.min_timesteps) if full else stored)


class PacedLearning:
    """An epoch's batches, in portions of a few seconds that the rate limiter lets through.

    After every portion the weights are published. waited_s: seconds in which the learners had nothing to do.
    """

    def __init__(self, epochs: Epochs, epoch: int, collection: Collection, limiter: RateLimiter, portion: int):
        self._epochs, self._epoch, self._collection, self._limiter = epochs, epoch, collection, limiter
        self._portion = portion
        self._now: Learning | None = None
        self._reports: list[LearnReport] = []
        self._finished_portions = 0
        self.total = epochs.batches_wanted(epoch)
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
            self._now = self._epochs.learn_batches(allowed, self._epoch)
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
        self._epochs.publish()
        self._epochs.act_by_newest(self._collection)


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


class Continuous(Schedule):
    """Collect and learn at the same time, each as fast as it can within a ratio that a `RateLimiter` holds.

    An epoch is `train_batches_per_epoch` batches; collecting goes on over its end. Weights are published every few
    seconds, and data become visible as they come in, so that runs do not repeat. Epochs that only collect or only learn
    are run as `Alternate` does.
    """

    def __init__(self, epochs: Epochs, limiter: RateLimiter):
        self._epochs, self._limiter = epochs, limiter
        self._collection: Collection | None = None
        self._portion = 1

    def run_epoch(self, epoch: int, last: bool) -> EpochResult:
        if not (self._epochs.batches_wanted(epoch) and self._epochs.frames_wanted(epoch)):
            return Alternate(self._epochs).run_epoch(epoch, last)
        if self._collection is None:
            self._collection = self._epochs.open_collection()
            self._limiter.stored(sum(report.timesteps for report in self._epochs.commit()))
        self._collection.limit_chunks(self._limiter.largest_collection)
        self._epochs.act_by_newest(self._collection)
        learning = PacedLearning(self._epochs, epoch, self._collection, self._limiter, self._portion)
        collection = PacedCollection(self._epochs, self._collection, self._limiter, until=learning)
        self._epochs.run(collection, learning)
        self._portion = learning.portion
        rate = {
            "Time Collecting Waited (s)": collection.waiting.total_s,
            "Time Learning Waited (s)": learning.waiting.total_s,
            "Batches Ahead of Learning": self._limiter.balance,
        }
        return EpochResult(self._collection.hand_over(), learning.report, collection.replay, rate)


def merge_reports(reports: list[LearnReport]) -> LearnReport | None:
    """One report of several calls: sums, and means weighted by batches."""
    if not reports:
        return None
    last = reports[-1]
    batches = sum(report.batches for report in reports)
    means = {
        name: sum(r.metrics[name] * r.batches for r in found) / sum(r.batches for r in found)
        for name in last.metrics
        if (found := [report for report in reports if name in report.metrics])
    }
    return LearnReport(
        updates=sum(report.updates for report in reports),
        total_updates=last.total_updates,
        batches=batches,
        weight_version=last.weight_version,
        metrics=means,
        wait_s=sum(report.wait_s for report in reports),
        total_s=sum(report.total_s for report in reports),
    )


def make_schedule(name: ScheduleName, epochs: Epochs, learner_device: str, limiter: RateLimiter) -> Schedule:
    """The schedule called `name`; "auto" overlaps where the learner has a device of its own."""
    if name == "continuous":
        return Continuous(epochs, limiter)
    overlap = name == "overlap" or (name == "auto" and learner_device == "cuda")
    return Overlap(epochs) if overlap else Alternate(epochs)
