"""Processes that cannot all be started leave none behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from amago_ray.driver import topology
from amago_ray.driver.topology import Topology


class Failing:
    """Starts two processes, and no third."""

    def __init__(self) -> None:
        self.running: list[int] = []

    def start(self, role: type, args: Any, options: Any, named: bool = False) -> tuple[Any, str]:
        if len(self.running) == 2:
            raise OSError("no more processes")
        self.running.append(len(self.running))
        return self.running[-1], ""

    def end(self, actor: Any) -> None:
        self.running.remove(actor)


def test_a_start_that_fails_leaves_no_process_and_no_placement_group(monkeypatch: pytest.MonkeyPatch) -> None:
    spawner, removed = Failing(), []
    group: Any = SimpleNamespace()
    monkeypatch.setattr(topology, "spawner", spawner)
    monkeypatch.setattr(topology, "_learner_group", lambda plan: group)
    monkeypatch.setattr(topology, "remove_placement_group", removed.append)
    monkeypatch.setattr(Topology, "_bundle", lambda self, index: {})
    plan: Any = SimpleNamespace(
        roles=(),
        num_learners=1,
        num_replay_shards=1,
        shard_memory_bytes=1,
        replay=None,
        datasets=(),
        layout=None,
        gin_config="",
        worker_cpus=1.0,
        worker_gpus=0.0,
        rollout_nodes={},
        rollout=(1, 2),
    )
    with pytest.raises(OSError, match="no more processes"):
        Topology(plan)
    assert spawner.running == [] and removed == [group]
