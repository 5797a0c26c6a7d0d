"""Rows survive kills, resumes and NaNs; summaries bear the names that users of AMAGO know."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amago_ray.messages import EpisodeResult
from amago_ray.watch.metrics import (
    AVERAGE_RETURN,
    METRICS_FILE,
    MetricsLog,
    Progress,
    read_metrics,
    summarize_episodes,
)


def progress_at(epoch: int) -> Progress:
    return Progress(epoch, gradient_steps=10 * epoch, frames_by_env={"A": 100 * epoch, "B": epoch}, wall_s=1.5 * epoch)


def log_epochs(run_dir: Path, epochs: range) -> None:
    log = MetricsLog(run_dir, resume=True)
    for epoch in epochs:
        log.log("train", {"loss": 1.0 / (epoch + 1)}, progress_at(epoch))
    log.close()


def test_progress_survives_its_dict() -> None:
    progress = progress_at(3)
    assert progress.total_frames == 303
    assert Progress.from_dict(json.loads(json.dumps(progress.to_dict()))) == progress


def test_a_row_is_flat_and_readable_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run", resume=False)
    values: dict[str, Any] = {"loss": np.float32(0.5), "nan": float("nan"), "inf": -np.inf}
    log.log("train", values, progress_at(2))
    assert read_metrics(tmp_path / "run") == [
        {
            "section": "train",
            "epoch": 2,
            "total_frames": 202,
            "gradient_steps": 20,
            "wall_s": 3.0,
            "frames/A": 200,
            "frames/B": 2,
            "train/loss": 0.5,
            "train/nan": None,
            "train/inf": None,
        }
    ]
    assert log.to_resume == {}
    log.close()


def test_resume_cuts_a_torn_line_and_goes_on(tmp_path: Path) -> None:
    log_epochs(tmp_path, range(3))
    with open(tmp_path / METRICS_FILE, "ab") as file:
        file.write(b'{"section": "train", "epo')
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    log_epochs(tmp_path, range(3, 4))
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]


def test_rewind_drops_later_epochs_and_goes_on(tmp_path: Path) -> None:
    log_epochs(tmp_path, range(6))
    log = MetricsLog(tmp_path, resume=True)
    log.rewind(2)
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    log.log("train", {"loss": 9.0}, progress_at(3))
    log.close()
    assert [row["train/loss"] for row in read_metrics(tmp_path)][2:] == [1 / 3, 9.0]
    assert os.listdir(tmp_path) == [METRICS_FILE]


def test_a_new_run_starts_an_empty_file(tmp_path: Path) -> None:
    log_epochs(tmp_path, range(3))
    MetricsLog(tmp_path, resume=False).close()
    assert read_metrics(tmp_path) == []


@pytest.mark.processes
def test_sigkill_loses_no_row_that_was_logged(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from amago_ray.watch.metrics import MetricsLog, Progress\n"
        "log = MetricsLog(pathlib.Path(sys.argv[1]), resume=False)\n"
        "for epoch in range(10**9):\n"
        "    log.log('train', {'loss': 1.0}, Progress(epoch))\n"
        "    print(epoch, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        for _ in range(50):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        confirmed = 50 + len([line for line in process.stdout if line.endswith("\n")])
    epochs = [row["epoch"] for row in read_metrics(tmp_path)]
    assert epochs == list(range(len(epochs))) and confirmed <= len(epochs) <= confirmed + 1


def test_summary_names_and_values() -> None:
    lake = [EpisodeResult("Lake", float(i), 10, {"Attempt 1 Success": float(i % 2)}) for i in range(5)]
    maze = [EpisodeResult("Maze", 10.0, 30), EpisodeResult("Maze", 20.0, 50, {"Keys": 3.0})]
    assert summarize_episodes(lake + maze) == {
        "Total Episodes": 7,
        "Average Total Return in Lake": 2.0,
        "Bottom Quintile Total Return in Lake": pytest.approx(0.8),
        "Average Episode Length in Lake": 10.0,
        "Average Attempt 1 Success in Lake": pytest.approx(0.4),
        "Average Total Return in Maze": 15.0,
        "Bottom Quintile Total Return in Maze": pytest.approx(12.0),
        "Average Episode Length in Maze": 40.0,
        "Average Keys in Maze": 3.0,
        AVERAGE_RETURN: 8.5,
    }
    assert summarize_episodes([]) == {}
