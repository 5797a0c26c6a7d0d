"""A fixed seed gives the same run, metric for metric."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import TESTS
from system.killed_run import EPOCHS, SCHEDULES, repeatable
from system.processes import assert_gone, wait_until

from amago_ray.run_directory import RunDirectory
from amago_ray.watch.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("shared_processes")

KILLS = int(os.environ.get("KILLS", "0"))

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
    assert all(len(row) > 5 for row in first if row["section"] != "time"), "that section is of the clock alone"
    of_an_epoch = experiment.train_batches_per_epoch * experiment.batch_size * experiment.num_learners
    sampled = [row["replay/Sequences Sampled"] for row in first if row["section"] == "replay"]
    assert sampled == [of_an_epoch, 2 * of_an_epoch, 3 * of_an_epoch]
    for a, b in zip(first, second, strict=True):
        assert a == b
    for other in others:
        differing = {name for a, b in zip(first, other, strict=True) for name in a if a[name] != b.get(name)}
        assert {"train/Total Loss", "train/Gradient Norm"} <= differing


class Cut(BaseException):
    """The driver is gone: nothing of it is written, told or brought to an end."""


def run_until_cut(experiment: Any, moment: int) -> bool:
    """Train, and vanish at the `moment`-th look at the processes. Returns whether the run was through before."""
    left = [moment]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Cut

    experiment.start(resume="auto")
    look = experiment._ring.check

    def check() -> None:
        look()
        count()

    experiment._ring.check = check
    try:
        experiment.learn()
    except Cut:
        return False
    finally:
        experiment.close()
    return True


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_that_is_cut_again_and_again_is_the_run_that_never_was(
    make_experiment: Callable[..., Any], schedule: str
) -> None:
    """Weights and rows are equal bit for bit; where environments are reset with every epoch, which this asks for."""
    settings = repeatable(schedule)
    whole = make_experiment(run_name="whole", **settings)
    assert run_until_cut(whole, 1 << 30)
    rng = np.random.default_rng(3)
    cuts = 0
    while not run_until_cut(cut := make_experiment(run_name="cut", **settings), int(rng.integers(1, 12))):
        cuts += 1
    assert cuts >= 3
    assert_same_run(cut.directory, whole.directory)


def assert_same_run(one: RunDirectory, other: RunDirectory) -> None:
    """Weights after every epoch, and rows."""
    assert rows_without_clock(one.root) == rows_without_clock(other.root)
    for epoch in range(EPOCHS):
        first, second = (torch.load(run.policy_epoch(epoch), weights_only=True) for run in (one, other))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items()), epoch


def run_script(folder: Path, schedule: str, moment: float | None) -> int:
    """Begin the run of `killed_run.py`, or go on with it, and SIGKILL it and all of its processes at a moment.

    moment: a number of rows, and a part of the time until the next one; None lets it come to its end.
    Returns how many rows there were then.
    """
    metrics, log = folder / "killed" / "metrics.jsonl", folder / "log"

    def rows() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0

    with open(log, "ab") as out:
        run = subprocess.Popen(
            [sys.executable, str(TESTS / "system" / "killed_run.py"), str(folder), schedule],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    family = [psutil.Process(run.pid)]
    try:
        if moment is None:
            assert run.wait(600) == 0, log.read_text()[-3000:]
            return rows()
        wait_until(lambda: rows() >= int(moment) or run.poll() is not None, "the run stands still", 600)
        time.sleep(moment % 1 * 0.4)  # a part of what is tried: nothing is waited for
        family += family[0].children(recursive=True)
    finally:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        run.wait()
    assert_gone(process.pid for process in family)
    return rows()


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("schedule", SCHEDULES if KILLS else ["overlap"])
def test_a_run_that_is_killed_again_and_again_is_the_run_that_never_was(
    make_experiment: Callable[..., Any], tmp_path: Path, schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL of the driver and all of its processes: once, or KILLS times in each schedule (`make chaos`: ten)."""
    whole = make_experiment(run_name="whole", **repeatable(schedule))
    whole.learn()
    whole.close()
    rows = len(read_metrics(whole.directory.root))
    moments = np.random.default_rng(SCHEDULES.index(schedule)).uniform(0, rows, KILLS or 1)
    killed = [run_script(tmp_path, schedule, float(moment)) for moment in sorted(moments)]
    run_script(tmp_path, schedule, None)
    with capsys.disabled():
        print(f"\n{schedule}: killed after {killed} of {rows} rows")
    assert_same_run(RunDirectory(tmp_path, "killed"), whole.directory)
