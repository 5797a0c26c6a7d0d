"""A fixed seed gives the same run, metric for metric."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amago_ray.watch.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("shared_processes")

# Numbers of the clock: how long things took, and what is computed from that.
CLOCK = ("wall_s", "per Second", "(fraction)")


def rows_without_clock(root: Path) -> list[dict[str, Any]]:
    """Everything that a run logged, but for times, rates and fractions of time."""
    return [{name: value for name, value in row.items() if not is_clock(name)} for row in read_metrics(root)]


def is_clock(name: str) -> bool:
    return any(word in name for word in CLOCK) and name != "train/Padding (fraction of batch)"


@pytest.mark.parametrize("schedule", ["alternate", "overlap"])
def test_the_same_seed_gives_the_same_metrics(make_experiment: Callable[..., Any], schedule: str) -> None:
    logged = []
    runs = [("first", 3), ("second", 3), ("other seed", 4)]
    for name, seed in runs if schedule == "alternate" else runs[:2]:
        with make_experiment(run_name=name, schedule=schedule, seed=seed) as experiment:
            experiment.learn()
        logged.append(rows_without_clock(experiment.directory.root))
    first, second, *others = logged
    sections = [row["section"] for row in first]
    assert sections.count("collect") == sections.count("train") == 3 and sections.count("val") == 2
    assert all(len(row) > 5 for row in first)
    for a, b in zip(first, second, strict=True):
        assert a == b
    for other in others:
        differing = {name for a, b in zip(first, other, strict=True) for name in a if a[name] != b.get(name)}
        assert {"train/Total Loss", "train/Gradient Norm"} <= differing
