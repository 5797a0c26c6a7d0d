"""How many rollout workers there are by default."""

from __future__ import annotations

import pytest

from amago_ray.agent import Agent
from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.placement import Cluster, Node, Resources
from amago_ray.driver.plan import make_plan
from amago_ray.envs.builtin import Counting
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.nets.tstep_encoders import FFTstepEncoder
from amago_ray.settings import ExperimentSettings
from amago_ray.specs import ActionSpec

SPEC = AgentSpec({}, ActionSpec("discrete", (), "int64", 2, (2,)), 8, FFTstepEncoder, GRUTrajEncoder, Agent, 0)


def node(cpus: int, **labels: str) -> Node:
    return Node("a node", Resources(cpus), Resources(cpus), labels)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node(16), node(4)], 19),
        ([node(16, pool="learner"), node(4, pool="rollout"), node(4, pool="rollout")], 8),
        ([node(16, pool="learner"), node(4)], 19),
        ([node(1)], 1),
    ],
    ids=["less the learner's core", "only of their pool", "without a pool all count", "at least one"],
)
def test_as_many_workers_as_there_are_cores_for(nodes: list[Node], expected: int) -> None:
    settings = ExperimentSettings("run", Counting, 8, make_val_env=Counting, parallel_actors=1000, learner_device="cpu")
    cluster = Cluster(int(sum(n.total.cpus for n in nodes)), tuple(nodes))
    assert len(make_plan(settings, SPEC, cluster).rollout) == expected
