"""A sweep's settings and its search space written as text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray import tune

from amago_ray.tune.sweep import DISTRIBUTIONS, Sweep, binding, domain, parse, split_param

GAMMA = {"Agent.gamma": "loguniform(0.9, 0.999)"}


@pytest.mark.parametrize(
    "text",
    [
        "uniform(1, 2)",
        "quniform(1, 2, 0.5)",
        "loguniform(1e-4, 1e-2)",
        "qloguniform(1e-4, 1e-2, 1e-4)",
        "randn()",
        "randint(1, 9)",
        "lograndint(1, 9)",
        "choice(['@GRUTrajEncoder', 3])",
        "grid_search([1, 2])",
    ],
)
def test_every_distribution_of_the_table_is_one_of_tune(text: str) -> None:
    values = domain("x", text, tune)
    value = values["grid_search"][0] if isinstance(values, dict) else values.sample()
    assert binding("x", value).startswith("x = ")
    assert parse("x", text)[0] in DISTRIBUTIONS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("logunifrom(1, 2)", "did you mean 'loguniform'"),
        ("uniform(1)", "takes 2 arguments or more"),
        ("uniform(low=1, high=2)", "plain arguments"),
        ("choice(1, 2)", "takes one list of values"),
        ("uniform(1,", "this is no expression"),
        ("0.5", "not a call"),
        ("uniform(open('x'), 2)", "Agent.gamma=uniform"),
        ("loguniform(-1, 2)", "Agent.gamma=loguniform"),
        ("choice([GRUTrajEncoder])", "[GRUTrajEncoder] is no value: put names and text in quotes"),
        ("choice([])", "takes a list with a value in it"),
        ("grid_search([])", "takes a list with a value in it"),
        ("uniform(1, 0)", "1 is not below 0"),
        ("randint(5, 5)", "5 is not below 5"),
        ("quniform(0.9, 0.99, 0)", "multiples of 0, which must be above 0"),
        ("uniform(0, 1e999)", "Agent.gamma=uniform"),
        ("randn(0, -1)", "Agent.gamma=randn"),
        ("uniform('a', 'b')", "'a' is no number"),
    ],
)
def test_mistakes_in_a_distribution(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r"Agent\.gamma=") as error:
        domain("Agent.gamma", text, tune)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"params": {}}, "a sweep needs a parameter"),
        ({"mode": "maximum"}, "Sweep.mode='maximum': use one of 'max', 'min'"),
        ({"scheduler": "bohb"}, "Sweep.scheduler='bohb'"),
        ({"seed": 2**32}, "Sweep.seed=4294967296: it must be an integer of 0 or more, and of 4,294,967,295 at most"),
        ({"seed": -1}, "Sweep.seed=-1: it must be an integer of 0 or more"),
        ({"num_samples": 0}, "Sweep.num_samples=0: it must be an integer of 1 or more"),
        ({"reduction_factor": 1}, "Sweep.reduction_factor=1"),
        ({"max_concurrent": 0}, "Sweep.max_concurrent=0"),
        ({"scheduler": "pbt", "num_samples": 4, "max_concurrent": 2}, "Sweep.max_concurrent=2: scheduler 'pbt'"),
        ({"scheduler": "pbt", "params": {"Experiment.seed": "grid_search([1])"}}, "does not allow: use choice"),
        ({"scheduler": "pbt", "params": {"Experiment.epochs": "randint(4, 9)"}}, "changes parameters while trials run"),
        ({"params": ["Agent.gamma"]}, "Sweep.params=['Agent.gamma']: write {'Agent.gamma': 'loguniform"),
        ({"params": {"Agent.gamma": [0.9, 0.99]}}, "Sweep.params['Agent.gamma']=[0.9, 0.99]: write"),
        ({"params": {"Agent.gamma": 0.9}}, "Sweep.params['Agent.gamma']=0.9: write"),
        ({"params": {"Experiment.run_name": "choice(['a'])"}}, "Experiment.run_name=choice(['a']): the sweep sets it"),
        ({"params": {"amago_ray.experiment.Experiment.verbose": "choice([True])"}}, "the sweep sets it itself"),
    ],
)
def test_mistakes_in_settings(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError) as error:
        Sweep(**({"params": GAMMA} | changes))
    assert expected in str(error.value)


def test_a_misspelt_setting() -> None:
    with pytest.raises(TypeError, match=r"Sweep has no setting 'num_sample'; did you mean 'num_samples'\?"):
        Sweep(params=GAMMA, num_sample=3)  # type: ignore[call-arg]


def test_numbers_of_numpy_become_pythons_own() -> None:
    sweep = Sweep(params=GAMMA, num_samples=np.int64(3), synchronous=np.bool_(False), seed=np.int64(1))
    assert type(sweep.num_samples) is type(sweep.seed) is int and sweep.synchronous is False


def test_values_as_gin_writes_them() -> None:
    assert binding("Agent.gamma", np.float64(0.5)) == "Agent.gamma = 0.5"
    assert binding("Experiment.traj_encoder_type", "@GRUTrajEncoder") == (
        "Experiment.traj_encoder_type = @GRUTrajEncoder"
    )
    assert binding("Experiment.schedule", "overlap") == "Experiment.schedule = 'overlap'"
    assert binding("Multigammas.discrete", [0.9]) == "Multigammas.discrete = [0.9]"


def test_an_option_is_a_name_and_a_distribution() -> None:
    assert split_param("Agent.gamma = uniform(0.9, 0.99)") == ("Agent.gamma", "uniform(0.9, 0.99)")
    with pytest.raises(ValueError, match="write NAME=DISTRIBUTION"):
        split_param("Agent.gamma")
