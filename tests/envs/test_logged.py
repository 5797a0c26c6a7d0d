"""What environments log about a rollout: one number per name, and nothing that is none."""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from amago_ray.envs.logged import LoggedMetrics

ALL = np.ones(1, bool)


def taken(*infos: dict[str, Any]) -> dict[str, float]:
    logged = LoggedMetrics(1)
    for info in infos:
        logged.add(0, info)
    return logged.take(ALL).get(0, {})


def test_the_last_value_of_a_rollout_counts_and_the_next_one_starts_without() -> None:
    logged = LoggedMetrics(2)
    logged.add(0, {"AMAGO_LOG_METRIC level": 1, "other": "text"})
    logged.add(0, {"AMAGO_LOG_METRIC level": 2, "AMAGO_LOG_METRIC_won": True})
    logged.add(1, {"AMAGO_LOG_METRIC level": 5})
    assert logged.take(np.array([True, False])) == {0: {"level": 2.0, "won": 1.0}}
    assert logged.take(np.array([True, True])) == {1: {"level": 5.0}}


@pytest.mark.parametrize(
    "value",
    [
        *(3, 3.0, np.int8(3), np.array(3), np.array([3.0]), np.array([[3]], np.uint8), torch.tensor([3.0]), [3]),
        *(torch.tensor(3.0, requires_grad=True), torch.tensor([3.0], dtype=torch.bfloat16)),
    ],
)
def test_one_number_is_one_number(value: Any) -> None:
    assert taken({"AMAGO_LOG_METRIC d": value}) == {"d": 3.0}


@pytest.mark.parametrize(
    "value",
    [
        *("far", None, {}, np.zeros(2), [], np.nan, -np.inf, np.array([np.nan]), 1j, 10**400, [1, [2, 3]], object()),
        *(pytest.param(10**5000, id="long"), torch.ones(2, requires_grad=True), Fraction(1, 2)),
    ],
)
def test_what_is_no_number_is_left_out_with_one_warning_that_names_the_key(value: Any) -> None:
    with pytest.warns(UserWarning, match="'AMAGO_LOG_METRIC d' is left out of the metrics") as told:
        assert taken(*[{"AMAGO_LOG_METRIC d": value, "AMAGO_LOG_METRIC e": 1.0}] * 3) == {"e": 1.0}
    assert len(told) == 1


def test_a_number_that_is_sometimes_nan_is_averaged_over_the_rest() -> None:
    logged = LoggedMetrics(2)
    with pytest.warns(UserWarning, match="nan is no number to average"):
        logged.add_batch({"AMAGO_LOG_METRIC d": np.array([2.0, np.nan])}, np.ones(2, bool))
    assert logged.take(np.ones(2, bool)) == {0: {"d": 2.0}}


@pytest.mark.parametrize("name", ["Total Return", "Episode Length"])
def test_an_environment_cannot_log_over_what_is_measured_of_every_rollout(name: str) -> None:
    with pytest.warns(UserWarning, match=f"'{name}' is measured of every rollout"):
        assert taken({f"AMAGO_LOG_METRIC {name}": 99.0, "AMAGO_LOG_METRIC e": 1.0}) == {"e": 1.0}


def test_a_batch_has_masks_or_one_dict_for_each_row() -> None:
    rows = np.array([True, True, False])
    masked = LoggedMetrics(3)
    masked.add_batch(
        {"AMAGO_LOG_METRIC d": np.array([[1.0], [2.0], [3.0]]), "_AMAGO_LOG_METRIC d": np.array([True, False, True])},
        rows,
    )
    assert masked.take(np.ones(3, bool)) == {0: {"d": 1.0}}
    listed = LoggedMetrics(3)
    listed.add_batch(np.array([{"AMAGO_LOG_METRIC d": 1.0}, None, {"AMAGO_LOG_METRIC d": 3.0}]), rows)
    assert listed.take(np.ones(3, bool)) == {0: {"d": 1.0}}


@pytest.mark.parametrize("mask", [None, True, torch.tensor([True, False]), [1, 0], "none"])
def test_a_mask_may_be_of_another_kind_or_missing(mask: Any) -> None:
    logged = LoggedMetrics(2)
    info = {"AMAGO_LOG_METRIC d": torch.tensor([1.0, 2.0])} | ({} if mask == "none" else {"_AMAGO_LOG_METRIC d": mask})
    logged.add_batch(info, np.ones(2, bool))
    everywhere = mask is None or mask is True or mask == "none"
    assert logged.take(np.ones(2, bool)) == {0: {"d": 1.0}} | ({1: {"d": 2.0}} if everywhere else {})


@pytest.mark.parametrize(
    "values", [1.0, np.array(1.0), torch.tensor(1.0), np.ones(1), [1.0, 2.0, 3.0], {0: 1.0, 1: 2.0}]
)
def test_a_batch_that_has_not_one_number_for_each_environment_is_left_out_with_one_warning(values: Any) -> None:
    logged, rows = LoggedMetrics(2), np.ones(2, bool)
    with pytest.warns(UserWarning, match="'AMAGO_LOG_METRIC d' is left out.*one number for each of 2 env") as told:
        for _ in range(3):
            logged.add_batch({"AMAGO_LOG_METRIC d": values, "AMAGO_LOG_METRIC e": np.ones(2)}, rows)
    assert logged.take(rows) == {0: {"e": 1.0}, 1: {"e": 1.0}} and len(told) == 1


@pytest.mark.parametrize("mask", [np.ones(3, bool), np.array(["yes", "no"])])
def test_a_batch_whose_mask_is_none_is_left_out_with_one_warning(mask: Any) -> None:
    logged, rows = LoggedMetrics(2), np.ones(2, bool)
    with pytest.warns(UserWarning, match="its mask '_AMAGO_LOG_METRIC d' is not of one flag for each of 2"):
        logged.add_batch({"AMAGO_LOG_METRIC d": np.ones(2), "_AMAGO_LOG_METRIC d": mask}, rows)
    assert logged.take(rows) == {}


def test_numbers_need_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert taken({"AMAGO_LOG_METRIC d": 0}) == {"d": 0.0}
