"""How cores are shared: none idle by default, none promised twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from amago_ray.driver.cores import Cores, share_cores
from amago_ray.driver.placement import Cluster, Node, Resources
from amago_ray.driver.ring import Ring
from amago_ray.envs.builtin import Counting
from amago_ray.learner.learner import LearnerConfig
from amago_ray.settings import ExperimentSettings


def shared(cpus: int, device: str = "cpu", local: bool = True, **settings: object) -> Cores:
    given = ExperimentSettings("run", Counting, 8, make_val_env=Counting, **settings)  # type: ignore[arg-type]
    node = Node("here", Resources(cpus), Resources(cpus))
    return share_cores(given, device, Cluster(cpus, (node,), local=local), free_cpus=cpus - 1)


@pytest.mark.parametrize("schedule", ["alternate", "auto"])
@pytest.mark.parametrize(("cpus", "envs", "workers"), [(2, 12, 2), (16, 24, 16), (16, 4, 4), (1, 12, 1)])
def test_who_takes_turns_has_the_whole_machine(schedule: str, cpus: int, envs: int, workers: int) -> None:
    cores = shared(cpus, schedule=schedule, parallel_actors=envs)
    assert (cores.workers, cores.learner, cores.takes_turns) == (workers, cpus, True)


@pytest.mark.parametrize(("schedule", "device"), [("overlap", "cpu"), ("continuous", "cpu"), ("auto", "cuda")])
@pytest.mark.parametrize("cpus", [2, 4, 16])
def test_who_works_at_the_same_time_shares_it(schedule: str, device: str, cpus: int) -> None:
    cores = shared(cpus, device, schedule=schedule, parallel_actors=24)
    assert cores.workers + cores.learner == cpus and cores.workers <= 3 and not cores.takes_turns


def test_on_a_cluster_every_process_has_its_own_cores() -> None:
    cores = shared(16, local=False, parallel_actors=64)
    assert (cores.workers, cores.learner, cores.machine) == (8, 1, None)


def test_settings_are_taken_as_they_are() -> None:
    cores = shared(4, parallel_actors=12, num_rollout_workers=3, learner_cpus=7)
    assert (cores.workers, cores.learner) == (3, 7)
    assert shared(4, parallel_actors=12, num_learners=2).learner == 2


@pytest.mark.parametrize(("busy_cores", "threads"), [(4.0, 4), (0.5, 7), (3.2, 4), (8.0, 1), (0.0, 8)])
def test_the_learner_has_what_collecting_workers_leave(busy_cores: float, threads: int) -> None:
    assert Cores(4, 4, machine=8).beside(busy_cores, num_learners=1) == threads
    assert Cores(4, 4).beside(busy_cores, num_learners=1) is None


@pytest.mark.parametrize(
    ("compiles", "expected"), [(False, [8, 7, 8, 4, 5]), (True, [8, 8, 8, 4, 4]), ("packed", [8, 8, 8, 4, 4])]
)
def test_threads_of_what_is_compiled_change_only_by_much(compiles: Any, expected: list[int]) -> None:
    """Each number of threads would take the compiler as long again."""
    plan = SimpleNamespace(
        cores=SimpleNamespace(beside=lambda busy, num_learners: int(busy)),
        num_learners=1,
        learner=LearnerConfig(compile=compiles),
    )
    ring: Any = SimpleNamespace(plan=plan, _topology=SimpleNamespace(learner_threads=None))
    seen = []
    for busy in (8, 7, 8, 4, 5):
        Ring.share_cores(ring, busy)
        seen.append(ring._topology.learner_threads)
    assert seen == expected
