"""An hour of one run: memory, open files and files on the disk are flat after warm-up (`make soak`, SOAK_S seconds)."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil
import pytest
from system.monkey import Prey
from system.processes import wait_until

SMALL_BUFFER = (
    "Experiment.replay_capacity_gb = 0.01",  # full soon: evicting and freeing is part of it
    "Experiment.ckpt_interval = 20",
    "Experiment.call_timeout_s = 600.0",  # nobody is to be restarted because the machine is busy
    "Experiment.train_timesteps_per_epoch = 200",
    "Experiment.train_batches_per_epoch = 30",
)
GROWTH = 0.03  # of resident memory, from the middle of the time to its end
GROWTH_OF_RAY_MB = 6.0  # of its own two processes, in an hour: the raylet grows by a tenth of a megabyte a minute
OF_RAY = ("gcs_server", "raylet")
ROLES = ("driver", "ray::RolloutActor", "ray::ShardActor", "ray::LearnerActor", "gcs_server", "raylet")


def look(prey: Prey, samples: dict[str, list[tuple[float, float, int]]], at: float) -> None:
    """Note resident bytes and open files of every process of the run that has a role."""
    for process in (psutil.Process(prey.process.pid), *prey.family()):
        try:
            title = (process.cmdline() or [""])[0]
            role = "driver" if process.pid == prey.process.pid else next((r for r in ROLES if r in title), None)
            if role is not None:
                samples[f"{role} {process.pid}"].append((at, process.memory_info().rss, process.num_fds()))
        except psutil.Error:
            continue


@pytest.mark.timeout(10_000)
def test_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = float(os.environ.get("SOAK_S", "3600"))
    prey = Prey(tmp_path, 1_000_000, SMALL_BUFFER)
    samples: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    on_disk = []
    try:
        wait_until(lambda: prey.is_whole() and (prey.run / "metrics.jsonl").exists(), "the run does not start", 300)
        started = time.monotonic()
        while (at := time.monotonic() - started) < seconds:
            assert prey.process.poll() is None, prey.words
            look(prey, samples, at)
            on_disk.append((at, sum(1 for path in (prey.run / "replay").rglob("*") if path.is_file())))
            time.sleep(5)
    finally:
        prey.kill_driver()
    _draw(samples, Path(os.environ.get("SOAK_PICTURE", tmp_path / "soak.png")))
    report = {}
    for name, rows in samples.items():
        resident, files = (np.array([row[i] for row in rows], float) for i in (1, 2))
        half, last = len(rows) // 2, max(len(rows) // 10, 1)
        before = resident[half : half + last].mean()
        report[name] = {
            "MB": round(resident[-last:].mean() / 1e6, 1),
            "growth": round(float(resident[-last:].mean() / before - 1), 4),
            "growth, MB": round((resident[-last:].mean() - before) / 1e6, 1),
            "open files": [int(files[half]), int(files[-1])],
        }
    with capsys.disabled():
        print("\n" + json.dumps({"seconds": seconds, "files of replay": on_disk[-1][1], **report}, indent=2))
    assert len(report) >= 8
    assert {len(rows) for rows in samples.values()} == {len(on_disk)}, "all of them were there all the time"
    ours = [row for name, row in report.items() if not name.startswith(OF_RAY)]
    assert all(row["growth"] < GROWTH for row in ours)
    assert all(row["growth, MB"] < GROWTH_OF_RAY_MB for row in report.values() if row not in ours)
    assert all(row["open files"][1] <= row["open files"][0] + 8 for row in report.values())


def _draw(samples: dict[str, list[tuple[float, float, int]]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    colours = dict(zip(ROLES, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    for name, rows in samples.items():
        role = name.rsplit(" ", 1)[0]
        label = role if role not in axes.get_legend_handles_labels()[1] else None
        axes.plot([row[0] / 60 for row in rows], [row[1] / 1e6 for row in rows], color=colours[role], label=label, lw=1)
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, None), title="Memory of a run's processes")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
