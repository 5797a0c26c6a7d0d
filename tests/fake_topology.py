"""Processes that do what a test tells them: everything of the driver but Ray, without a process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from amago_ray.driver.cores import Cores
from amago_ray.driver.placement import LEARNER, SHARD, WORKER, Resources, Role
from amago_ray.driver.topology import LearnerDied
from amago_ray.messages import EvaluationReport, LearnReport, ReplayReport, RolloutReport
from amago_ray.pending import CallTimeout, ProcessDied

Script = dict[tuple[str, int], Exception]  # (kind of call, how many of that kind came before) -> how it ends


class FakeCall:
    """A call whose answer is there once the test, or `delay` looks at it, have passed."""

    def __init__(self, answer: Any, delay: int = 0):
        self._answer, self._delay = answer, delay
        self.ref: Any = None
        self.forgotten = False

    def done(self) -> bool:
        self._delay -= 1
        return self._delay < 0

    def result(self, timeout_s: float | None = None) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer() if callable(self._answer) else self._answer

    def forget(self) -> None:
        self.forgotten = True


def wait_any(calls: list[Any], timeout_s: float) -> list[Any]:
    """In place of the driver's: no time passes."""
    return [call for call in calls if call.done()]


class FakeTopology:
    """Workers that make exactly the timesteps they are asked for, shards that count them, learners that count batches.

    script: which calls fail, and how. slow: looks at a call of that kind until it is answered.
    log: every call in order.
    """

    def __init__(self, num_workers: int = 2, envs_per_worker: int = 2, script: Script | None = None, **slow: int):
        self.num_workers, self._envs, self._slow = num_workers, envs_per_worker, slow
        self.script = script or {}
        self.log: list[tuple[str, Any]] = []
        self._came: dict[str, int] = {}
        self.learner_threads: int | None = None
        self.stored = self.collected = self.sampled = 0
        self.batches = 0  # in the weights of the group as it is
        self.saved_policies: list[int] = []
        self.plan: Any = SimpleNamespace(
            learner=SimpleNamespace(device="cpu", compile=False, last_update=0),
            num_learners=1,
            batch_size=4,
            cores=Cores(num_workers, 4, machine=4),
            roles=(Role(WORKER, num_workers, Resources(1.0), {}),),
        )
        self.published: list[int] = []
        self.exploration_steps: list[int] = []  # of each environment, as chunks that were started were told
        self.lives: dict[int, int] = {}  # of workers, where that is not 0
        self.leaving: dict[str, float | None] = {}

    def _call(self, kind: str, detail: Any, answer: Callable[[], Any]) -> FakeCall:
        number = self._came.get(kind, 0)
        self._came[kind] = number + 1
        self.log.append((kind, detail))
        failure = self.script.get((kind, number))
        return FakeCall(failure if failure is not None else answer, self._slow.get(kind, 0))

    def count(self, kind: str) -> int:
        return self._came.get(kind, 0)

    # nodes: one for each process, named as it is

    def leaving_nodes(self) -> dict[str, float | None]:
        return self.leaving

    def nodes_of_processes(self) -> dict[tuple[str, int], str]:
        processes = [*((WORKER, i) for i in range(self.num_workers)), (SHARD, 0), (LEARNER, 0)]
        return {(role, i): f"{role} {i}" for role, i in processes}

    # workers

    def num_envs(self, worker: int) -> int:
        return self._envs

    def ping(self, worker: int) -> Any:
        return self._call("ping", worker, lambda: True)

    def collect(self, worker: int, timesteps: int, weights: Any, exploration_steps: int, resets: int = 0) -> Any:
        self.exploration_steps.append(exploration_steps)

        def answer() -> RolloutReport:
            self.collected += timesteps
            return RolloutReport(
                worker, self.lives.get(worker, 0), timesteps, {"fake": timesteps}, [], 0, 1, 0.0, 0.0, 0.0, 1.0
            )

        return self._call("collect", (worker, timesteps), answer)

    def pause(self, worker: int, resets: int) -> Any:
        return self._call("pause", (worker, resets), lambda: {"worker": worker})

    def load_worker(self, worker: int, state: Any, epoch: int) -> Any:
        return self._call("load_worker", (worker, state, epoch), lambda: None)

    def validate(self, worker: int, share: int, weights: Any, assignment: Any, part: int) -> Any:
        return self._call("validate", (worker, share), lambda: EvaluationReport(part, {}, 0, True, 0))

    def restart_worker(self, worker: int) -> None:
        self.log.append(("restart worker", worker))

    # shards

    def commit(self, number: int) -> list[Any]:
        def answer() -> ReplayReport:
            self.stored = self.collected
            return ReplayReport(0, 0, self.stored, self.stored, 0, 0, 0, 0, self.sampled)

        return [self._call("commit", number, answer)]

    def mark_shards(self) -> list[Any]:
        return [self._call("mark", None, lambda: {"stored": self.stored, "staged": self.collected})]

    def hold_shard(self, shard: int, mark: Any) -> Any:
        return self._call("hold", mark["stored"], lambda: None)

    def rewind_shard(self, shard: int, mark: Any) -> Any:
        def answer() -> ReplayReport:
            self.stored, self.collected = mark["stored"], mark["staged"]
            return ReplayReport(0, 1, self.stored, self.stored, 0, 0, 0, 0, 0)

        return self._call("rewind", mark["stored"], answer)

    def ping_shards(self) -> list[Any]:
        return [self._call("ping_shards", None, lambda: True)]

    def restart_shard(self, shard: int) -> None:
        self.log.append(("restart shard", shard))

    # learners

    def start_learners(self) -> None:
        self._now("start_learners", None)
        self.batches = 0

    def train(self, num_batches: int, mixture: Any) -> list[Any]:
        before = self.batches
        # Those of a group that dies are in its weights, and go down with them.
        self.batches = before + num_batches

        def answer() -> LearnReport:
            self.sampled += num_batches * self.plan.batch_size * self.plan.num_learners
            return LearnReport(num_batches, before + num_batches, num_batches, 0, {"Total Loss": 0.0}, 0.0, 1.0)

        return [self._call("train", num_batches, answer)]

    def learn_progress(self) -> Any:
        return FakeCall(self.batches)

    def publish(self, version: int, timeout_s: float) -> Any:
        self._now("publish", version)
        self.published.append(self.batches)
        return FakeCall(None)

    def snapshot(self, number: int) -> None:
        self._now("snapshot", None)
        self._snapshot = self.batches

    def write_state(self, folder: Path, policy: Path, number: int) -> list[Any]:
        batches = self._snapshot

        def write() -> None:
            (folder / "batches").write_text(json.dumps(batches))
            policy.write_text(str(batches))

        return [self._call("write_state", None, write)]

    def load_state(self, folder: Path) -> None:
        self._now("load_state", None)
        self.batches = json.loads((folder / "batches").read_text())

    def save_agent(self, path: Path) -> None:
        self._now("save_agent", None)
        path.write_text(str(self.batches))

    def load_agent(self, path: Path) -> None:
        self._now("load_agent", path)

    def _now(self, kind: str, detail: Any) -> None:
        try:
            self._call(kind, detail, lambda: None).result()
        except (ProcessDied, CallTimeout) as death:
            raise LearnerDied(str(death)) from death

    def close(self) -> None:
        self.log.append(("close", None))
