"""What was stored stays stored, whatever dies; schedules, samplers and layouts on Ray."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from system.faults import FaultyAgent, KillsInStep, give_order
from system.processes import assert_gone, pids_of, stored_trajectories
from system.test_failures import column, finish

from amago_ray import config
from amago_ray.replay.sampling.selection import PriorityFile
from amago_ray.replay.storage.folders import shard_folder
from amago_ray.settings import replay_folder


def stored_ids(experiment: Any) -> list[tuple[int, int, int]]:
    return [(t.id.worker, t.id.incarnation, t.id.sequence) for shard in stored_trajectories(experiment) for t in shard]


def test_a_killed_shard_has_what_it_acknowledged(
    make_experiment: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = tmp_path / "order"
    experiment = make_experiment(
        make_train_env=partial(KillsInStep, order),
        make_val_env=partial(KillsInStep, order, steps=10**9),
        num_rollout_workers=1,
        verbose=True,
    )
    experiment.start()
    pids = pids_of(experiment)
    experiment.epochs = 1
    experiment.learn()
    give_order(order, pids["shard 1"])
    experiment.epochs = 3
    experiment.learn()
    assert not order.exists()
    ids = stored_ids(experiment)
    while experiment.epochs < 8 and len(ids) < sum(column(experiment, "collect", "collect/Trajectories")):
        experiment.epochs += 1  # a shard that is slow to come back gets what a worker keeps with its next chunk
        experiment.learn()
        ids = stored_ids(experiment)
    # No number of a worker's trajectories is missing, and none is there twice.
    assert sorted(sequence for _, _, sequence in ids) == list(range(len(ids)))
    assert len(ids) == sum(column(experiment, "collect", "collect/Trajectories"))
    finish(experiment, experiment.epochs)
    assert_gone(pids.values())
    out = capsys.readouterr().out
    assert "replay shard 1 died and Ray restarted it: it has its " in out and "is lost" not in out


@pytest.mark.usefixtures("shared_processes")
def test_a_resumed_run_has_what_was_stored(make_experiment: Callable[..., Any]) -> None:
    experiment = make_experiment(ckpt_interval=1)
    experiment.learn()
    before = stored_ids(experiment)
    experiment.close()
    for shape in ({"num_replay_shards": 3, "num_rollout_workers": 1}, {"num_replay_shards": 1}):
        other = make_experiment(epochs=4, **shape)
        other.start(resume=True)
        assert sorted(stored_ids(other)) == sorted(before), "of other numbers of processes, with all that there was"
        other.close()
    resumed = make_experiment(epochs=4)
    resumed.start(resume=True)
    assert sorted(stored_ids(resumed)) == sorted(before)
    resumed.learn()
    after = stored_ids(resumed)
    assert set(before) < set(after) and len(set(after)) == len(after)
    assert {incarnation for _, incarnation, _ in before} == {0}
    assert {incarnation for _, incarnation, _ in after} == {0}, "workers go on under their names"
    resumed.close()

    again = make_experiment(replay_durable=False, ckpt_interval=1)
    again.start(overwrite=True)
    again.learn(until=1)
    again.close()
    fewer = make_experiment(replay_durable=False, num_replay_shards=1)
    fewer.start(resume=True)
    assert stored_ids(fewer) == [] and fewer.progress.epoch == 0, "what was kept nowhere is not looked for"
    fewer.close()

    again = make_experiment()
    again.start(overwrite=True)
    assert stored_ids(again) == []


@pytest.mark.usefixtures("shared_processes")
def test_memory_only_leaves_no_files(make_experiment: Callable[..., Any], tmp_path: Path) -> None:
    experiment = make_experiment(replay_durable=False, replay_dir=tmp_path / "elsewhere")
    experiment.learn()
    assert not (tmp_path / "elsewhere").exists() and not (experiment.directory.root / "replay").exists()


@pytest.mark.usefixtures("shared_processes")
@pytest.mark.parametrize("updates_per_timestep", [None, 0.25])
def test_continuous_holds_the_ratio(make_experiment: Callable[..., Any], updates_per_timestep: float | None) -> None:
    experiment = make_experiment(
        schedule="continuous",
        updates_per_timestep=updates_per_timestep,
        replay_min_timesteps=40,
        epochs=6,
        train_batches_per_epoch=12,
    )
    experiment.learn()
    frames = column(experiment, "collect", "total_frames")
    updates = column(experiment, "train", "gradient_steps")
    ratio = updates_per_timestep or 12 / 96
    assert updates == [12 * (epoch + 1) for epoch in range(6)]
    # A tolerance of one epoch's batches on either side, and what was collected before learning could begin.
    tolerance = max(12, 2 * 4 * ratio)
    for made, learned in zip(frames, updates, strict=True):
        assert -tolerance <= made * ratio - learned <= 3 * tolerance + 40 * ratio
    rate = column(experiment, "rate", "rate/Batches Ahead of Learning")
    assert len(rate) == 6 and all(abs(balance) <= tolerance + 8 * ratio for balance in rate)
    versions = {t.weight_version for shard in stored_trajectories(experiment) for t in shard}
    assert len(versions) > 2


def test_continuous_outlives_its_learner_and_a_worker(make_experiment: Callable[..., Any], tmp_path: Path) -> None:
    in_learner, in_worker = tmp_path / "forward", tmp_path / "worker"
    config.load([], [f"FaultyAgent.orders = {str(tmp_path)!r}"])
    experiment = make_experiment(
        agent_type=FaultyAgent,
        make_train_env=partial(KillsInStep, in_worker),
        make_val_env=partial(KillsInStep, in_worker, steps=10**9),
        schedule="continuous",
        epochs=4,
        num_replay_shards=1,
    )
    experiment.start()
    pids = pids_of(experiment)
    give_order(in_learner, pids["learner 0"])
    give_order(in_worker, pids["worker 1"])
    experiment.learn()
    assert not in_learner.exists() and not in_worker.exists()
    assert column(experiment, "train", "epoch") == [0, 1, 2, 3]
    ids = stored_ids(experiment)
    assert len(set(ids)) == len(ids)


@pytest.mark.usefixtures("shared_processes")
def test_priorities_reach_the_shards(make_experiment: Callable[..., Any]) -> None:
    experiment = make_experiment(replay_sampling="prioritized", train_batches_per_epoch=12)
    experiment.learn()
    damage: list[str] = []
    for shard in range(2):
        file = PriorityFile(shard_folder(replay_folder(experiment), shard), damage)
        assert len(np.unique(file.values)) > 3 and (file.values > 0).all() and file.largest >= file.values.max()
    assert damage == []


@pytest.mark.usefixtures("shared_processes")
@pytest.mark.parametrize("layout", ["packed", "bucketed"])
def test_batch_layouts(make_experiment: Callable[..., Any], layout: str) -> None:
    experiment = make_experiment(batch_layout=layout, epochs=2)
    experiment.learn()
    assert column(experiment, "train", "gradient_steps") == [6, 12]
    if layout == "packed":
        assert column(experiment, "train", "train/Padding (fraction of batch)") == [0.0, 0.0]


def object_store_bytes() -> int:
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats.object_store_bytes_used


@pytest.mark.usefixtures("shared_processes")
def test_nothing_stays_pinned_in_the_object_store(make_experiment: Callable[..., Any]) -> None:
    """Trajectories, batches and weights pass through it; what a run leaves there does not grow with its epochs."""
    experiment = make_experiment(epochs=4, batch_size=64)
    experiment.learn()
    early = object_store_bytes()
    experiment.epochs = 24
    experiment.learn()
    assert object_store_bytes() <= early + 1_000_000
