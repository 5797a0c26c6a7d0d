"""A cluster that begins too small for a run, grows, and loses nodes: one that rolls out, and the one that learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TESTS


def run_script(name: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """What a script of this folder says, and has seen."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, str(TESTS / "system" / name), str(folder)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(1200)  # Ray needs minutes at times until it gives a node up
def test_workers_join_as_nodes_come_and_leave_as_they_go(tmp_path: Path) -> None:
    out, seen = run_script("growing_cluster.py", tmp_path)
    assert "rollout worker       3  1 CPU" in out and "(rollout): 1, 2 wait for a node" in out
    assert "2 of 3 rollout workers wait for a node and join when there is one" in out
    assert "has a node now and joins: 3 of 3 at work" in out
    assert "died; Ray restarts it, the others take over meanwhile" in out
    assert "it has its" in out and "going on from the training state of epoch 4" in out
    assert seen["here"] == [1, 3, 1]
    assert seen["frames"] == [6 * 24 * (epoch + 1) for epoch in range(5)], "every epoch has all of its timesteps"
    nodes = seen["nodes"]
    assert set(nodes["learner"]) == set(nodes["shard"]) == {seen["learning"]}, "learners and shards are together"
    assert set(nodes["worker"]) == set(seen["rollout"]) and len(nodes["worker"]) == 3, "workers are spread"


@pytest.mark.timeout(1200)
def test_workers_leave_a_node_that_is_drained_and_do_not_wait_for_its_end(tmp_path: Path) -> None:
    """Which Ray brings about as soon as nobody is left there."""
    out, seen = run_script("draining_cluster.py", tmp_path)
    assert set(seen["before"]) == {seen["first"]} and set(seen["after"]) == {seen["second"]}
    assert out.count("moves: its node is to be taken away in 3") == 2 and "died" not in out, (
        "long before its hour is over"
    )
    assert seen["frames"] == [6 * 24 * (epoch + 1) for epoch in range(5)], "every epoch has all of its timesteps"
