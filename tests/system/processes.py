"""Looking at the processes of a run from outside: who they are, and whether they are gone."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import psutil
import ray
import ring_cases

from amago_ray.messages import Trajectory


def pid_of(actor: Any) -> int:
    """Process id of an actor, after waiting until it is up where it is being restarted."""
    found: list[int] = []

    def answers() -> bool:
        with contextlib.suppress(ray.exceptions.ActorUnavailableError):
            found.append(ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=60))
        return bool(found)

    wait_until(answers, "an actor does not come back")
    return found[0]


def pids_of(experiment: Any) -> dict[str, int]:
    """Process ids by role and number: "worker 0", "shard 1", "learner 0"."""
    topology = experiment._ring._topology
    actors = {"worker": topology._workers, "shard": topology._shards, "learner": topology._learners}
    return {f"{role} {i}": pid_of(actor) for role, group in actors.items() for i, actor in enumerate(group)}


def stored_trajectories(experiment: Any) -> list[list[Trajectory]]:
    """Everything visible in each shard, oldest first."""
    read = ring_cases.stored_trajectories
    return ray.get([shard.__ray_call__.remote(read) for shard in experiment._ring._topology._shards], timeout=60)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain: {what}"
        time.sleep(0.02)  # between two looks at the condition


def assert_gone(pids: Iterable[int], timeout_s: float = 60.0) -> None:
    """Wait until none of these processes runs any more."""
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid), f"process {pid} is still there", timeout_s)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
