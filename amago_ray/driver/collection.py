"""An epoch's timesteps, chunk by chunk, over the workers that are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from amago_ray.driver.liveness import Liveness
from amago_ray.driver.remote import RemoteCall
from amago_ray.driver.topology import Topology
from amago_ray.messages import EpisodeResult, RolloutReport, Weights
from amago_ray.pending import ProcessDied

CHUNK_S = 2.0  # how long one call of a worker should take


@dataclass
class CollectSummary:
    """One epoch's collection, summed over workers.

    Its rollouts are those that *ended* during the epoch. Environments whose rollouts are short finish more of them in
    that time, so where the length depends on the outcome, averages over them lean to the short ones; those of
    validation, which counts as many rollouts of every environment, do not.
    Which worker reports first does not matter: rollouts are kept by worker, and exploration is averaged over
    environments.
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
    idle_s: float = 0.0
    exploration_by_worker: dict[int, dict[str, float]] = field(default_factory=dict)
    envs_by_worker: dict[int, int] = field(default_factory=dict)

    @property
    def num_workers(self) -> int:
        """How many workers had a part in it."""
        return len(self.exploration_by_worker)

    @property
    def busy_cores(self) -> float:
        """Cores that its workers kept busy while it went on: fewer than workers where environments sleep."""
        return (self.busy_s - self.idle_s) / max(self.wall_s, 1e-9)

    @property
    def episodes(self) -> list[EpisodeResult]:
        """All finished rollouts, worker by worker: averages of floats depend on the order."""
        return [episode for _, episodes in sorted(self.episodes_by_worker.items()) for episode in episodes]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a training state."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> CollectSummary:
        """What `to_json` was made of."""
        episodes = {int(w): [EpisodeResult(**e) for e in found] for w, found in values["episodes_by_worker"].items()}
        exploration = {int(w): latest for w, latest in values["exploration_by_worker"].items()}
        envs = {int(w): num for w, num in values.get("envs_by_worker", {}).items()}
        by_worker = {"episodes_by_worker": episodes, "exploration_by_worker": exploration, "envs_by_worker": envs}
        return CollectSummary(**values | by_worker)

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
        self.idle_s += report.idle_s
        self.env_failures += report.env_failures
        self.exploration_by_worker[report.worker] = report.exploration
        self.envs_by_worker[report.worker] = report.num_envs

    def metrics(self) -> dict[str, float]:
        """Rates and shares of the workers' time, for the log."""
        busy = max(self.busy_s, 1e-9)
        explored = [(latest, self.envs_by_worker.get(w, 1)) for w, latest in sorted(self.exploration_by_worker.items())]
        return {
            "Frames per Second": self.timesteps / max(self.wall_s, 1e-9),
            "Trajectories": self.trajectories,
            "Time in Policy (fraction)": self.act_s / busy,
            "Time in Environments (fraction)": self.step_s / busy,
            "Time Waiting for Replay (fraction)": self.wait_s / busy,
            "Environment Failures": self.env_failures,
            "Worker Deaths": self.worker_deaths,
            **{
                f"Exploration {name}": sum(latest[name] * num for latest, num in explored)
                / sum(num for _, num in explored)
                for name in (explored[0][0] if explored else ())
            },
        }


class Collection:
    """An epoch's quota of timesteps. Every worker does its own share; that of one that is away, the others take over.

    timesteps_per_env: quota of each environment. exploration_steps: steps that each has behind it.
    timeout_s: a worker that needs longer for one chunk is killed and restarted. resets: how often all environments
    have been reset by now; a worker that has done fewer does so first. is_excused: whether somebody else, such as a
    silent shard, is why a worker does not answer. hear: told what workers have warned of.
    """

    def __init__(
        self,
        topology: Topology,
        liveness: Liveness,
        timesteps_per_env: int,
        weights: RemoteCall[Weights],
        exploration_steps: int,
        timeout_s: float,
        message: Callable[[str], None],
        hear: Callable[[Iterable[str]], None],
        is_excused: Callable[[], bool],
        resets: int = 0,
    ):
        self._topology, self._liveness, self._weights, self._resets = topology, liveness, weights, resets
        self._exploration_steps, self._timeout_s = exploration_steps, timeout_s
        self._message, self._hear, self._is_excused = message, hear, is_excused
        workers = range(topology.num_workers)
        self._share = [timesteps_per_env * topology.num_envs(w) for w in workers]
        self._left_over = 0
        self.total = sum(self._share)
        self._chunk = [max(topology.num_envs(w) * 32, 1) for w in workers]
        self._in_flight: dict[int, tuple[RemoteCall[RolloutReport], int, float]] = {}
        self._started = time.monotonic()
        self.summary = CollectSummary()
        self._chunk_limit: int | None = None
        self._told_of_failure = False
        self._kept_for: dict[int, str] = {}  # why a worker keeps what it finished

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

    def go_on_from(self, summary: CollectSummary) -> None:
        """Count what was collected before this was opened as a part of it."""
        self.summary = summary
        self._started -= summary.wall_s
        self.total += summary.timesteps

    def hand_over(self) -> CollectSummary:
        """What was collected since the last call of this method."""
        done, self.summary = self.summary, CollectSummary()
        self._started, self._told_of_failure = time.monotonic(), False
        return done

    def calls(self) -> list[RemoteCall]:
        now = time.monotonic()
        self._liveness.look()
        for worker in range(self._topology.num_workers):
            if not self._liveness.is_here(worker):
                self._left_over += self._share[worker]
                self._share[worker] = 0
            elif worker not in self._in_flight:
                self._start(worker, now)
        for worker, (call, _, started) in self._in_flight.items():
            if now - started > self._timeout_s and not call.done():
                if not self._is_excused() and self._liveness.hangs(worker):
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
            self.summary.worker_deaths += self._liveness.lost(worker, death)
            return
        self._liveness.worked(worker)
        self.summary.worker_deaths += self._liveness.has_died(worker, report.incarnation)
        if report.shard_away and report.shard_away not in self._kept_for.values():
            self._message(f"rollout worker {worker} keeps what it finished: {report.shard_away}")
        self._kept_for[worker] = report.shard_away
        self._hear(report.warned)
        if report.env_failed and not self._told_of_failure:  # one speaks for an epoch; how many there were is counted
            self._told_of_failure = True
            self._message(f"rollout worker {worker}: {report.env_failed}; it was built anew")
        self.summary.add(report)
        self.summary.wall_s = time.monotonic() - self._started
        num_envs = self._topology.num_envs(worker)
        speed = report.timesteps / max(report.total_s, 1e-3)
        self._chunk[worker] = max(num_envs, int(speed * CHUNK_S) // num_envs * num_envs)
