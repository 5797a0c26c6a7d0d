"""What a sweep goes on with, and what it refuses."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import gin
import pytest
from ray import tune
from sweep_cases import write_config

from amago_ray import Experiment, config
from amago_ray.settings import ExperimentSettings
from amago_ray.tune.results import SweepResults
from amago_ray.tune.resuming import (
    MAY_CHANGE,
    TUNE_FOLDER,
    check_resumable,
    number_of_trials,
    plain_settings,
    settings_of,
)
from amago_ray.tune.sweep import Sweep


def test_a_sweep_has_a_trial_for_each_point_of_its_grid() -> None:
    space: Any = {"a": tune.grid_search([1, 2]), "b": tune.uniform(0, 1), "c": tune.grid_search([1, 2, 3])}
    assert number_of_trials(Sweep(params={"b": "uniform(0, 1)"}, num_samples=2), space) == 12


def test_a_sweep_goes_on_with_the_settings_that_it_was_begun_with(tmp_path: Path) -> None:
    begun = Sweep(params={"Agent.gamma": "uniform(0.9, 0.99)"}, num_samples=2)
    with pytest.raises(ValueError, match="holds no sweep that could go on"):
        check_resumable(tmp_path, begun, {})
    (tmp_path / TUNE_FOLDER).mkdir()
    (tmp_path / TUNE_FOLDER / "tuner.pkl").touch()
    check_resumable(tmp_path, begun, {})
    SweepResults("val/return", "max", 4).write(tmp_path)
    check_resumable(tmp_path, begun, {})  # of a version that kept no settings
    SweepResults("val/return", "max", 4, settings=plain_settings(begun)).write(tmp_path)
    check_resumable(tmp_path, begun, {})
    for changes, said in (
        ({"num_samples": 4}, "Sweep.num_samples=2, and now it is 4"),
        ({"scheduler": "asha"}, "Sweep.scheduler='fifo', and now it is 'asha'"),
        ({"metric": "collect/return"}, "Sweep.metric='val/return'"),
        ({"params": {"Agent.tau": "uniform(0, 1)"}}, "Sweep.params={'Agent.gamma'"),
    ):
        changed: Any = {"params": begun.params, "num_samples": 2} | changes
        with pytest.raises(ValueError) as error:
            check_resumable(tmp_path, Sweep(**changed), {})
        assert said in str(error.value) and "\n" not in str(error.value)


def test_a_sweep_goes_on_with_the_experiment_that_it_was_begun_with(tmp_path: Path) -> None:
    """All that its trials have in common: another table would rank two experiments together."""
    varied = {"Agent.gamma": "uniform(0.9, 0.99)"}

    def now(*more: str) -> dict[str, str]:
        gin.clear_config()
        config.load([write_config(tmp_path, *more)])
        config.snapshot()
        return settings_of(Experiment(), varied)  # type: ignore[call-arg]

    sweep, begun = Sweep(params=varied), now()
    assert begun["Experiment.make_train_env"] == "@Counting" and begun["Counting.episode_length"] == "6"
    (tmp_path / TUNE_FOLDER).mkdir()
    (tmp_path / TUNE_FOLDER / "tuner.pkl").touch()
    results = SweepResults("val/return", "max", 4, settings=plain_settings(sweep))
    results.write(tmp_path)
    check_resumable(tmp_path, sweep, now("Experiment.batch_size = 5"))  # of a version that did not keep it
    results.experiment = begun
    results.write(tmp_path)
    for same in (
        (),
        ("Experiment.l2_coeff = 1e-3",),  # as it is
        ("Agent.gamma = 0.5",),  # which is varied
        ("Experiment.num_rollout_workers = 2", "Experiment.call_timeout_s = 99", "Experiment.run_name = 'other'"),
    ):
        check_resumable(tmp_path, sweep, now(*same))
    for changes, said in (
        (("Counting.episode_length = 7",), "Counting.episode_length=6, and now it is 7: give"),
        (("Agent.tau = 0.5",), "Agent.tau not set, and now it is 0.5: give"),
        (
            ("Experiment.batch_size = 5", "Experiment.make_train_env = 'CartPole-v1'"),
            "Experiment.batch_size=4, and now it is 5; with Experiment.make_train_env=@Counting, and now it is "
            "'CartPole-v1'; with Experiment.make_val_env=@Counting, and now it is 'CartPole-v1': give",
        ),
    ):
        with pytest.raises(ValueError) as error:
            check_resumable(tmp_path, sweep, now(*changes))
        assert f"was begun with {said}" in str(error.value) and "\n" not in str(error.value)


def test_settings_of_other_versions_are_no_difference(tmp_path: Path) -> None:
    gin.clear_config()
    config.load([write_config(tmp_path)])
    made = Experiment()  # type: ignore[call-arg]
    begun = settings_of(made, {})
    sweep = Sweep(params={"Agent.gamma": "uniform(0.9, 0.99)"})
    (tmp_path / TUNE_FOLDER).mkdir()
    (tmp_path / TUNE_FOLDER / "tuner.pkl").touch()
    SweepResults("val/return", "max", 4, experiment=begun | {"Experiment.of_before": "1"}).write(tmp_path)
    check_resumable(tmp_path, sweep, begun | {"Experiment.of_later": "1"})


def test_what_may_change_is_a_setting() -> None:
    assert set(MAY_CHANGE) <= {field.name for field in fields(ExperimentSettings)}
