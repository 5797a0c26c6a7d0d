"""How collecting and learning share an epoch.

All schedules speak to the `Ring` of the same two jobs: a `Collection` (the epoch's quota of timesteps, chunk by chunk,
over the workers) and a `Learning` (the epoch's batches, on the learner group).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amago_ray.driver.collection import Collection, CollectSummary
from amago_ray.driver.pacing import PacedCollection, PacedLearning
from amago_ray.driver.rate_limiter import RateLimiter, rate_limiter
from amago_ray.driver.ring import Ring
from amago_ray.messages import LearnReport, ReplayReport
from amago_ray.settings import ExperimentSettings
from amago_ray.watch.metrics import summarize_episodes


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


class Schedule(ABC):
    """Runs epochs: collect a quota, learn a number of batches, publish the weights."""

    @abstractmethod
    def run_epoch(self, epoch: int, last: bool) -> EpochResult:
        """Run epoch number `epoch`; `last` says that no other follows. Raises LearnerDied."""

    @abstractmethod
    def next_collected(self, epoch: int) -> int | None:
        """After `epoch`: the epoch whose collection starts next, or None while one goes on."""

    @property
    def state(self) -> dict[str, Any]:
        """What a training state keeps of what was begun and belongs to a coming epoch; plain values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (optional hook)
        """Go on from `state`, before the first epoch."""


class Alternate(Schedule):
    """Collect, then learn. Deterministic given the seed."""

    def __init__(self, ring: Ring):
        self._ring = ring

    def run_epoch(self, epoch: int, last: bool) -> EpochResult:
        collection = self._ring.start_collecting(epoch)
        self._ring.drive(collection, None)
        replay = self._ring.commit()
        learning = self._ring.start_learning(epoch)
        self._ring.drive(None, learning)
        self._ring.publish()
        return EpochResult(collection.summary if collection else None, learning.report if learning else None, replay)

    def next_collected(self, epoch: int) -> int | None:
        return epoch + 1


class Overlap(Schedule):
    """Learn from the data of epochs 0..e while the data of epoch e + 1 are collected.

    Workers act by weights that are one epoch old, and batches of epoch e never contain data of epoch e + 1, so this is
    as deterministic as `Alternate` and keeps the ratio of updates to data exact.
    """

    def __init__(self, ring: Ring):
        self._ring = ring
        self._ahead: tuple[int, CollectSummary | None] | None = None

    def run_epoch(self, epoch: int, last: bool) -> EpochResult:
        if self._ahead is None or self._ahead[0] != epoch:
            collection = self._ring.start_collecting(epoch)
            self._ring.drive(collection, None)
            self._ahead = (epoch, collection.summary if collection else None)
        collected = self._ahead[1]
        replay = self._ring.commit()
        learning = self._ring.start_learning(epoch)
        following = None if last else self._ring.start_collecting(epoch + 1)
        self._ring.drive(following, learning)
        self._ring.publish()
        self._ahead = (epoch + 1, following.summary if following else None)
        return EpochResult(collected, learning.report if learning else None, replay)

    def next_collected(self, epoch: int) -> int | None:
        return epoch + 2

    @property
    def state(self) -> dict[str, Any]:
        if self._ahead is None or self._ahead[1] is None:
            return {}
        return {"ahead": {"epoch": self._ahead[0], "collected": self._ahead[1].to_json()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if ahead := state.get("ahead"):
            self._ahead = ahead["epoch"], CollectSummary.from_json(ahead["collected"])


class Continuous(Schedule):
    """Collect and learn at the same time, each as fast as it can within a ratio that a `RateLimiter` holds.

    An epoch is `train_batches_per_epoch` batches; collecting goes on over its end. Weights are published every few
    seconds, and data become visible as they come in, so that runs do not repeat. Epochs that only collect or only learn
    are run as `Alternate` does.
    """

    def __init__(self, ring: Ring, limiter: RateLimiter):
        self._ring, self._limiter = ring, limiter
        self._collection: Collection | None = None
        self._portion = 1

    def run_epoch(self, epoch: int, last: bool) -> EpochResult:
        if not (self._ring.batches_wanted(epoch) and self._ring.frames_wanted(epoch)):
            return Alternate(self._ring).run_epoch(epoch, last)
        if self._collection is None:
            self._collection = self._ring.open_collection()
            self._limiter.stored(sum(report.timesteps for report in self._ring.commit()))
        self._collection.limit_chunks(self._limiter.largest_collection)
        self._ring.act_by_newest(self._collection)
        learning = PacedLearning(self._ring, epoch, self._collection, self._limiter, self._portion)
        collection = PacedCollection(self._ring, self._collection, self._limiter, until=learning)
        self._ring.drive(collection, learning)
        self._portion = learning.portion
        rate = {
            "Time Collecting Waited (s)": collection.waiting.total_s,
            "Time Learning Waited (s)": learning.waiting.total_s,
            "Batches Ahead of Learning": self._limiter.balance,
        }
        return EpochResult(self._collection.hand_over(), learning.report, collection.replay, rate)

    def next_collected(self, epoch: int) -> int | None:
        return epoch + 1 if self._collection is None else None


def make_schedule(settings: ExperimentSettings, ring: Ring) -> Schedule:
    """The schedule that the settings name; "auto" overlaps where the learner has a device of its own."""
    if settings.schedule == "continuous":
        return Continuous(ring, rate_limiter(settings))
    own_device = ring.plan.learner.device == "cuda"
    overlap = settings.schedule == "overlap" or (settings.schedule == "auto" and own_device)
    return Overlap(ring) if overlap else Alternate(ring)
