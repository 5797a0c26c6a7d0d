"""Work in progress on the processes: a `Collection` of timesteps, a `Learning` of batches, an `Evaluation`.

`run_jobs` drives whatever jobs there are until they are done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from amago_ray.driver.liveness import Presence
from amago_ray.driver.remote import RemoteCall, wait_any
from amago_ray.driver.topology import LearnerDied, Topology
from amago_ray.messages import EpisodeResult, EvaluationReport, LearnReport, RolloutReport, Weights
from amago_ray.pending import ProcessDied
from amago_ray.replay.sampling.sources import ReplayEmpty
from amago_ray.rollout.assignment import in_order
from amago_ray.watch.metrics import summarize_episodes

CHUNK_S = 2.0  # how long one call of a worker should take
POLL_INTERVAL_S = 0.1


@dataclass
class CollectSummary:
    """One epoch's collection, summed over workers.

    Its rollouts are those that *ended* during the epoch. Environments whose rollouts are short finish more of them in
    that time, so where the length depends on the outcome, averages over them lean to the short ones; those of
    validation, which counts as many rollouts of every environment, do not.
    Which worker reports first does not matter: rollouts are kept by worker, and exploration is averaged over workers.
    """

    timesteps: int = 0
    frames_by_env: dict[str, int] = field(default_factory=dict)
    episodes_by_worker: dict[int, list[EpisodeResult]] = field(default_factory=dict)
    trajectories: int = 0
    act_s: float = 0.0
    step_s: float = 0.0
    wait_s: float = 0.0
    busy_s: float = 0.0
    wall_s: float = 0.0
    env_failures: int = 0
    worker_deaths: int = 0
    exploration_by_worker: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def episodes(self) -> list[EpisodeResult]:
        """All finished rollouts, worker by worker: averages of floats depend on the order."""
        return [episode for _, episodes in sorted(self.episodes_by_worker.items()) for episode in episodes]

    def add(self, report: RolloutReport) -> None:
        self.timesteps += report.timesteps
        for name, frames in report.frames_by_env.items():
            self.frames_by_env[name] = self.frames_by_env.get(name, 0) + frames
        self.episodes_by_worker.setdefault(report.worker, []).extend(report.episodes)
        self.trajectories += report.trajectories
        self.act_s += report.act_s
        self.step_s += report.step_s
        self.wait_s += report.wait_s
        self.busy_s += report.total_s
        self.env_failures += report.env_failures
        self.exploration_by_worker[report.worker] = report.exploration

    def metrics(self) -> dict[str, float]:
        """Rates and shares of the workers' time, for the log."""
        busy = max(self.busy_s, 1e-9)
        exploration = [latest for _, latest in sorted(self.exploration_by_worker.items())]
        return {
            "Frames per Second": self.timesteps / max(self.wall_s, 1e-9),
            "Trajectories": self.trajectories,
            "Time in Policy (fraction)": self.act_s / busy,
            "Time in Environments (fraction)": self.step_s / busy,
            "Time Waiting for Replay (fraction)": self.wait_s / busy,
            "Environment Failures": self.env_failures,
            "Worker Deaths": self.worker_deaths,
            **{
                f"Exploration {name}": sum(latest[name] for latest in exploration) / len(exploration)
                for name in (exploration[0] if exploration else ())
            },
        }


class Job(Protocol):
    """Work in progress on some processes."""

    @property
    def finished(self) -> bool: ...

    def calls(self) -> list[RemoteCall]:
        """The calls to wait on; starts new ones as needed."""
        ...

    def take(self, call: RemoteCall) -> None:
        """Handle one of `calls` that is done."""
        ...


class CollectJob(Job, Protocol):
    """A job whose progress is counted in timesteps."""

    @property
    def done(self) -> int: ...


class LearnJob(Job, Protocol):
    """A job whose progress is counted in batches."""

    @property
    def done(self) -> int: ...

    def poll_progress(self) -> None:
        """Refresh `done` without waiting. Raises LearnerDied when it has stood still for too long."""
        ...


def silent_worker(worker: int, timeout_s: float) -> str:
    """What is said when a worker hangs."""
    return f"rollout worker {worker} is silent for {timeout_s:g} s (call_timeout_s): restarting it"


class Collection:
    """An epoch's quota of timesteps. Every worker does its own share; that of one that is away, the others take over.

    timesteps_per_env: quota of each environment. exploration_steps: steps that each has behind it.
    timeout_s: a worker that needs longer for one chunk is killed and restarted. resets: how often all environments
    have been reset by now; a worker that has done fewer does so first.
    """

    def __init__(
        self,
        topology: Topology,
        presence: Presence,
        timesteps_per_env: int,
        weights: RemoteCall[Weights],
        exploration_steps: int,
        timeout_s: float,
        message: Callable[[str], None],
        resets: int = 0,
    ):
        self._topology, self._presence, self._weights, self._resets = topology, presence, weights, resets
        self._exploration_steps, self._timeout_s, self._message = exploration_steps, timeout_s, message
        workers = range(topology.num_workers)
        self._share = [timesteps_per_env * topology.num_envs(w) for w in workers]
        self._left_over = 0
        self.total = sum(self._share)
        self._chunk = [max(topology.num_envs(w) * 32, 1) for w in workers]
        self._in_flight: dict[int, tuple[RemoteCall[RolloutReport], int, float]] = {}
        self._started = time.monotonic()
        self.summary = CollectSummary()
        self._chunk_limit: int | None = None

    @property
    def finished(self) -> bool:
        return not self._in_flight and not any(self._share) and self._left_over <= 0

    @property
    def done(self) -> int:
        return self.summary.timesteps

    def limit_chunks(self, timesteps: int) -> None:
        """Keep chunks so small that every worker has two in `timesteps`."""
        self._chunk_limit = max(timesteps // (2 * self._topology.num_workers), 1)

    def grant(self, timesteps: int) -> None:
        """Add to the quota, for whichever workers are free."""
        self._left_over += timesteps
        self.total += timesteps

    @property
    def under_way(self) -> int:
        """Timesteps of the quota that are not made yet."""
        return sum(self._share) + self._left_over + sum(timesteps for _, timesteps, _ in self._in_flight.values())

    def act_by(self, weights: RemoteCall[Weights], exploration_steps: int, resets: int = 0) -> None:
        """What chunks that start from now on act by."""
        self._weights, self._exploration_steps, self._resets = weights, exploration_steps, resets

    def hand_over(self) -> CollectSummary:
        """What was collected since the last call of this method."""
        done, self.summary = self.summary, CollectSummary()
        self._started = time.monotonic()
        return done

    def calls(self) -> list[RemoteCall]:
        now = time.monotonic()
        self._presence.look()
        for worker in range(self._topology.num_workers):
            if not self._presence.is_here(worker):
                self._left_over += self._share[worker]
                self._share[worker] = 0
            elif worker not in self._in_flight:
                self._start(worker, now)
        for worker, (call, _, started) in self._in_flight.items():
            if now - started > self._timeout_s and not call.done():
                self._message(silent_worker(worker, self._timeout_s))
                self._topology.restart_worker(worker)
                self._in_flight[worker] = (*self._in_flight[worker][:2], now)
        return [call for call, _, _ in self._in_flight.values()]

    def _start(self, worker: int, now: float) -> None:
        own = self._share[worker] > 0
        wanted = self._share[worker] if own else self._left_over
        if wanted <= 0:
            return
        timesteps = min(wanted, self._chunk[worker], self._chunk_limit or wanted)
        if own:
            self._share[worker] -= timesteps
        else:
            self._left_over -= timesteps
        call = self._topology.collect(worker, timesteps, self._weights, self._exploration_steps, self._resets)
        self._in_flight[worker] = (call, timesteps, now)

    def take(self, call: RemoteCall) -> None:
        worker, timesteps = next((w, n) for w, (c, n, _) in self._in_flight.items() if c is call)
        del self._in_flight[worker]
        try:
            report: RolloutReport = call.result(self._timeout_s)
        except ProcessDied as death:
            self._left_over += timesteps
            self.summary.worker_deaths += self._presence.lost(worker, death)
            return
        self._presence.worked(worker)
        self.summary.add(report)
        self.summary.wall_s = time.monotonic() - self._started
        num_envs = self._topology.num_envs(worker)
        speed = report.timesteps / max(report.total_s, 1e-3)
        self._chunk[worker] = max(num_envs, int(speed * CHUNK_S) // num_envs * num_envs)


class Learning:
    """An epoch's batches on the learner group.

    timeout_s: a group that makes no progress for longer counts as dead. Learning ends early, without a report, when all
    that was stored went down with its shards. mixture: weight of each source of data; None for replay alone.
    """

    def __init__(
        self,
        topology: Topology,
        num_batches: int,
        timeout_s: float,
        message: Callable[[str], None],
        mixture: tuple[float, ...] | None = None,
    ):
        self._topology, self._timeout_s, self._message = topology, timeout_s, message
        self.total = num_batches
        self._in_flight = topology.train(num_batches, mixture)
        self._progress: RemoteCall[int] | None = None
        self._first: int | None = None
        self._heard = time.monotonic()
        self._done = 0
        self.report: LearnReport | None = None

    @property
    def finished(self) -> bool:
        return not self._in_flight

    @property
    def done(self) -> int:
        return self._done

    def calls(self) -> list[RemoteCall]:
        return list(self._in_flight)

    def poll_progress(self) -> None:
        """Refresh `done` without waiting. Raises LearnerDied when it has stood still for `timeout_s`."""
        if not self.finished and time.monotonic() - self._heard > self._timeout_s:
            raise LearnerDied(f"the learner made no progress for {self._timeout_s:g} s (call_timeout_s)")
        if self._progress is None:
            self._progress = self._topology.learn_progress()
        elif self._progress.done():
            try:
                batches = self._progress.result()
            except ProcessDied:
                return  # the call to `train` tells
            self._first = batches if self._first is None else self._first
            if batches - self._first > self._done:
                self._done, self._heard = batches - self._first, time.monotonic()
            self._progress = None

    def take(self, call: RemoteCall) -> None:
        try:
            report = call.result()
        except ProcessDied as death:
            raise LearnerDied(str(death)) from death
        except ReplayEmpty as empty:
            if len(self._in_flight) > 1:  # the others wait for this learner's gradients
                raise LearnerDied(f"a learner found nothing to learn from: {empty}") from empty
            self._message(f"learning ends early in this epoch: {empty}")
            self._in_flight.clear()
            return
        self._in_flight.remove(call)
        self.report = self.report or report
        if self.finished:
            self._done = self.total


class Evaluation:
    """Shares of an evaluation, each on a worker: share i on worker i, or on another where that one is away.

    A share is played in parts of a few seconds. What a worker had of one goes down with it, and the share begins anew,
    on whoever is there, with the same rollouts.
    start: starts a part of a share on a worker, given (worker, share, part). timeout_s: a worker that needs longer for
    one is restarted. Raises ValueError for a rollout that does not end.
    """

    def __init__(
        self,
        presence: Presence,
        num_shares: int,
        start: Callable[[int, int, int], RemoteCall[EvaluationReport]],
        restart: Callable[[int], None],
        timeout_s: float,
        message: Callable[[str], None],
    ):
        self._presence, self._start, self._restart = presence, start, restart
        self._timeout_s, self._message = timeout_s, message
        self._parts: list[list[EvaluationReport]] = [[] for _ in range(num_shares)]
        self._holder: dict[int, int] = {}  # share -> the worker that has begun it
        self._in_flight: dict[int, tuple[RemoteCall[EvaluationReport], int, float]] = {}  # share -> call, worker, start

    @property
    def finished(self) -> bool:
        return all(self._is_played(share) for share in range(len(self._parts)))

    @property
    def episodes(self) -> list[EpisodeResult]:
        """The rollouts that count, by environment and then in their order."""
        found: dict[tuple[int, int], EpisodeResult] = {}
        for part in (part for parts in self._parts for part in parts):
            found |= part.episodes
        return in_order(found)

    @property
    def unfinished(self) -> int:
        """How many rollouts were begun within a limit of timesteps and left out, because they did not end."""
        return sum(parts[-1].unfinished for parts in self._parts if parts)

    def summary(self) -> dict[str, float]:
        """Averages over the rollouts that count, and how many were left out."""
        return {**summarize_episodes(self.episodes), "Unfinished Rollouts": self.unfinished}

    def calls(self) -> list[RemoteCall]:
        now = time.monotonic()
        self._presence.look()
        here = self._presence.here
        for share in [share for share, worker in self._holder.items() if worker not in here]:
            if share not in self._in_flight:
                self._forget(share)
        # First those that are begun, then those whose own worker is there. A worker gets one share at a time: what
        # waits for another share does not hang.
        unplayed = [share for share in range(len(self._parts)) if not self._is_played(share)]
        for share in sorted(unplayed, key=lambda share: (share not in self._holder, share not in here)):
            busy = {worker for _, worker, _ in self._in_flight.values()}
            own = self._holder.get(share, share)
            free = [worker for worker in ((own,) if own in here else here) if worker not in busy]
            if free and share not in self._in_flight:
                self._holder[share] = free[0]
                self._in_flight[share] = (self._start(free[0], share, len(self._parts[share])), free[0], now)
        for share, (call, worker, started) in self._in_flight.items():
            if now - started > self._timeout_s and not call.done():
                self._message(silent_worker(worker, self._timeout_s))
                self._restart(worker)
                self._in_flight[share] = (call, worker, now)
        return [call for call, _, _ in self._in_flight.values()]

    def take(self, call: RemoteCall) -> None:
        share, worker = next((s, w) for s, (c, w, _) in self._in_flight.items() if c is call)
        del self._in_flight[share]
        try:
            report = call.result(self._timeout_s)
        except ProcessDied as death:
            self._presence.lost(worker, death)
            self._forget(share)
            return
        self._presence.worked(worker)
        self._parts[share] = [*self._parts[share][: report.part], report]

    def _is_played(self, share: int) -> bool:
        return bool(self._parts[share]) and self._parts[share][-1].finished

    def _forget(self, share: int) -> None:
        """Begin a share anew, unless all of it is there."""
        self._holder.pop(share, None)
        if not self._is_played(share):
            self._parts[share] = []


def run_jobs(jobs: Sequence[Job], tick: Callable[[], None]) -> None:
    """Drive jobs until all are finished, calling `tick` several times a second."""
    while not all(job.finished for job in jobs):
        for job in jobs:
            calls = job.calls()
            if not calls:
                time.sleep(POLL_INTERVAL_S / len(jobs))  # nobody can be asked just now
            for call in wait_any(calls, POLL_INTERVAL_S / len(jobs)):
                job.take(call)
        tick()
