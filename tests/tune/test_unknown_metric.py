"""A metric that will never come, told from one that has not come yet."""

from __future__ import annotations

from typing import Any

import pytest

from amago_ray.tune.unknown_metric import StopUnknownMetric, is_unknown
from amago_ray.watch.metrics import AVERAGE_RETURN

BEGUN: dict[str, Any] = {"epoch": 1, "val/return": 0.1, "collect/return": float("nan"), "collect/Frames per Second": 9}
LEARNED = BEGUN | {f"{part}/{AVERAGE_RETURN}": 0.1 for part in ("val", "collect")} | {"train/Total Loss": 1.0}

NOTHING_LEFT = {"epoch": 4, "val/return": float("nan"), "collect/return": float("nan"), "done": True}


@pytest.mark.parametrize(
    ("metric", "report", "unknown"),
    [
        ("val/return", BEGUN, False),
        ("val/retrun", LEARNED, True),
        ("val/retrun", BEGUN | {f"val/{AVERAGE_RETURN}": 0.1}, True),
        ("retrun", BEGUN, True),
        ("valid/return", BEGUN, True),
        ("train/Totl Loss", BEGUN, False),
        ("train/Totl Loss", LEARNED, True),
        ("collect/Average Total Return", BEGUN, False),
        ("val/Average Success in Lake", LEARNED, False),
        ("val/Average Success in Lake", LEARNED | {"done": True}, True),
        ("val/retrun", {}, False),
        ("train/Total Loss", NOTHING_LEFT, False),
        ("val/Average Success in Lake", NOTHING_LEFT, False),
    ],
)
def test_a_metric_that_will_never_come_is_told_from_one_that_has_not_come_yet(
    metric: str, report: dict[str, Any], unknown: bool
) -> None:
    assert is_unknown(metric, report) is unknown
    stop = StopUnknownMetric(metric)
    assert stop("trial", report) is unknown and stop.stop_all() is unknown
