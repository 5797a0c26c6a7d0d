"""A run's numbers among Ray's own: every node offers them to Prometheus, and a Grafana dashboard shows them.

Ray puts `ray_` before each name. `cluster/grafana-dashboard.json` has a panel for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ray.util.metrics import Counter, Gauge

from amago_ray.watch.bounds import bound_of
from amago_ray.watch.metrics import AVERAGE_RETURN
from amago_ray.watch.run_log import RunLog
from amago_ray.watch.sinks import MetricsSink, Row

RUN = "run_name"  # the tag of all of them
# Name -> (what it is, the value of a row that it is).
GAUGES = {
    "amago_epoch": ("finished epochs", "epoch"),
    "amago_frames": ("timesteps of all environments so far", "total_frames"),
    "amago_updates": ("updates so far", "gradient_steps"),
    "amago_frames_per_second": ("timesteps per second while collecting", "collect/Frames per Second"),
    "amago_updates_per_second": ("updates per second while learning", "train/Updates per Second"),
    "amago_return": ("average return of rollouts that ended in the epoch", f"collect/{AVERAGE_RETURN}"),
    "amago_validation_return": ("average return of the newest validation", f"val/{AVERAGE_RETURN}"),
    "amago_replay_timesteps": ("timesteps in replay", "replay/Timesteps"),
    "amago_replay_trajectories": ("trajectories in replay", "replay/Trajectories"),
    "amago_replay_gigabytes": ("size of what is in replay", "replay/GB"),
    "amago_weight_staleness": ("versions of weights between acting and learning", "train/Weight Staleness (versions)"),
}
COUNTERS = {
    "amago_worker_restarts": ("rollout workers that died and were restarted", "collect/Worker Deaths"),
    "amago_environment_failures": ("environments that failed and were rebuilt", "collect/Environment Failures"),
}
BOTTLENECK, BOUND_BY = "amago_bottleneck", "bound_by"  # the gauge, and its tag
BOUNDS = ("environments", "policy", "replay", "learner", "waiting")


class RayMetricsSink(MetricsSink):
    """Rows as gauges and counters of Ray, tagged with the run's name. This process must be connected to Ray."""

    name = "Ray"

    def __init__(self, run_name: str, run_dir: Path):
        self._log = RunLog(run_dir)
        self._gauges = {name: Gauge(name, what, tag_keys=(RUN,)) for name, (what, _) in GAUGES.items()}
        self._counters = {name: Counter(name, what, tag_keys=(RUN,)) for name, (what, _) in COUNTERS.items()}
        self._bound = Gauge(BOTTLENECK, "1 for what bounds the run, 0 for the rest", tag_keys=(RUN, BOUND_BY))
        for metric in (*self._gauges.values(), *self._counters.values(), self._bound):
            metric.set_default_tags({RUN: run_name})

    def log(self, section: str, row: Row) -> None:
        self._log.refresh()  # first, as it may fail: a counter does not count a row that comes again twice
        for name, (_, source) in GAUGES.items():
            if source in row:
                self._gauges[name].set(float(row[source]) + (source == "epoch"))
        for name, (_, source) in COUNTERS.items():
            if row.get(source, 0) > 0:
                self._counters[name].inc(float(row[source]))
        bound = bound_of(self._log)
        for name in BOUNDS if bound is not None else ():
            self._bound.set(float(bound is not None and name == bound.name), {BOUND_BY: name})

    def log_video(self, name: str, path: Path, row: Row) -> None:
        """Prometheus keeps numbers alone."""

    def rewind(self, kept: Sequence[tuple[str, Row]], dropped: Sequence[tuple[str, Row]]) -> None:
        """A gauge says what is now; what it said before stays with whoever has read it."""

    def close(self) -> None:
        """Nothing is left: Ray forgets the metrics with this process."""


def exported_names() -> list[str]:
    """Names as Prometheus knows them. Counters end in `_total` there."""
    return [*(f"ray_{name}" for name in (*GAUGES, BOTTLENECK)), *(f"ray_{name}_total" for name in COUNTERS)]
