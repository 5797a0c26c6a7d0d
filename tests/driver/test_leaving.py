"""Nodes that are about to be taken away: workers move, and what learners and shards hold is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from driver.test_ring import BATCHES, EPOCHS, Run, assert_all_was_done, no_time_passes  # noqa: F401
from fake_topology import FakeTopology

from amago_ray.driver import leaving


@pytest.fixture(autouse=True)
def no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "LOOK_INTERVAL_S", 0.0)


def test_a_worker_moves_once_and_that_is_no_failure(tmp_path: Path) -> None:
    topology = FakeTopology()
    run = Run(tmp_path, "alternate", topology).start().learn(1)
    topology.leaving = {"rollout worker 1": 90.0, "nobody's": None}
    run.learn()
    assert [worker for kind, worker in topology.log if kind == "restart worker"] == [1]
    assert [line for line in run.said if "moves" in line] == [
        "rollout worker 1 moves: its node is to be taken away in 90 s"
    ]
    assert not [line for line in run.said if "died" in line]
    assert_all_was_done(run)


@pytest.mark.parametrize("who", ["replay shard 0", "learner 0"])
def test_a_state_is_written_before_the_node_of_a_learner_or_shard_goes(tmp_path: Path, who: str) -> None:
    topology = FakeTopology()
    run = Run(tmp_path, "alternate", topology).start().learn(1, save=False)
    assert run.directory.saved_epochs() == []
    topology.leaving = {who: None}
    run.learn(save=False)
    assert run.directory.saved_epochs() == [1], "once"
    assert [line for line in run.said if who in line] == [
        f"the node of {who} is to be taken away: the next epoch is saved"
    ]
    assert run.directory.load_run_state(1)["batches"] == 2 * BATCHES and EPOCHS == 3
