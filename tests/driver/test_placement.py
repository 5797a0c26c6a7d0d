"""The plan of what runs where: packed and spread, by labels, what waits, and what can never start."""

from __future__ import annotations

import pytest

from amago_ray.driver.cluster import growth
from amago_ray.driver.placement import (
    LEARNER,
    NOWHERE,
    SHARD,
    WORKER,
    Cluster,
    Node,
    Resources,
    Role,
    amount,
    check_fits,
    matches,
    place,
    pool,
    table,
)


def node(address: str, cpus: float, gpus: float = 0, free_cpus: float | None = None, **labels: str) -> Node:
    total = Resources(cpus, gpus, 8e9)
    return Node(address, total, Resources(cpus if free_cpus is None else free_cpus, gpus, 8e9), labels)


def roles(workers: int, learner_gpus: float = 0, pooled: bool = False, shards: int = 2) -> tuple[Role, ...]:
    learn, roll = ({"pool": "learner"}, {"pool": "rollout"}) if pooled else ({}, {})
    return (
        Role(LEARNER, 1, Resources(1, learner_gpus), learn),
        Role(SHARD, shards, Resources(memory_bytes=1e9), learn),
        Role(WORKER, workers, Resources(1), roll, spread=True),
    )


def test_learners_and_shards_are_together_and_workers_apart() -> None:
    nodes = (node("a", 4), node("b", 8, gpus=1), node("c", 4))
    placement = place(roles(6, learner_gpus=1), nodes)
    assert placement.places[:2] == ((1,), (1, 1))
    assert sorted(placement.places[2]) == [0, 0, 1, 1, 2, 2]


def test_labels_are_held_to_and_what_finds_no_node_waits() -> None:
    nodes = (node("a", 8, pool="learner"), node("b", 2, pool="rollout"))
    placement = place(roles(5, pooled=True), nodes)
    assert placement.places == ((0,), (0, 0), (1, 1, NOWHERE, NOWHERE, NOWHERE))
    assert placement.waiting(WORKER) == (2, 3, 4) and placement.waiting(LEARNER) == ()
    assert placement.where(2) == "b (rollout): 2, 3 wait for a node"


def test_what_others_use_is_free_later() -> None:
    nodes = (node("a", 8, free_cpus=2),)
    assert place(roles(4), nodes).waiting(WORKER) == (1, 2, 3)
    assert place(roles(4), nodes, free_only=False).waiting(WORKER) == ()


@pytest.mark.parametrize(
    ("selector", "fits"),
    [("x", True), ("!x", False), ("y", False), ("!y", True), ("in(y, x)", True), ("in(y)", False), ("!in(y)", True)],
)
def test_selectors_are_those_of_ray(selector: str, fits: bool) -> None:
    assert matches({"name": "x"}, {"name": selector}) is fits
    assert matches({}, {"name": "x"}) is False and matches({}, {"name": "!x"}) is True and matches({}, {})


def test_pools_are_used_where_there_are_any() -> None:
    assert pool("rollout", (node("a", 2), node("b", 2, pool="rollout"))) == {"pool": "rollout"}
    assert pool("rollout", (node("a", 2), node("b", 2, pool="learner"))) == {}


def test_a_run_that_can_begin_is_let_through_and_others_are_told_what_is_missing() -> None:
    learner, rollout = node("a", 8, gpus=1, pool="learner"), node("b", 2, pool="rollout")
    check_fits(roles(100, learner_gpus=1, pooled=True), Cluster(10, (learner, rollout)))
    # A cluster without a rollout node fits when one may be added, however much is in use at the moment.
    busy = node("a", 8, gpus=1, free_cpus=0, pool="learner")
    check_fits(roles(100, learner_gpus=1, pooled=True), Cluster(10, (busy,), growth=(rollout,)))
    with pytest.raises(ValueError, match=r"not one of 100 rollout workers, .* finds a node labelled pool=rollout"):
        check_fits(roles(100, learner_gpus=1, pooled=True), Cluster(8, (learner,)))
    with pytest.raises(ValueError, match=r"1 of 1 learners, which need 1 CPU, 1 GPU each, .*b \(rollout\) has 2 CPUs"):
        check_fits(roles(1, learner_gpus=1), Cluster(2, (rollout,)))
    with pytest.raises(ValueError, match=r"4 of 20 replay shards, which need 1.0 GB each, .*replay_capacity_gb"):
        check_fits(roles(1, shards=20), Cluster(10, (learner, rollout)))
    # A trial of a sweep begins with all of its workers.
    check_fits(roles(2, learner_gpus=1, pooled=True), Cluster(10, (learner, rollout)), whole=True)
    with pytest.raises(ValueError, match=r"98 of 100 rollout workers, .* find no node labelled pool=rollout"):
        check_fits(roles(100, learner_gpus=1, pooled=True), Cluster(10, (learner, rollout)), whole=True)


def test_nodes_that_an_autoscaler_may_add() -> None:
    launched = {
        "max_workers": 4,
        "head_node_type": "learner",
        "available_node_types": {
            "learner": {"resources": {"CPU": 8, "GPU": 1}, "labels": {"pool": "learner"}, "max_workers": 0},
            "rollout": {"resources": {"CPU": 16, "memory": 5e9}, "labels": {"pool": "rollout"}, "max_workers": 3},
            "big": {"resources": {"CPU": 64}, "max_workers": 9},
            "unknown": {"resources": {}, "max_workers": 9},
        },
    }
    there = (node("a", 8, gpus=1, pool="learner"), node("b", 16, pool="rollout"))
    more = list(growth(there, launched))
    assert [(n.address, n.total.cpus, n.labels) for n in more] == [
        ("a new rollout node", 16, {"pool": "rollout"}),
        ("a new rollout node", 16, {"pool": "rollout"}),
        ("a new big node", 64, {}),
    ]
    assert list(growth(there, {})) == []


def test_the_table_says_where_everything_goes() -> None:
    nodes = (node("10.0.0.1", 8, pool="learner"), node("10.0.0.2", 2, pool="rollout"))
    text = table("lake on 2 nodes:", place(roles(3, pooled=True), nodes), {"replay": "up to 4.0 GB"})
    assert text.splitlines() == [
        "lake on 2 nodes:",
        "  process         number  each    where",
        "  learner              1  1 CPU   10.0.0.1 (learner): 1",
        "  replay shard         2  1.0 GB  10.0.0.1 (learner): 2",
        "  rollout worker       3  1 CPU   10.0.0.2 (rollout): 2, 1 waits for a node",
        "  replay          up to 4.0 GB",
    ]


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 bytes"), (1700, "1.7 kB"), (12.3e6, "12 MB"), (1.1e9, "1.1 GB"), (2e12, "2,000 GB")]
)
def test_amounts(num_bytes: float, text: str) -> None:
    assert amount(num_bytes) == text
