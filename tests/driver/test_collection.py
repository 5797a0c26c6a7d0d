"""What an epoch's collection says of itself."""

from __future__ import annotations

import json

import pytest

from amago_ray.driver.collection import CollectSummary
from amago_ray.messages import RolloutReport


def report(worker: int, num_envs: int, eps: float) -> RolloutReport:
    measured = {"eps": eps}
    return RolloutReport(worker, 0, 8, {}, [], 1, 0, 0.0, 0.0, 0.0, 1.0, exploration=measured, num_envs=num_envs)


def test_exploration_is_averaged_over_environments() -> None:
    summary = CollectSummary()
    for each in (report(0, 3, 0.9), report(1, 1, 0.4), report(0, 3, 0.2)):
        summary.add(each)
    assert summary.metrics()["Exploration eps"] == pytest.approx((3 * 0.2 + 0.4) / 4)
    kept = json.loads(json.dumps(summary.to_json()))
    assert CollectSummary.from_json(kept) == summary
    del kept["envs_by_worker"]  # of a state that is older
    assert CollectSummary.from_json(kept).metrics()["Exploration eps"] == pytest.approx(0.3)
