"""A cluster that begins too small for a run and grows; one node is drained, and one that rolls out is lost, and the one
that learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TESTS


@pytest.mark.timeout(1200)  # Ray needs minutes at times until it gives a node up
def test_workers_join_as_nodes_come_and_leave_as_they_go(tmp_path: Path) -> None:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, str(TESTS / "system" / "growing_cluster.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out, seen = done.stdout, json.loads(done.stdout.splitlines()[-1])
    assert "rollout worker       3  1 CPU" in out and "(rollout): 1, 2 wait for a node" in out
    assert "2 of 3 rollout workers wait for a node and join when there is one" in out
    assert "has a node now and joins: 3 of 3 at work" in out
    assert seen["here"] == [1, 3, 1]
    nodes = seen["nodes"]
    assert set(nodes["learner"]) == set(nodes["shard"]) == {seen["learning"]}, "learners and shards are together"
    assert set(nodes["worker"]) == set(seen["rollout"]) and len(nodes["worker"]) == 3, "workers are spread"

    # They leave the drained node and do not wait for its end, which Ray brings about as soon as nobody is left there.
    drained, lost = out.split("--- the drained node is left")
    assert drained.count("moves: its node is to be taken away in 3") == 2 and "died" not in drained, (
        "long before its hour is over"
    )
    assert seen["moved"] == [seen["third"]] * 2

    assert "died; Ray restarts it, the others take over meanwhile" in lost
    assert "it has its" in lost and "going on from the training state of epoch 5" in lost
    assert seen["frames"] == [6 * 24 * (epoch + 1) for epoch in range(6)], "every epoch has all of its timesteps"
