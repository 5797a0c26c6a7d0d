"""How many rollout workers there are by default."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from gymnasium.vector import SyncVectorEnv
from ring_cases import trajectory

from amago_ray.agent import Agent
from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.overview import overview
from amago_ray.driver.placement import Cluster, Node, Resources, place
from amago_ray.driver.plan import (
    TEST_SEEDS,
    check_shares,
    learns_compiled,
    longest_piece,
    make_plan,
    share_gpus,
    stagger,
    updates_planned_by,
)
from amago_ray.envs.builtin import Counting
from amago_ray.envs.makers import EnvProcesses
from amago_ray.nets.attention import SlidingSinkAttention
from amago_ray.nets.traj_encoders import GRUTrajEncoder, TformerTrajEncoder
from amago_ray.nets.tstep_encoders import FFTstepEncoder
from amago_ray.replay.shard import ReplayShard
from amago_ray.replay.storage.trajectory_pack import pack
from amago_ray.settings import ExperimentSettings
from amago_ray.specs import ActionSpec

SPEC = AgentSpec({}, ActionSpec("discrete", (), "int64", 2, (2,)), 8, FFTstepEncoder, GRUTrajEncoder, Agent, 0)


def node(cpus: int, **labels: str) -> Node:
    return Node("a node", Resources(cpus), Resources(cpus), labels)


CLUSTER = Cluster(4, (node(4),))


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


def five_at_once() -> SyncVectorEnv:
    return SyncVectorEnv([Counting] * 5)


@pytest.mark.parametrize(
    ("train", "val", "envs", "message"),
    [
        (five_at_once, Counting, 10, None),
        (five_at_once, Counting, 9, r"make_train_env .* of 5 environments .* has 4 or 5 \(parallel_actors=9 over 2"),
        (Counting, five_at_once, 20, "make_val_env .* of 5 .* has 10 .* parameter num_envs, or set parallel_actors=10"),
        (lambda num_envs: SyncVectorEnv([Counting] * num_envs), Counting, 9, None),
    ],
)
def test_a_vector_env_of_another_size_than_a_share_is_refused(train: Any, val: Any, envs: int, message: Any) -> None:
    settings = ExperimentSettings(
        "run", train, 8, make_val_env=val, parallel_actors=envs, num_rollout_workers=2, learner_device="cpu"
    )
    plan = make_plan(settings, SPEC, CLUSTER)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_shares(settings, plan)


def test_runs_of_neighbouring_seeds_share_no_environments() -> None:
    """What one trains in, another may not validate or be tested in."""
    seeds = [
        {rollout.seed for rollout in (*plan.rollout, *plan.validation)} | {seed + TEST_SEEDS}
        for seed in range(50)
        for plan in [make_plan(ExperimentSettings("r", Counting, 8, make_val_env=Counting, seed=seed), SPEC, CLUSTER)]
    ]
    assert len(set().union(*seeds)) == sum(len(of_run) for of_run in seeds) == 150


@pytest.mark.parametrize(
    ("given", "staggers", "longest", "by"),
    [(None, False, 64, 0), (1e10, False, 10**10, 0), (20, True, 20, 8), (8, True, 8, 0), (None, True, 64, 8)],
)
def test_pieces_are_as_long_as_the_settings_say(given: float | None, staggers: bool, longest: int, by: int) -> None:
    """As in AMAGO, lengths vary by max_seq_len, unless a piece is no longer than one sequence."""
    settings = ExperimentSettings(
        "run",
        Counting,
        8,
        make_val_env=Counting,
        traj_save_len=given,
        stagger_traj_file_lengths=staggers,
        learner_device="cpu",
    )
    assert (longest_piece(settings), stagger(settings)) == (longest, by)
    plan = make_plan(settings, SPEC, Cluster(4, (node(4),)))
    assert {(r.traj_save_len, r.stagger) for r in plan.rollout} == {(longest, by)}
    assert {r.stagger for r in plan.validation} == {0}


def test_environments_run_where_the_settings_say() -> None:
    settings = ExperimentSettings("run", Counting, 8, make_val_env=Counting, env_mode="processes", env_timeout_s=3.0)
    plan = make_plan(settings, SPEC, CLUSTER)
    assert {rollout.env_processes for rollout in (*plan.rollout, *plan.validation)} == {EnvProcesses(3.0, None, False)}
    settings = ExperimentSettings("run", Counting, 8, make_val_env=Counting)
    assert {rollout.env_processes for rollout in make_plan(settings, SPEC, CLUSTER).rollout} == {None}


@pytest.mark.parametrize(("total", "held"), [(10, 10), (2, 3), (None, 60)])
def test_shards_hold_together_what_the_settings_say(total: int | None, held: int) -> None:
    settings = ExperimentSettings(
        "run",
        Counting,
        8,
        make_val_env=Counting,
        num_replay_shards=3,
        replay_durable=False,
        replay_capacity_trajectories=total,
    )
    shards = [ReplayShard(make_plan(settings, SPEC, CLUSTER).replay, i) for i in range(3)]
    for shard in shards:
        shard.push(pack([trajectory(i) for i in range(20)]))
    assert sum(shard.commit(1).trajectories for shard in shards) == held


@pytest.mark.parametrize(
    ("setting", "epochs", "rollout", "validation"),
    [
        ("auto", 1_999, "never", "never"),
        ("auto", 2_000, "auto", "never"),
        ("always", 1, "always", "always"),
        ("never", 9_999, "never", "never"),
    ],
)
def test_steps_are_compiled_where_that_pays(setting: Any, epochs: int, rollout: str, validation: str) -> None:
    settings = ExperimentSettings(
        "run", Counting, 8, make_val_env=Counting, epochs=epochs, train_timesteps_per_epoch=100, compile_acting=setting
    )
    plan = make_plan(settings, SPEC, CLUSTER)
    assert {config.compile_acting for config in plan.rollout} == {rollout}
    assert {config.compile_acting for config in plan.validation} == {validation}
    text = overview(settings, plan, place(plan.roles, CLUSTER.nodes), CLUSTER)
    assert ("workers compile the policy's step before they begin" in text) == (rollout != "never")


@pytest.mark.parametrize(
    ("settings", "processor", "gpu"),
    [
        ({"epochs": 499, "mixed_precision": "bf16"}, False, False),
        ({"epochs": 500, "mixed_precision": "bf16"}, True, False),
        ({"epochs": 1_999, "mixed_precision": "bf16"}, True, False),
        ({"epochs": 2_000, "mixed_precision": "bf16"}, True, True),
        ({"epochs": 499}, False, False),
        ({"epochs": 2_000}, "packed", True),
        ({"epochs": 2_000, "batch_layout": "padded"}, False, True),
        ({"epochs": 2_000, "mixed_precision": "bf16", "batch_layout": "packed"}, "packed", False),
        ({"epochs": 2_000, "batch_layout": "packed"}, "packed", False),
        ({"epochs": 2_000, "mixed_precision": "bf16", "micro_batch_size": 4}, False, False),
        ({"epochs": 1, "compile_learning": "always"}, True, True),
        ({"epochs": 2_000, "compile_learning": "never"}, False, False),
    ],
)
def test_updates_are_compiled_where_that_pays(settings: dict[str, Any], processor: bool | str, gpu: bool) -> None:
    x = ExperimentSettings("run", Counting, 8, make_val_env=Counting, train_batches_per_epoch=100, **settings)
    assert (learns_compiled(x, "cpu"), learns_compiled(x, "cuda")) == (processor, gpu)
    assert learns_compiled(x, "cpu", transformer=False) == (False if processor == "packed" else processor)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (GRUTrajEncoder, False),
        (partial(TformerTrajEncoder, d_model=32, n_heads=2), True),
        (partial(TformerTrajEncoder, d_model=32, n_heads=4), False),
        (partial(TformerTrajEncoder, d_model=32, n_heads=2, dropout_attn=0.1), False),
        (partial(TformerTrajEncoder, d_model=32, n_heads=2, pos_emb="rope"), False),
        (partial(TformerTrajEncoder, d_model=32, n_heads=2, attention_type=partial(SlidingSinkAttention, 4, 1)), False),
    ],
)
def test_what_long_runs_in_float32_compile(encoder: Any, said: bool) -> None:
    """Transformers whose attention takes packed batches; for others no thread is kept that could be the workers'."""
    x = ExperimentSettings(
        "r", Counting, 8, make_val_env=Counting, learner_device="cpu", epochs=500, train_batches_per_epoch=100
    )
    plan = make_plan(x, replace(SPEC, traj_encoder_type=encoder), CLUSTER)
    assert plan.learner.compile == (False if encoder is GRUTrajEncoder else "packed")
    text = overview(x, plan, place(plan.roles, CLUSTER.nodes), CLUSTER)
    assert ("learners compile the layers of Transformers" in text) is said


def test_the_overview_says_that_layers_are_compiled() -> None:
    """Where there are any: of Transformers."""
    x = ExperimentSettings("run", Counting, 8, make_val_env=Counting, learner_device="cpu", compile_learning="always")
    for spec, said in ((SPEC, False), (replace(SPEC, traj_encoder_type=TformerTrajEncoder), True)):
        plan = make_plan(x, spec, CLUSTER)
        text = overview(x, plan, place(plan.roles, CLUSTER.nodes), CLUSTER)
        assert ("learners compile the layers of Transformers" in text) is said


def test_the_learning_rate_falls_over_all_updates_of_the_run() -> None:
    settings = ExperimentSettings(
        "r",
        Counting,
        8,
        make_val_env=Counting,
        epochs=7,
        train_batches_per_epoch=10,
        batches_per_update=2,
        lr_end_factor=0.1,
    )
    learner = make_plan(settings, SPEC, CLUSTER).learner
    assert (learner.last_update, learner.lr_end_factor) == (35, 0.1)
    late = make_plan(replace(settings, start_learning_at_epoch=4), SPEC, CLUSTER).learner
    assert late.last_update == 15


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 16 + (1 + 4 * 10) // 2),
        ({"train_batches_per_epoch": 40}, 16 + (1 + 4 * 40) // 2),
        ({"batches_per_update": 5}, 16 + (3 + 4 * 10) // 5),
        ({"start_learning_at_epoch": 5}, 16 + (1 + 2 * 10) // 2),
        ({"start_learning_at_epoch": 9}, 16),
        ({"epochs": 4}, 16 + (1 + 10) // 2),
    ],
)
def test_the_learning_rate_falls_over_the_updates_that_are_left(changes: dict[str, Any], expected: int) -> None:
    """After three epochs of 11 batches, the last of which has begun an update."""
    settings = ExperimentSettings(
        "r", Counting, 8, make_val_env=Counting, epochs=7, train_batches_per_epoch=10, batches_per_update=2
    )
    settings = replace(settings, **changes)
    state: dict[str, Any] = {"progress": {"epoch": 2, "gradient_steps": 16}, "batches": 33}
    assert make_plan(settings, SPEC, CLUSTER, 1, state).learner.last_update == expected
    kept = state | {"updates_planned": {"by": updates_planned_by(settings), "last": 77}}
    assert make_plan(settings, SPEC, CLUSTER, 1, kept).learner.last_update == 77, "nothing has changed"
    other = replace(settings, grad_clip=3.0, train_batches_per_epoch=1)
    assert make_plan(other, SPEC, CLUSTER, 1, kept).learner.last_update < 77


@pytest.mark.parametrize(
    ("num_learners", "learner", "workers", "rollout", "gpus", "expected"),
    [
        (1, "cpu", 4, "cpu", 0, (0, 0)),
        (1, "cuda", 4, "cpu", 1, (1, 0)),
        (1, "cpu", 4, "cuda", 1, (0, 0.1)),
        (1, "cuda", 4, "cuda", 2, (1, 0.1)),
        (1, "cuda", 4, "cuda", 1, (0.5, 0.125)),
        (1, "cuda", 11, "cuda", 2, (0.5, 0.0454)),
        (2, "cuda", 3, "cuda", 3, (1, 0.1)),
    ],
)
def test_who_acts_on_a_gpu_finds_one(
    num_learners: int, learner: str, workers: int, rollout: str, gpus: float, expected: tuple[float, float]
) -> None:
    """Where a learner has the only one, it gives half of it away."""
    each_learner, each_worker = share_gpus(num_learners, learner, workers, rollout, gpus)
    assert (each_learner, each_worker) == expected
    assert num_learners * each_learner + workers * each_worker <= gpus


def test_several_learners_share_their_gpus_with_nobody() -> None:
    """Two halves could come to lie on one GPU; the plan is then refused, since it does not fit."""
    each_learner, each_worker = share_gpus(2, "cuda", 3, "cuda", 2)
    assert each_learner == 1 and 2 * each_learner + 3 * each_worker > 2


def test_shards_know_the_categories_of_the_spaces() -> None:
    settings = ExperimentSettings("run", Counting, 8, make_val_env=Counting, learner_device="cpu")
    assert make_plan(settings, SPEC, CLUSTER).replay.categories == {"action": (2,)}
