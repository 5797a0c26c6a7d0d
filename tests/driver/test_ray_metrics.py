"""A run's numbers among Ray's: what is set of which row, what Prometheus reads, and what the dashboard asks for."""

from __future__ import annotations

import json
import re
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import TESTS

from amago_ray.driver.ray_metrics import BOTTLENECK, COUNTERS, GAUGES, RayMetricsSink, exported_names
from amago_ray.watch.metrics import AVERAGE_RETURN, MetricsLog, Progress

DASHBOARD = json.loads((TESTS.parent / "cluster" / "grafana-dashboard.json").read_text(encoding="utf-8"))
EXPOSED_WITHIN_S = 60.0  # Ray collects them every few seconds


def log_an_epoch(folder: Path, run_name: str) -> None:
    """One epoch in which workers were busy for 3 s of 4 s, in their environments mostly."""
    log = MetricsLog(folder, resume=False, sinks=[RayMetricsSink(run_name, folder)])
    progress = Progress(0, 20, {"Lake": 300}, 4.0)
    shares = {"Time in Environments (fraction)": 0.8, "Time in Policy (fraction)": 0.1}
    collect = {"Frames per Second": 100.0, AVERAGE_RETURN: 0.5, "Worker Deaths": 2, "Environment Failures": 1}
    log.log("collect", collect | shares, progress)
    log.log("train", {"Updates per Second": 20.0, "Weight Staleness (versions)": 1.5}, progress)
    log.log("replay", {"Timesteps": 300, "Trajectories": 12, "GB": 0.25}, progress)
    log.log("val", {AVERAGE_RETURN: 0.75}, progress)
    log.close()


VALUES = {
    "epoch": 1.0,
    "frames": 300.0,
    "updates": 20.0,
    "frames_per_second": 100.0,
    "updates_per_second": 20.0,
    "return": 0.5,
    "validation_return": 0.75,
    "replay_timesteps": 300.0,
    "replay_trajectories": 12.0,
    "replay_gigabytes": 0.25,
    "weight_staleness": 1.5,
    "worker_restarts_total": 2.0,
    "environment_failures_total": 1.0,
}


def exposed(run_name: str) -> dict[str, float]:
    """What Prometheus would read of a run: name -> value, of the bottleneck the tag that is 1."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if f'run_name="{run_name}"' in line]
    found = {}
    for line in lines:
        name, tags, value = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line).groups()  # type: ignore[union-attr]
        bound = re.search(r'bound_by="(\w+)"', tags)
        found[name if bound is None else f"{name}:{bound[1]}"] = float(value)
    return found


@pytest.mark.processes
def test_prometheus_reads_them(ray_instance: None, tmp_path: Path) -> None:
    run_name = uuid.uuid4().hex
    log_an_epoch(tmp_path, run_name)
    expected = {f"ray_amago_{name}": value for name, value in VALUES.items()}
    expected |= {f"ray_{BOTTLENECK}:{name}": 0.0 for name in ("policy", "replay", "learner", "waiting")}
    expected[f"ray_{BOTTLENECK}:environments"] = 1.0
    deadline = time.monotonic() + EXPOSED_WITHIN_S
    found: dict[str, float] = {}
    while time.monotonic() < deadline and found != expected:
        found = exposed(run_name)
        time.sleep(0.2)
    assert found == expected


def expressions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["expr"]] if "expr" in node else [])
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def test_the_dashboard_asks_for_what_there_is_and_shows_all_of_it() -> None:
    asked = {name for text in expressions(DASHBOARD) for name in re.findall(r"\bray_amago_\w+", text)}
    assert asked == set(exported_names())
    assert set(VALUES) == {name.removeprefix("ray_amago_") for name in exported_names()} - {"bottleneck"}
    assert len({*GAUGES, *COUNTERS}) == len(VALUES)
    assert all('{run_name=~"$run_name"}' in text for text in expressions(DASHBOARD))
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["run_name"]["definition"] == "label_values(ray_amago_epoch, run_name)"
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(set(ids)) == len(places)
