"""A sweep whose metric no trial will ever report ends at the first report, with the nearest name that is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from amago_ray.config import nearest
from amago_ray.tune.results import RETURNS, SweepResults
from amago_ray.watch.metrics import AVERAGE_RETURN


def is_unknown(metric: str, report: Mapping[str, Any]) -> bool:
    """Whether a report shows that no trial will ever report a metric, and not only that there is nothing of it yet."""
    if not report or metric in report:
        return False
    if all(name in RETURNS for name in report if "/" in name):
        return False  # of a trial that was restored after its last epoch, and has learned nothing since
    if report.get("done"):
        return True
    section, _, name = metric.partition("/")
    if section in ("val", "collect"):  # what belongs to an environment comes when that one has finished a rollout
        return f"{section}/{AVERAGE_RETURN}" in report and " in " not in name
    if section == "train":
        return "train/Total Loss" in report
    return True


def check_metric(metric: str, reports: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Raises ValueError, with the nearest name that is reported, where the sweep in `folder` ended for its metric."""
    for report in reports:
        if is_unknown(metric, report):
            results = SweepResults.read(folder)
            for trial in results.trials.values():  # of those that it ends with the sweep, Tune tells nobody
                trial.status = "stopped" if trial.status == "running" else trial.status
            results.write(folder)
            known = [name for name in report if "/" in name]
            raise ValueError(
                f"Sweep.metric={metric!r}: no trial reports it{nearest(metric, known)}; the sweep is stopped, and what "
                f"it has begun is in {folder}: remove that, or choose another --name"
            )


class StopUnknownMetric(tune.Stopper):
    """Ends a sweep at the first report that shows its metric to be misspelt."""

    def __init__(self, metric: str):
        self._metric = metric
        self._stop = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._stop |= is_unknown(self._metric, result)
        return self._stop

    def stop_all(self) -> bool:
        return self._stop
