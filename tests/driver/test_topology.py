"""Processes that cannot all be started leave none behind, and a learner computes in one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import gin
import pytest
import ray

from amago_ray.driver import topology
from amago_ray.driver.actors import LearnerActor
from amago_ray.driver.topology import Spawner, Topology, check_sendable
from amago_ray.envs.builtin import Counting
from amago_ray.settings import ExperimentSettings


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


class Registered(Counting):
    """In a module of its own, and known to gin."""


def registered() -> Counting:
    return Counting()


@pytest.mark.parametrize("what", [Registered, registered])
def test_what_gin_has_registered_without_changing_its_name_is_told_how_to_be_sent(what: Any) -> None:
    wrapped = gin.external_configurable(what, module="of_a_test")
    for make_env in (wrapped, [Counting, (wrapped, {})], partial(wrapped)):
        settings = ExperimentSettings("run", make_env, 8, make_val_env=Counting)
        with pytest.raises(ValueError, match="make_train_env=.*register and external_configurable") as refused:
            check_sendable(settings)
        assert f"{__name__}.{what.__name__} to the object" in str(refused.value)
        assert "@gin.configurable" in str(refused.value) and "\n" not in str(refused.value)
    check_sendable(ExperimentSettings("run", what, 8, make_val_env=Counting))


class ThreadTeller:
    """In a learner's place: remembers which thread each call came in. `train` lasts until `progress` has been asked."""

    def __init__(self) -> None:
        self.asked, self.threads = threading.Event(), dict[str, int]()

    def train(self, *args: Any) -> None:
        assert self.asked.wait(60)
        self.threads["train"] = threading.get_ident()

    def progress(self) -> None:
        self.asked.set()
        self.threads["progress"] = threading.get_ident()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.threads.update({name: threading.get_ident()})


class TellingActor(LearnerActor):
    def __init__(self) -> None:
        self._learner: Any = ThreadTeller()
        self._plan: Any = None
        self._rank, self._num_threads = 0, 1


def test_what_a_learner_computes_is_in_one_thread_and_can_be_asked_about_meanwhile(ray_instance: None) -> None:
    options = {"num_cpus": 0, "concurrency_groups": LearnerActor.CONCURRENCY_GROUPS}
    actor, _ = Spawner().start(TellingActor, (), options)
    try:
        training = actor.train.remote(1, None)
        ray.get(actor.progress.remote(), timeout=60)
        ray.get([training, actor.write_state.remote("", "", 0)], timeout=60)
        for call in (actor.publish.remote(1), actor.snapshot.remote(1), actor.save_agent.remote(""),
                     actor.load_agent.remote(""), actor.load_state.remote("")):  # fmt: skip
            ray.get(call, timeout=60)
        threads = ray.get(actor.__ray_call__.remote(lambda self: self._learner.threads), timeout=60)
    finally:
        ray.kill(actor)
    aside = {threads.pop(name) for name in ("progress", "write_state")}
    assert set(threads) == {"train", "publish", "snapshot", "save_agent", "load_agent", "load_state"}
    assert len(set(threads.values())) == 1 and not aside & set(threads.values())
