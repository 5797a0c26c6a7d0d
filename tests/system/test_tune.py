"""Trials of Ray Tune: runs like any other, that end, die, go on and learn from one another."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gin
import psutil
import pytest
import torch
from ray import tune as ray_tune
from sweep_cases import trials, write_config
from system.test_determinism import rows_without_clock

from amago_ray import config, train
from amago_ray.run_directory import RunDirectory
from amago_ray.tune import trial as tune
from amago_ray.tune.sweep import Sweep
from amago_ray.watch.metrics import read_metrics


def command(config_file: Path, *more: str) -> int:
    gin.clear_config()
    return train.main(["tune", "--config", str(config_file), *more])


@pytest.mark.usefixtures("shared_processes")  # of the run alone; trials start their own
def test_a_sweep_gives_what_a_run_alone_gives(
    ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same metrics from one configuration and seed, as a run and as a trial; trials are whole runs."""
    file = write_config(tmp_path, "Experiment.epochs = 2", "Experiment.seed = 1")
    assert train.main(["--config", str(file), "--no-final-test"]) == 0
    alone = rows_without_clock(tmp_path / "runs" / "tiny")
    assert command(file, "--param", "Experiment.seed=grid_search([1, 2])", "--name", "seeds") == 0
    out = capsys.readouterr().out
    sweep = tmp_path / "runs" / "seeds"
    found = {entry["params"]["Experiment.seed"]: name for name, entry in trials(sweep).items()}
    assert rows_without_clock(sweep / found[1]) == alone
    assert rows_without_clock(sweep / found[2]) != alone
    assert all(entry["status"] == "finished" and entry["epoch"] == 2 for entry in trials(sweep).values())
    for name in found.values():
        assert f"trial {name}  epoch    2/2  val/return" in out
        assert (sweep / name / "ckpts" / "latest" / "policy.pt").is_file()
    assert "a trial takes 1 learner (1 CPU each)" in out and (sweep / "sweep.png").is_file()

    assert command(file, "--param", "Experiment.seed=grid_search([1])", "--name", "seeds") == 2
    assert "exists already: go on with it (--resume)" in capsys.readouterr().err

    sweep.rename(sweep.with_name("renamed"))
    assert command(file, "--param", "Experiment.seed=grid_search([1, 2])", "--name", "renamed", "--resume") == 0
    assert f"The sweep is in {sweep.with_name('renamed')}" in capsys.readouterr().out and not sweep.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--param", "Agent.gama=uniform(0.9, 0.99)"], "Agent has no setting 'gama'; did you mean 'gamma'?"),
        (["--param", "Experiment.batch_size=choice([0])"], "Experiment.batch_size=0"),
        (["--param", "Agent.gamma=unifrom(0, 1)"], "did you mean 'uniform'?"),
        ([], "a sweep needs a parameter"),
        (["--param", "Agent.gamma=uniform(0.9, 0.99)", "--resume"], "holds no sweep that could go on"),
        (
            ["--param", "Agent.gamma=uniform(0.9, 0.99)", "--set", "Experiment.learner_cpus = 99"],
            "1 of 1 learners, which need 99 CPUs each",
        ),
    ],
)
def test_mistakes_end_in_one_line_before_anything_starts(
    ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert command(write_config(tmp_path), *arguments) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1, err
    assert not (tmp_path / "runs").exists()


def test_a_misspelt_metric_stops_the_sweep_at_its_first_report(
    ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(tmp_path, "Experiment.epochs = 1000")
    assert command(file, "--param", "Agent.gamma=uniform(0.9, 0.99)", "--metric", "val/retrun") == 2
    err = capsys.readouterr().err
    assert "Sweep.metric='val/retrun': no trial reports it; did you mean 'val/return'?" in err
    ((_, entry),) = trials(tmp_path / "runs" / "tiny_sweep").items()
    assert entry["epoch"] == 1 and entry["status"] == "stopped"


class KillsTrial(ray_tune.Callback):
    """SIGKILLs the first trial's learner when it has reported twice, and the trial's own process after another time."""

    def __init__(self) -> None:
        self.killed: list[int] = []

    def on_trial_result(self, trial: Any, result: dict[str, Any], **info: Any) -> None:
        if result["epoch"] == 2 + len(self.killed) < 4:  # it goes on from the checkpoint of the report before
            self.killed.append(result["pid"] if self.killed else learner_pid())
            os.kill(self.killed[-1], signal.SIGKILL)


def test_a_trial_with_a_bug_fails_and_says_why(
    ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(
        tmp_path, "import system.faults", "Experiment.agent_type = @BuggyAgent", "Sweep.max_failures = 0"
    )
    assert command(file, "--param", "Experiment.seed=grid_search([0])") == 1
    out, err = capsys.readouterr()
    assert "failed: " in out and "ZeroDivisionError" in out
    assert "Traceback" not in out + err and "errored after" not in out, "all of it is in a file that is named"
    assert [entry["status"] for entry in trials(tmp_path / "runs" / "tiny_sweep").values()] == ["failed"]


def test_a_trial_whose_experiment_cannot_be_made_fails_alone(
    ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(tmp_path, "Experiment.epochs = 1", "Sweep.max_failures = 0")
    environments = "Experiment.make_train_env=grid_search(['amago_ray/Nowhere-v0', '@Counting'])"
    assert command(file, "--param", environments) == 1
    assert "building the environment amago_ray/Nowhere-v0 failed" in capsys.readouterr().out
    entries = trials(tmp_path / "runs" / "tiny_sweep").values()
    assert sorted((entry["status"], entry["params"]["Experiment.make_train_env"]) for entry in entries) == [
        ("failed", "amago_ray/Nowhere-v0"),
        ("finished", "@Counting"),
    ]
    assert command(file, "--param", "Experiment.seed=grid_search([1])", "--resume") == 2
    assert "was begun with Sweep.params=" in capsys.readouterr().err


def learner_pid() -> int:
    """Of the learner that was started last; those of other tests wait for another experiment."""
    learners = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that has just ended
            if process.cmdline()[:1] == ["ray::LearnerActor"]:
                learners.append(process)
    return max(learners, key=lambda process: process.create_time()).pid


def test_a_trial_whose_processes_are_killed_goes_on(ray_instance: None, tmp_path: Path) -> None:
    """Its learner's death is no failure of the trial; its own is the one that it is allowed."""
    every_epoch = "Experiment.ckpt_interval = 1", "Experiment.force_reset_train_envs_every = 1"
    config.load([write_config(tmp_path, *every_epoch)])
    killer = KillsTrial()
    make = tune.ConfiguredExperiment(config.snapshot(), str(tmp_path / "runs"), "killed")
    tuner = ray_tune.Tuner(
        tune.trainable(make),
        param_space={"Experiment.seed": ray_tune.grid_search([0])},
        tune_config=ray_tune.TuneConfig(metric="val/return", mode="max"),
        run_config=ray_tune.RunConfig(
            storage_path=str(tmp_path / "tune"),
            name="killed",
            verbose=0,
            callbacks=[killer],
            failure_config=ray_tune.FailureConfig(max_failures=1),
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_frequency=1),
        ),
    )
    (result,) = tuner.fit()
    assert len(killer.killed) == 2 and result.error is None
    rows = read_metrics(Path(result.metrics["run"]))
    assert [row["epoch"] for row in rows if row["section"] == "collect"] == [0, 1, 2, 3]
    assert result.metrics["epoch"] == 4
    stored = [row["replay/Timesteps"] for row in rows if row["section"] == "replay"]
    assert stored == [48, 96, 144, 192], "what was collected after the checkpoint is not there twice"


@pytest.mark.usefixtures("shared_processes")
def test_a_trial_that_is_given_anothers_checkpoint_goes_on_from_its_networks(
    make_experiment: Callable[..., Any], tmp_path: Path
) -> None:
    """What "pbt" does: networks and optimiser of the other, parameters and data of one's own."""
    with make_experiment(run_name="ahead", epochs=3) as ahead:
        ahead.learn(until=2)
        state = ahead.save()
        assert state == ahead.save(), "what is saved is not saved again"
        weights = torch.load(ahead.directory.latest_policy, weights_only=True)
    with make_experiment(run_name="behind", epochs=3, seed=5) as behind:
        behind.learn()
    directory = RunDirectory(tmp_path, "behind")
    assert directory.saved_epochs() == [0, 2]
    directory.adopt_training_state(state)
    assert directory.saved_epochs() == [0, 1], "its own later state is of another line"
    with make_experiment(run_name="behind", epochs=3, seed=5, learning_rate=7e-4) as behind:
        behind.start(resume=True)
        assert behind.progress.epoch == 1
        behind._ring.learners.save_policy(directory.latest_policy)
        adopted = torch.load(directory.latest_policy, weights_only=True)
        assert all(torch.equal(adopted[name], value) for name, value in weights.items())
        behind.learn()
    rows = read_metrics(directory.root)
    assert [row["epoch"] for row in rows if row["section"] == "collect"] == [0, 1, 2]
    rates = [row["train/Learning Rate"] for row in rows if row["section"] == "train"]
    assert rates[-1] == pytest.approx(7e-4 * 19 / 100)  # warming up over 100 updates, 6 an epoch
    replayed = [row["replay/Trajectories"] for row in rows if row["section"] == "replay"]
    assert replayed[-1] > replayed[1], "it kept the data that it had collected"
    with pytest.raises(ValueError, match="holds no complete training state"):
        directory.adopt_training_state(tmp_path)


@pytest.mark.usefixtures("shared_processes")
def test_learning_in_parts_is_learning_at_once(make_experiment: Callable[..., Any]) -> None:
    with make_experiment(run_name="whole", schedule="overlap") as whole:
        whole.learn()
    with make_experiment(run_name="parts", schedule="overlap") as parts:
        assert tune.epoch_of_next_validation(parts.start()) == 0
        for until in (1, 2, None):
            parts.learn(until)
        assert tune.epoch_of_next_validation(parts) == 3, "none is left"
        assert parts.newest_metrics["collect/Trajectories"] > 0
    assert rows_without_clock(parts.directory.root) == rows_without_clock(whole.directory.root)


def test_a_trial_asks_for_one_group_that_covers_all_of_its_processes(ray_instance: None, tmp_path: Path) -> None:
    config.load([write_config(tmp_path, "Experiment.num_replay_shards = 2", "Experiment.learner_cpus = 2")])
    trial = tune.trainable(tune.ConfiguredExperiment(config.snapshot(), str(tmp_path), "x"))
    request = trial.default_resource_request({"Experiment.num_rollout_workers": 2})
    shard = pytest.approx(256 << 20)
    assert request.bundles == [{"CPU": 2}, {"memory": shard}, {"memory": shard}, {"CPU": 1}, {"CPU": 1}]
    assert request.strategy == "PACK"


def test_schedulers_count_in_epochs() -> None:
    space = {"Agent.gamma": ray_tune.uniform(0.9, 0.99), "Experiment.batch_size": ray_tune.choice([16, 32])}

    def made(name: Any) -> Any:
        sweep = Sweep(params={"Agent.gamma": "uniform(0.9, 0.99)"}, scheduler=name)
        return tune.scheduler(sweep, epochs=90, val_interval=5, space=space)

    asha, pbt = made("asha"), made("pbt")
    assert (asha._time_attr, asha._max_t, asha._brackets[0]._rungs[-1][0]) == ("epoch", 90, 10)
    assert (pbt._time_attr, pbt._perturbation_interval, pbt._synch) == ("epoch", 10, True), "whole validations"
    assert pbt._hyperparam_mutations["Experiment.batch_size"] == [16, 32], "only these values are tried"
