"""The ring on Ray: nothing is lost, repeated or misaligned; the run directory; resuming; running again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gin
import pytest
import torch
from ring_cases import assert_rollouts_whole
from system.processes import stored_trajectories
from system.test_determinism import rows_without_clock

from amago_ray import config, train
from amago_ray.driver.collection import CollectSummary
from amago_ray.driver.preemption import Preempted
from amago_ray.envs.builtin import Counting
from amago_ray.messages import RolloutReport
from amago_ray.nets.traj_encoders import FFTrajEncoder
from amago_ray.watch.callbacks import Callback, RunView
from amago_ray.watch.metrics import AVERAGE_RETURN, read_metrics

pytestmark = pytest.mark.usefixtures("shared_processes")


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_is_collected_is_what_is_stored(
    make_experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, num_workers: int, num_shards: int
) -> None:
    terminate = num_workers == num_shards
    reports: list[RolloutReport] = []
    add = CollectSummary.add

    def spy(summary: CollectSummary, report: RolloutReport) -> None:
        reports.append(report)
        add(summary, report)

    monkeypatch.setattr(CollectSummary, "add", spy)
    experiment = make_experiment(
        make_train_env=partial(Counting, 6, terminate=terminate),
        traj_encoder_type=FFTrajEncoder,
        parallel_actors=5,
        train_timesteps_per_epoch=25,
        epochs=2,
        traj_save_len=4,
        num_rollout_workers=num_workers,
        num_replay_shards=num_shards,
        schedule="overlap",
    )
    experiment.learn()

    assert sum(report.timesteps for report in reports) == 2 * 5 * 25
    assert {report.worker for report in reports} == set(range(num_workers))
    shards = stored_trajectories(experiment)
    assert len(shards) == num_shards and all(shards)
    stored = sorted((t for shard in shards for t in shard), key=lambda t: t.id)
    assert len({t.id for t in stored}) == len(stored) == sum(report.trajectories for report in reports)
    assert_rollouts_whole(stored, 6, traj_save_len=4, terminate=terminate, unfinished=5)
    # 50 steps of each environment: 8 rollouts of 6, and 2 steps that are still with the worker.
    assert sum(t.num_transitions for t in stored) == 5 * 8 * 6
    assert len({int(t.columns["obs.env_id"][0, 0]) for t in stored}) == 5

    # With "overlap" epoch 1 is collected while epoch 0 is learned, by the weights that were there before.
    assert {report.weight_version for report in reports} == {1}
    assert {t.weight_version for t in stored} == {1}
    rows = [row for row in read_metrics(experiment.directory.root) if row["section"] == "collect"]
    assert [row["total_frames"] for row in rows] == [125, 250]
    assert rows[-1]["frames/Counting"] == 250


def files_below(root: Path) -> set[str]:
    """Every file and every empty folder."""
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() or not any(p.iterdir())}


@pytest.mark.parametrize(
    "idle",
    [
        {"train_timesteps_per_epoch": 0, "train_batches_per_epoch": 0},
        {"start_collecting_at_epoch": 2, "start_learning_at_epoch": 2},
    ],
    ids=["only validation", "later"],
)
def test_epochs_may_do_nothing(make_experiment: Callable[..., Any], idle: dict[str, Any]) -> None:
    with make_experiment(val_interval=1, **idle) as experiment:
        experiment.learn()
    rows = read_metrics(experiment.directory.root)
    assert [row["epoch"] for row in rows if row["section"] == "val"] == [0, 1, 2]
    done = [row["epoch"] for row in rows if row["section"] == "collect"]
    assert done == ([2] if "start_learning_at_epoch" in idle else [])


def test_a_run_from_start_to_resumed_to_repeated(
    make_experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions: list[int] = []
    add = CollectSummary.add
    monkeypatch.setattr(CollectSummary, "add", lambda s, r: (versions.append(r.weight_version), add(s, r))[1])
    config.load(
        [],
        [
            "Counting.episode_length = 6",
            "EpsilonGreedy.steps_anneal = 200",
            "EpsilonGreedy.randomize_eps = False",
        ],
    )
    settings = {"make_train_env": Counting, "num_rollout_workers": 1, "num_replay_shards": 1}

    experiment = make_experiment(**settings)
    experiment.learn()
    assert versions == sorted(versions) and set(versions) == {1, 2, 3}
    check_run_directory(experiment.directory.root)
    check_evaluate_test(experiment)
    experiment.close()
    first_rows = rows_without_clock(experiment.directory.root)
    check_that_it_runs_again(experiment, first_rows, capsys)

    resumed = make_experiment(**settings, epochs=5)
    resumed.start(resume=True)
    versions.clear()
    assert resumed.progress.epoch == 2 and resumed.progress.gradient_steps == 18
    resumed.learn()
    rows = rows_without_clock(resumed.directory.root)
    assert rows[: len(first_rows)] == first_rows
    collected = [row for row in rows if row["section"] == "collect"]
    learned = [row for row in rows if row["section"] == "train"]
    steps = [24 * (epoch + 1) for epoch in range(5)]  # of one environment
    assert [row["epoch"] for row in collected] == [row["epoch"] for row in learned] == list(range(5))
    assert [row["total_frames"] for row in collected] == [4 * n for n in steps]
    assert [row["collect/Exploration eps"] for row in collected] == pytest.approx(
        [1 - 0.95 * (n - 1) / 200 for n in steps]
    )
    assert [row["gradient_steps"] for row in learned] == [6 * (epoch + 1) for epoch in range(5)]
    assert [row["train/Learning Rate"] for row in learned] == pytest.approx(
        [1e-4 * (6 * (epoch + 1) + 1) / 100 for epoch in range(5)]
    )
    assert sorted(set(versions)) == [4, 5], "4 was the last one that the first run published, and nobody had seen it"
    # Identities of trajectories must not come again after a restart from the same state.
    incarnations = {t.id.incarnation for shard in stored_trajectories(resumed) for t in shard}
    assert incarnations == {0}, "workers go on under their names"
    assert resumed.directory.saved_epochs() == [0, 2, 4]


def check_run_directory(root: Path) -> None:
    assert {p.name for p in root.iterdir()} == {
        "config.txt",
        "spaces.json",
        "metrics.jsonl",
        "events.jsonl",
        "wandb_logs",
        "ckpts",
        "replay",
    }
    ckpts = root / "ckpts"
    assert {p.name for p in ckpts.iterdir()} == {"training_states", "latest", "policy_weights"}
    assert {p.name for p in (ckpts / "training_states").iterdir()} == {"run_epoch_0", "run_epoch_2"}
    states = {name for name in files_below(root) if name.startswith("ckpts/training_states/")}
    assert all("/run_epoch_" in name for name in states) and len(states) >= 8
    assert files_below(root) - states == {
        "config.txt",
        "spaces.json",
        "metrics.jsonl",
        "events.jsonl",
        "wandb_logs",
        "ckpts/latest/policy.pt",
        "ckpts/policy_weights/policy_epoch_0.pt",
        "ckpts/policy_weights/policy_epoch_2.pt",
        "replay/shard_0/0000000000.segment",
        "replay/shard_0/lock",
        "replay/spaces.json",
    }
    latest, newest, oldest = (
        torch.load(ckpts / name, weights_only=True)
        for name in ("latest/policy.pt", "policy_weights/policy_epoch_2.pt", "policy_weights/policy_epoch_0.pt")
    )
    assert latest.keys() == newest.keys() == oldest.keys()
    assert all(torch.equal(latest[name], newest[name]) for name in latest)
    assert any(not torch.equal(latest[name], oldest[name]) for name in latest)


def check_evaluate_test(experiment: Any) -> None:
    results = experiment.evaluate_test(partial(Counting, 6), timesteps=12)
    assert set(results) == {
        AVERAGE_RETURN,
        "Total Episodes",
        "Average Total Return in Counting",
        "Bottom Quintile Total Return in Counting",
        "Average Episode Length in Counting",
        "Unfinished Rollouts",
    }
    assert results["Total Episodes"] == 4 * 2 and results["Average Episode Length in Counting"] == 6
    # Rollout 0 gives 1 + ... + 6, rollout 1 that and 6 x 7 more.
    assert results[AVERAGE_RETURN] == (21 + 63) / 2
    assert experiment.evaluate_test(partial(Counting, 6), episodes=3, num_envs=3)["Total Episodes"] == 3
    # Begun within 5 steps, and played to its end; begun within 2, and not at its end after as many again.
    assert experiment.evaluate_test(partial(Counting, 6), timesteps=5)["Total Episodes"] == 4
    with pytest.raises(ValueError, match="no rollout finished within timesteps=2"):
        experiment.evaluate_test(partial(Counting, 6), timesteps=2)
    with pytest.raises(ValueError, match="needs timesteps"):
        experiment.evaluate_test(partial(Counting, 6))


def check_that_it_runs_again(experiment: Any, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """The command line, with nothing but the run's config.txt, gives the same metrics."""
    gin.clear_config()
    arguments = ["--config", str(experiment.directory.config), "--set", "Experiment.run_name = 'again'"]
    assert train.main([*arguments, "--no-final-test"]) == 0, capsys.readouterr().err
    again = experiment.directory.root.with_name("again")
    assert rows_without_clock(again) == rows


class ToldToEnd(Callback):
    """SIGTERM before an epoch is finished, since its validation notices, once it is armed."""

    armed = False

    def after_collection(self, view: RunView) -> None:
        if ToldToEnd.armed:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_went_back_and_is_told_to_end_goes_on_from_there(
    make_experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(epochs=4, ckpt_interval=1, val_interval=1, callbacks=[ToldToEnd])
    experiment.learn(until=3)
    experiment.load_checkpoint(0)
    monkeypatch.setattr(ToldToEnd, "armed", True)
    with pytest.raises(Preempted):
        experiment.learn()
    experiment.close()
    monkeypatch.setattr(ToldToEnd, "armed", False)
    assert experiment.directory.saved_epochs() == [0]
    make_experiment(epochs=4, ckpt_interval=1, val_interval=1, callbacks=[ToldToEnd]).start(resume=True).learn()
    rows = [row for row in read_metrics(experiment.directory.root) if row["section"] == "train"]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
