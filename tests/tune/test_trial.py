"""What is said of a sweep's trials, without running any."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem
from ray import tune
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult
from ray.tune import CheckpointConfig
from sweep_cases import write_config

from amago_ray import Experiment, config
from amago_ray.run_directory import RunDirectory
from amago_ray.tune import trial
from amago_ray.tune.results import SweepResults, Trial
from amago_ray.tune.sweep import Sweep
from amago_ray.tune.trial import (
    NOTHING_PLANNED,
    OWNER,
    STATE,
    SweepLog,
    _ExperimentTrial,
    _told_once,
    trainable,
)
from amago_ray.watch.metrics import Progress


@pytest.mark.parametrize("reason", [None, "a callback said so"])
def test_a_trial_that_a_callback_has_stopped_is_done(reason: str | None) -> None:
    """Its next step would go on with it."""
    trial: Any = object.__new__(_ExperimentTrial)
    trial.experiment = SimpleNamespace(
        progress=Progress(epoch=3),
        epochs=10,
        val_interval=2,
        is_due=lambda epoch, interval: epoch % interval == 0,
        learn=lambda until: None,
        newest_metrics={},
        stop_reason=reason,
        directory=SimpleNamespace(root="runs/a"),
    )
    assert trial.step()["done"] is (reason is not None)


@pytest.mark.parametrize("saved", [[], [1, 3]])
def test_a_trial_of_which_tune_knows_no_checkpoint_goes_on_from_what_its_folder_holds(saved: list[int]) -> None:
    """Tune, killed, had not written down the newest; a folder of epochs without a state is begun anew."""
    trial: Any = object.__new__(_ExperimentTrial)
    progress, begun = Progress(epoch=-1), []

    def start(**how: bool) -> None:
        begun.append(how)
        progress.epoch = max(saved, default=-1)

    trial.experiment = SimpleNamespace(
        progress=progress,
        epochs=10,
        val_interval=2,
        is_due=lambda epoch, interval: epoch % interval == 0,
        start=start,
        learn=lambda until: begun.append(until),
        newest_metrics={},
        stop_reason=None,
        directory=SimpleNamespace(root="runs/a", saved_epochs=lambda: saved),
    )
    trial.step()
    assert begun == [{"resume": bool(saved), "overwrite": not saved}, 5 if saved else 1]


@pytest.mark.parametrize(("owner", "own"), [("a", True), ("b", False), (None, False)])
def test_a_trial_knows_its_own_checkpoint(tmp_path: Path, owner: str | None, own: bool) -> None:
    """owner: the trial that saved it; None where a version did that wrote down none."""
    state, told = RunDirectory(tmp_path, "x").save_training_state(0, lambda folder: None, {}), []

    def of(name: str) -> Any:
        made: Any = object.__new__(_ExperimentTrial)
        made._trial_info, made._saved = SimpleNamespace(trial_id=name), None
        made.experiment = SimpleNamespace(
            progress=Progress(epoch=0),
            save=lambda: state,
            start=lambda resume: told.append(resume),
            directory=SimpleNamespace(
                saved_epochs=lambda: [0], create=lambda: None, adopt_training_state=lambda *given: told.append(given)
            ),
        )
        return made

    checkpoint = tmp_path / "checkpoint"
    of(owner or "b").save_checkpoint(str(checkpoint))
    if owner is None:
        (checkpoint / OWNER).unlink()
    of("a").load_checkpoint(str(checkpoint))
    assert told == [(checkpoint / STATE, own), True] and (checkpoint / STATE / "run_state.json").is_file()


def test_a_trial_whose_experiment_cannot_be_made_asks_for_what_it_takes_to_say_so() -> None:
    def make(parameters: Mapping[str, Any]) -> Any:
        raise ValueError("batch_size=-1")

    assert trainable(make).default_resource_request({"batch_size": -1}).bundles == [NOTHING_PLANNED]


@pytest.mark.parametrize(
    "statuses", [["finished"], ["finished", "failed", "running"], ["finished", "failed", "stopped"]]
)
def test_a_sweep_that_was_told_to_end_is_not_over_while_trials_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statuses: list[str]
) -> None:
    """Tune returns when it is interrupted, with all trials of the grid, also those that have not begun."""
    begun = {str(number): Trial({}, status) for number, status in enumerate(statuses)}
    results = SweepResults("val/return", "max", 2, begun)
    results.write(tmp_path)
    of_tune: Any = SimpleNamespace(fit=lambda: [SimpleNamespace(metrics={"val/return": 1.0})] * 3)
    for name in ("probe", "trial_roles", "check_fits", "survey", "_room", "disconnect"):
        monkeypatch.setattr(trial, name, lambda *given, **more: None)
    monkeypatch.setattr(trial, "connect", lambda *given: (None, False))
    monkeypatch.setattr(trial, "_tuner", lambda *given: of_tune)
    seeds = Sweep(params={"Experiment.seed": "grid_search([0, 1, 2])"})
    space: Any = {"Experiment.seed": tune.grid_search([0, 1, 2])}
    over = statuses[2:] == ["stopped"]
    with (
        contextlib.nullcontext() if over else pytest.raises(KeyboardInterrupt, match="--resume goes on with the sweep")
    ):
        trial._run_sweep(SimpleNamespace(ray_address=None), seeds, Any, space, tmp_path, resume=False)  # type: ignore


def test_pbt_tries_its_parameters_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "connect", lambda *given: pytest.fail("Ray starts"))
    config.load([write_config(tmp_path)])
    widths = Sweep(params={"GRUTrajEncoder.d_hidden": "choice([16, 24])"}, scheduler="pbt", num_samples=2)
    with pytest.raises(ValueError, match="under scheduler 'pbt' a trial goes on from another's"):
        trial.run_sweep(Experiment(), widths, "widths")  # type: ignore[call-arg]
    assert not (tmp_path / "runs").exists()


def test_checkpoints_that_tune_has_deleted_are_not_deleted_again(tmp_path: Path) -> None:
    """What Tune wrote down last, before it was killed, may name some of them."""
    kept = _CheckpointManager(CheckpointConfig(num_to_keep=2))
    for number in range(3):
        folder = tmp_path / f"checkpoint_{number}"
        if number == 2:  # the first one that is saved after the sweep goes on
            (tmp_path / "checkpoint_0").rmdir()
            trial: Any = SimpleNamespace(run_metadata=SimpleNamespace(checkpoint_manager=kept))
            SweepLog(tmp_path, SweepResults("val/return", "max", 4)).on_trial_start(1, [trial], trial)
        folder.mkdir()
        kept.register_checkpoint(_TrainingResult(tune.Checkpoint(str(folder), LocalFileSystem()), {}))
    assert [Path(each.checkpoint.path).name[-1] for each in kept.best_checkpoint_results] == ["1", "2"]
    assert Path(kept.latest_checkpoint_result.checkpoint.path).name[-1] == "2"


def test_a_trials_own_epochs_say_whether_it_was_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = SweepLog(tmp_path, SweepResults("val/return", "max", epochs=2))
    log.setup()
    assert SweepResults.read(tmp_path).trials == {}, "there is a record from the beginning on"
    for name, epoch in (("a", 3), ("b", 2)):
        trial: Any = SimpleNamespace(trial_id=name, config={"Experiment.epochs": 3}, status="RUNNING")
        log.on_trial_result(1, [trial], trial, {"epoch": epoch, "epochs": 3, "val/return": 0.0})
        log.on_trial_complete(1, [trial], trial)
        assert f"epoch    {epoch}/3 " in capsys.readouterr().out
    assert [trial.status for trial in SweepResults.read(tmp_path).trials.values()] == ["finished", "stopped"]


def test_a_failure_that_a_trial_survives_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = tmp_path / "error.txt"
    error.write_text("Traceback (most recent call last):\n  in train\nRuntimeError: no luck\n")
    trial: Any = SimpleNamespace(trial_id="a", config={}, error_file=str(error))
    log = SweepLog(tmp_path, SweepResults("val/return", "max", epochs=2))
    log.on_trial_recover(1, [trial], trial)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("trial a goes on from its newest checkpoint") and "after it failed: RuntimeError: no" in line
    assert not (tmp_path / "sweep.json").exists(), "it has not ended"


def test_what_tune_says_of_an_interruption_is_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_tune = logging.getLogger("ray.tune.tune")
    monkeypatch.setattr(of_tune, "propagate", False)
    monkeypatch.setattr(of_tune, "handlers", [caplog.handler])
    with _told_once():
        of_tune.error("Trials did not complete: %s", ["a"])
        of_tune.warning("Experiment has been interrupted, but the most recent state was saved.")
        of_tune.error("Experiment state snapshotting failed:")
    of_tune.error("Trials did not complete: %s", ["b"])
    assert [record.getMessage() for record in caplog.records] == [
        "Experiment state snapshotting failed:",
        "Trials did not complete: ['b']",
    ]
