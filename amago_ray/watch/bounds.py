"""What bounds a run: where its workers and its learners spend the time of an epoch, out of what is logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from amago_ray.watch.run_log import RunLog

PARTS = (
    "environments",
    "policy",
    "waiting for replay",
    "other work of workers",
    "learning",
    "waiting for batches",
)
WORKERS, LEARNERS = slice(0, 4), slice(4, 6)
RECENT_EPOCHS = 10  # that the verdict is about
IDLE = 0.5  # neither side is busy for this share of the time: both wait for something else
SEQUENTIAL = 1.05  # sum of both sides up to which they took turns


@dataclass(frozen=True)
class EpochTimes:
    """Where the time went, epoch by epoch, in seconds.

    epoch: (N,), from 1. took_s: (N,), wall time of each. part_s: (N, len(PARTS)); what is not in it was idle.
    """

    epoch: np.ndarray
    took_s: np.ndarray
    part_s: np.ndarray

    @staticmethod
    def of(log: RunLog) -> EpochTimes:
        """Of all epochs that took any time. An epoch in which a side did nothing has zeros for it."""
        rows = list(log.ends.values())
        ends = {name: np.array([0.0, *(log.axes[name][row] for row in rows)]) for name in log.axes}
        took, frames, updates = (np.diff(ends[name]) for name in ("wall_s", "total_frames", "gradient_steps"))
        collect_s = _seconds(frames, _by_epoch(log, "collect/Frames per Second"))
        learn_s = _seconds(updates, _by_epoch(log, "train/Updates per Second"))
        env, policy, replay = (
            np.nan_to_num(_by_epoch(log, f"collect/Time {what} (fraction)"))
            for what in ("in Environments", "in Policy", "Waiting for Replay")
        )
        other = np.clip(1.0 - env - policy - replay, 0.0, 1.0)
        batches = np.nan_to_num(_by_epoch(log, "train/Time Waiting for Batches (fraction)"))
        shares = (env, policy, replay, other)
        part_s = np.stack([*(collect_s * s for s in shares), learn_s * (1.0 - batches), learn_s * batches], axis=1)
        kept = took > 0
        return EpochTimes(np.array(list(log.ends))[kept] + 1, took[kept], part_s[kept])

    def shares(self, groups: int) -> tuple[np.ndarray, np.ndarray]:
        """The last epoch of each of at most `groups` spans, (M,), and each part's share of its time, (M, len(PARTS)).

        A side that collects ahead of its epoch can seem to be busy for more than all of the time: it counts as all.
        """
        spans = [span for span in np.array_split(np.arange(len(self.epoch)), groups) if len(span)]
        parts = np.array([self.part_s[span].sum(axis=0) / self.took_s[span].sum() for span in spans])
        parts = parts.reshape(len(spans), len(PARTS))
        for side in (WORKERS, LEARNERS):
            parts[:, side] /= np.maximum(parts[:, side].sum(axis=1, keepdims=True), 1.0)
        return np.array([self.epoch[span[-1]] for span in spans], dtype=np.int64), parts


@dataclass(frozen=True)
class Bound:
    """What to make faster first: "environments", "policy", "replay", "learner" or "waiting", and why, in words."""

    name: str
    why: str


def bound_of(log: RunLog) -> Bound | None:
    """The verdict over the newest epochs; None before the first."""
    times = EpochTimes.of(log)
    newest = EpochTimes(*(each[-RECENT_EPOCHS:] for each in (times.epoch, times.took_s, times.part_s)))
    _, shares = newest.shares(1)
    return verdict(shares[0].tolist()) if len(shares) else None


def verdict(shares: Sequence[float]) -> Bound:
    """shares: of each of PARTS in the time."""
    environments, policy, for_replay, other, learning, for_batches = shares
    workers, learner = environments + policy + other, learning
    why = f"workers are busy {workers:.0%} of the time, the learner {learner:.0%}"
    if max(workers + for_replay, learner + for_batches) < IDLE:
        return Bound("waiting", f"{why}: the rest is validation, checkpoints and starts")
    candidates = {"environments": environments, "policy": policy + other, "replay": for_replay, "learner": learning}
    if workers + for_replay + learner + for_batches > SEQUENTIAL:  # at the same time: the side that the other waits for
        if learner >= max(workers, for_replay, for_batches):
            return Bound("learner", why)
        candidates["learner"] = 0.0
        if workers < IDLE:
            candidates["replay"] += for_batches
    else:
        candidates["replay"] += for_batches
    name = max(candidates, key=lambda each: candidates[each])
    return Bound(name, f"{why}; {name} {candidates[name]:.0%}" if name != "learner" else why)


def _seconds(amount: np.ndarray, per_second: np.ndarray) -> np.ndarray:
    """How long each amount took; 0 where no rate is known."""
    return np.where(per_second > 0, amount / np.where(per_second > 0, per_second, 1.0), 0.0)


def _by_epoch(log: RunLog, name: str) -> np.ndarray:
    """A metric's last value of each epoch, (number of epochs,), NaN where there is none."""
    place = {epoch: i for i, epoch in enumerate(log.ends)}
    found = np.full(len(place), np.nan)
    for row, value in log.finite(name):
        found[place[int(log.axes["epoch"][row])]] = value
    return found
