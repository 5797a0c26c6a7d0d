"""Connecting to Ray: what goes wrong is tried again, and is one line."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from amago_ray.driver import cluster
from amago_ray.driver.cluster import START_ATTEMPTS, RayGone
from amago_ray.driver.placement import WORKER, Cluster, Node, Resources, Role, check_fits
from amago_ray.driver.preemption import RESUMABLE, Preempted
from amago_ray.driver.topology import Topology


@pytest.mark.parametrize("failures", [1, START_ATTEMPTS])
def test_a_ray_that_does_not_start_is_tried_again_and_told(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    tried = []

    def init(**options: Any) -> None:
        tried.append(options)
        if len(tried) <= failures:
            raise Exception("The current node timed out during startup.\nAnd more.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests share one with this process ...
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # ... which is not to be ended
    monkeypatch.setattr(cluster, "survey", lambda: cluster.this_machine())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if failures < START_ATTEMPTS:
        there, started_here = cluster.connect(None, lambda machine: 1.0)
        assert there.local and started_here and len(tried) == failures + 1
        return
    with pytest.raises(ValueError, match=r"did not start on this machine \(The current .* startup\.\); is it"):
        cluster.connect(None, lambda machine: 1.0)
    assert len(tried) == START_ATTEMPTS


def test_a_second_experiment_that_does_not_fit_beside_the_first_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray on this machine, which the first one has started, never grows."""
    total, free = Resources(4.0, 0.0, 1e9), Resources(1.0, 0.0, 1e9)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: monkeypatch.setattr(ray, "is_initialized", lambda: True))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "survey", lambda: Cluster(4, (Node("10.0.0.1", total, free),)))
    monkeypatch.setattr(cluster, "ROOM_TIMEOUT_S", 0.0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def workers(count: int) -> list[Role]:
        return [Role(WORKER, count, Resources(1.0), spread=True)]

    first, started_here = cluster.connect(None, lambda machine: 3.0, "first")
    assert started_here and not first.opened_by
    second, started_here = cluster.connect(None, lambda machine: 2.0, "second")
    assert not started_here
    check_fits(workers(1), second)
    with pytest.raises(ValueError, match=r"'first' is still open .* 1 of 2 rollout workers.*: close\(\) it first"):
        check_fits(workers(2), second)
    cluster.disconnect()
    check_fits(workers(2), cluster.connect(None, lambda machine: 2.0, "third")[0])  # the others wait for a node
    cluster.disconnect()


@pytest.mark.parametrize("killed", ["raylet", "gcs_server"])
def test_a_ray_that_was_killed_is_told_of(monkeypatch: pytest.MonkeyPatch, killed: str) -> None:
    """Workers are asked for, and learners started, by nobody then."""
    dead = [("log_monitor", None)]
    node = SimpleNamespace(dead_processes=lambda: dead)
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    cluster.check_ray_lives()
    dead.append((killed, None))
    topology = Topology.__new__(Topology)
    for ask in (topology.start_learners, lambda: topology.ping(0)):
        with pytest.raises(RayGone, match=f"Ray on this machine is gone: its {killed} was killed"):
            ask()
    if killed == "gcs_server":
        with pytest.raises(RayGone):
            topology.leaving_nodes()
        monkeypatch.setattr(ray, "shutdown", lambda: pytest.fail("it would wait for a minute"))
        cluster.disconnect()
        topology.close()
    monkeypatch.setattr(ray._private.worker, "_global_node", None)
    cluster.check_ray_lives()


@pytest.mark.parametrize(("preempted", "status"), [(False, 1), (True, RESUMABLE)])
def test_a_process_whose_ray_is_gone_ends_with_its_own_status(
    monkeypatch: pytest.MonkeyPatch, preempted: bool, status: int
) -> None:
    """Where Ray's own leaving would wait, and end it with another one."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(Preempted, "raised", False)
    if preempted:
        with pytest.raises(Preempted):
            raise Preempted("SIGTERM")
    monkeypatch.setattr(cluster, "control_is_gone", lambda: False)
    cluster._end_without_ray()
    assert not ended
    monkeypatch.setattr(cluster, "control_is_gone", lambda: True)
    cluster._end_without_ray()
    assert ended == [status]
