"""How collecting and learning share an epoch.

All schedules speak to the `Ring` of the same two jobs: a `Collection` (the epoch's quota of timesteps, chunk by chunk,
over the workers) and a `Learning` (the epoch's batches, on the learner group).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amago_ray.driver.bounds import Resource, bound_of, in_words, time_by_resource
from amago_ray.driver.collection import Collection, CollectSummary
from amago_ray.driver.learning import Learning
from amago_ray.driver.pacing import PacedCollection, PacedLearning
from amago_ray.driver.rate_limiter import RateLimiter, rate_limiter
from amago_ray.driver.ring import Ring
from amago_ray.messages import LearnReport, ReplayReport
from amago_ray.settings import ExperimentSettings
from amago_ray.watch.metrics import summarize_episodes

MEASURED_EPOCHS = 3  # after which "auto" chooses, by all but the first
LEAST_GAIN = 1.25  # of time in turn over time together: below, overlapping is not worth weights that are an epoch old
LEAST_EPOCH_S = 2.0  # epochs that are shorter spend their time on calls, of which this tells nothing


@dataclass
class EpochResult:
    """What one epoch did.

    collected, learned: None where it was not the time for it, or nothing was stored yet. replay: when the data of the
    epoch had come in, and with "continuous" at its end. rate: how the two kept pace, where they
    run freely. bound: fractions of the epoch's time by resource (see `bounds.time_by_resource`). drawn: sequences that
    were sampled after `replay`.
    """

    collected: CollectSummary | None
    learned: LearnReport | None
    replay: list[ReplayReport]
    rate: dict[str, float] = field(default_factory=dict)
    bound: dict[Resource, float] = field(default_factory=dict)
    drawn: int = 0

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
                "Sequences Sampled": sum(r.sampled for r in self.replay) + self.drawn,
            }
        if self.rate:
            sections["rate"] = self.rate
        if self.bound:
            sections["time"] = {f"{resource.capitalize()} (fraction)": x for resource, x in self.bound.items()}
        return sections


class Schedule(ABC):
    """Runs epochs: collect a quota, learn a number of batches, publish the weights."""

    together = True  # whether collecting and learning go on at the same time

    def __init__(self, ring: Ring):
        self._ring = ring
        self._bound: Resource | None = None  # that the user was told of
        self._stored: tuple[int, CollectSummary] | None = None  # what was collected of an epoch that is not finished

    def run_epoch(self, epoch: int, last: bool) -> EpochResult:
        """Run epoch number `epoch`; `last` says that no other follows. Raises LearnerDied.

        What bounds the run is said when it changes, from the second epoch on: the first one waits for what is cold.
        """
        started, together = time.monotonic(), self.together
        result = self._run(epoch, last)
        if result.collected is not None or result.learned is not None:
            result.bound = time_by_resource(result.collected, result.learned, time.monotonic() - started, together)
        if epoch > 0 and result.bound and bound_of(result.bound) != self._bound:
            self._bound = bound_of(result.bound)
            words = in_words(result.bound, self._ring.plan.learner.device)
            self._ring.mention(f"epoch {epoch + 1}: {words}")
        return result

    def _result(
        self, collected: CollectSummary | None, learning: Learning | None, replay: list[ReplayReport]
    ) -> EpochResult:
        """Of an epoch that learned after `replay` was reported: its shards have not counted those batches yet."""
        learned, plan = learning.report if learning is not None else None, self._ring.plan
        drawn = learned.batches * plan.batch_size * plan.num_learners if learned is not None else 0
        return EpochResult(collected, learned, replay, drawn=drawn)

    @abstractmethod
    def _run(self, epoch: int, last: bool) -> EpochResult:
        """The epoch itself."""

    def _in_turn(self, epoch: int) -> EpochResult:
        """An epoch that collects, then learns."""
        collected = self._collect(epoch)
        replay = self._ring.commit()
        learning = self._ring.start_learning(epoch)
        self._ring.drive(None, learning)
        self._ring.publish()
        self._stored = None
        return self._result(collected, learning, replay)

    def _collect(self, epoch: int) -> CollectSummary | None:
        """The epoch's collection, unless its data are stored already; None where it is not the time for one."""
        if self._stored_for(epoch) is None:
            collection = self._ring.start_collecting(epoch)
            self._ring.drive(collection, None)
            self._stored = (epoch, collection.summary) if collection else None
        return self._stored_for(epoch)

    def _stored_for(self, epoch: int) -> CollectSummary | None:
        return self._stored[1] if self._stored is not None and self._stored[0] == epoch else None

    def next_collected(self, epoch: int) -> int | None:
        """After `epoch`: the epoch whose collection starts next, or None while one goes on."""
        return epoch + (1 if self._stored_for(epoch + 1) is None else 2)

    @property
    def state(self) -> dict[str, Any]:
        """What a training state keeps of what was begun and belongs to a coming epoch; plain values."""
        if self._stored is None:
            return {}
        return {"ahead": {"epoch": self._stored[0], "collected": self._stored[1].to_json()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, before the first epoch. What was collected ahead belongs to it whatever the schedule."""
        ahead = state.get("ahead")
        self._stored = (ahead["epoch"], CollectSummary.from_json(ahead["collected"])) if ahead else None


class Alternate(Schedule):
    """Collect, then learn. Deterministic given the seed."""

    together = False

    def _run(self, epoch: int, last: bool) -> EpochResult:
        return self._in_turn(epoch)


class Overlap(Schedule):
    """Learn from the data of epochs 0..e while the data of epoch e + 1 are collected.

    Workers act by weights that are one epoch old, and batches of epoch e never contain data of epoch e + 1, so this is
    as deterministic as `Alternate` and keeps the ratio of updates to data exact.
    """

    def _run(self, epoch: int, last: bool) -> EpochResult:
        collected = self._collect(epoch)
        replay = self._ring.commit()
        learning = self._ring.start_learning(epoch)
        following = None if last else self._ring.start_collecting(epoch + 1)
        self._ring.drive(following, learning)
        self._ring.publish()
        if following is not None:
            self._ring.share_cores(following.summary.busy_cores)
        self._stored = (epoch + 1, following.summary) if following is not None else None
        return self._result(collected, learning, replay)


class Continuous(Schedule):
    """Collect and learn at the same time, each as fast as it can within a ratio that a `RateLimiter` holds.

    An epoch is `train_batches_per_epoch` batches; collecting goes on over its end. Weights are published every few
    seconds, and data become visible as they come in, so that runs do not repeat. Epochs that only collect or only learn
    are run as `Alternate` does.
    """

    def __init__(self, ring: Ring, limiter: RateLimiter):
        super().__init__(ring)
        self._limiter = limiter
        self._collection: Collection | None = None
        self._portion = 1

    def _run(self, epoch: int, last: bool) -> EpochResult:
        if not (self._ring.batches_wanted(epoch) and self._ring.frames_wanted(epoch)):
            return self._in_turn(epoch)
        if self._collection is None:
            self._collection = self._ring.open_collection()
            self._limiter.stored(sum(report.timesteps for report in self._ring.commit()))
            if (stored := self._stored_for(epoch)) is not None:
                self._collection.go_on_from(stored)
                self._limiter.collected(stored.timesteps)
            self._stored = None
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
        return EpochResult(self._collection.hand_over(), learning.report, self._ring.commit(), rate)

    def next_collected(self, epoch: int) -> int | None:
        return super().next_collected(epoch) if self._collection is None else None


class Auto(Schedule):
    """`Alternate`, until the first epochs have shown that `Overlap` would be faster: then that.

    Both need the cores of one machine, so most often there is nothing to win, and the run stays as deterministic as
    `Alternate`. There is where environments sleep, or wait for a simulator elsewhere, and leave cores to the learner.
    """

    together = False

    def __init__(self, ring: Ring):
        super().__init__(ring)
        self._chosen: Schedule = Alternate(ring)
        self._chose = False
        self._seen: list[tuple[CollectSummary, LearnReport]] = []

    def _run(self, epoch: int, last: bool) -> EpochResult:
        result = self._chosen._run(epoch, last)
        if not self._chose and result.collected is not None and result.learned is not None:
            self._seen.append((result.collected, result.learned))
            if len(self._seen) == MEASURED_EPOCHS:
                self._choose(epoch)
                self._chose = True
        return result

    def _choose(self, epoch: int) -> None:
        seen = self._seen[1:]  # the first one waits for what is cold
        collect_s = sum(collected.wall_s for collected, _ in seen) / len(seen)
        learn_s = sum(learned.total_s for _, learned in seen) / len(seen)
        busy_s = sum(collected.busy_s - collected.idle_s for collected, _ in seen) / len(seen)
        machine = self._ring.plan.cores.machine
        both_s = max(collect_s, learn_s + (busy_s / machine if machine is not None else 0.0))
        times = f"{collect_s:.1f} s of collecting, then {learn_s:.1f} s of learning; about {both_s:.1f} s together"
        if collect_s + learn_s < LEAST_GAIN * both_s:
            self._ring.mention(f"schedule: alternate, since little would be won by overlapping: {times}")
        elif collect_s + learn_s < LEAST_EPOCH_S:
            self._ring.mention(f"schedule: alternate, since epochs are short: {times}")
        else:
            self._ring.mention(f"schedule: overlap from epoch {epoch + 2} on, since cores are idle otherwise: {times}")
            self._overlap()

    def _overlap(self) -> None:
        self._chosen, self.together = Overlap(self._ring), True

    def next_collected(self, epoch: int) -> int | None:
        return self._chosen.next_collected(epoch)

    @property
    def state(self) -> dict[str, Any]:
        return {"auto": {"chose": self._chose, "overlap": self.together}} | self._chosen.state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """What was chosen stays chosen; where nothing was, the epochs to come are measured."""
        auto = state.get("auto", {})
        self._chose = auto.get("chose", False)
        if auto.get("overlap", False):
            self._overlap()
        self._chosen.load_state(state)


def make_schedule(settings: ExperimentSettings, ring: Ring) -> Schedule:
    """The schedule that the settings name; "auto" overlaps where the learner has a device of its own, and else where
    the first epochs show that it pays."""
    if settings.schedule == "continuous":
        return Continuous(ring, rate_limiter(settings))
    own_device = ring.plan.learner.device == "cuda"
    if settings.schedule == "auto" and not own_device:
        return Auto(ring)
    return Alternate(ring) if settings.schedule == "alternate" else Overlap(ring)
