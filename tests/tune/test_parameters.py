"""Parameters of a sweep, tried without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin
import pytest
import torch
from ray import tune
from sweep_cases import write_config

from amago_ray import config
from amago_ray.driver.probe import probe
from amago_ray.tune.parameters import ConfiguredExperiment, check_parameters, check_takes_over
from amago_ray.tune.sweep import domain


@pytest.mark.parametrize("values", [tune.grid_search([5, -1, 6]), tune.choice([5, 6, -1])])
def test_every_value_that_is_listed_is_tried_before_anything_starts(values: Any) -> None:
    def make(parameters: Mapping[str, Any]) -> Any:
        if parameters.get("batch_size", 1) < 1:
            raise ValueError(f"batch_size={parameters['batch_size']}")

    space: Any = {"gamma": tune.uniform(0, 1), "batch_size": values}
    with pytest.raises(ValueError, match="batch_size=-1"):
        check_parameters(make, space)  # type: ignore[arg-type]


def test_a_listed_value_may_go_with_the_configuration_or_with_the_other_parameters() -> None:
    made = []

    def make(parameters: Mapping[str, Any]) -> Any:
        batch_size, learners = parameters.get("batch_size", 4), parameters.get("learners", 4)
        if batch_size % learners:
            raise ValueError(f"batch_size={batch_size} with learners={learners}")
        made.append((batch_size, learners))

    space: Any = {"batch_size": tune.grid_search([6, 8, 10]), "learners": tune.grid_search([2, 4])}
    check_parameters(make, space)  # type: ignore[arg-type]
    assert made == [(6, 2), (8, 4), (10, 2), (4, 4), (4, 4)], "the configuration comes last"


@pytest.fixture
def check(tmp_path: Path) -> Any:
    """`check_takes_over` for one parameter of the smallest experiment, which stays configured."""

    def checked(name: str, text: str, *more: str) -> None:
        config.load([write_config(tmp_path, *more)])
        make = ConfiguredExperiment(config.snapshot(), str(tmp_path), "x")
        check_takes_over(make, {name: domain(name, text, tune)}, {name: text}, probe(make({})))
        assert config.snapshot() == make._gin_config, "the experiment stays configured"

    return checked


@gin.configurable
class OwnRMSprop(torch.optim.RMSprop):
    pass


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("GRUTrajEncoder.d_hidden", "choice([16, 24])", "one with 24 cannot do from one with 16: policy."),
        ("GRUTrajEncoder.n_layers", "randint(1, 3)", " was "),
        ("Experiment.traj_encoder_type", "choice(['@GRUTrajEncoder', '@FFTrajEncoder'])", " was "),
        ("Experiment.make_train_env", "choice(['@Counting', 'CartPole-v1'])", "its environments have another "),
        ("Agent.optimizer_type", "choice(['@OwnRMSprop', None])", "the run kept square_avg, step; vary it"),
    ],
)
def test_pbt_refuses_parameters_by_which_no_trial_could_go_on_from_another(
    check: Any, name: str, text: str, expected: str
) -> None:
    with pytest.raises(ValueError) as error:
        check(name, text)
    said = str(error.value)
    assert said.startswith(f"{name}={text}: under scheduler 'pbt' a trial goes on from another's training state")
    assert expected in said and "\n" not in said and said.endswith("; vary it under 'fifo' or 'asha'")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Agent.gamma", "loguniform(0.9, 0.999)"),
        ("Experiment.learning_rate", "randn(1e-3, 1e-5)"),
        ("Experiment.batch_size", "lograndint(4, 9)"),
        ("Agent.popart", "choice([True, False])"),
        ("Experiment.batch_size", "choice([4, -1])"),
        ("GRUTrajEncoder.d_hidden", "choice([-1, 16])"),
    ],
)
def test_pbt_takes_parameters_that_leave_the_state_what_it_is(check: Any, name: str, text: str) -> None:
    check(name, text)
