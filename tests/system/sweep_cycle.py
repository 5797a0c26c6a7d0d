"""Whole sweeps by the command line, some minutes long: `make test-sweeps`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
from conftest import TESTS
from PIL import Image
from sweep_cases import trials, write_config
from system.processes import assert_gone, wait_until

from amago_ray.watch.metrics import read_metrics

MINUTES = 60.0
PARAMS = ("--param", "Agent.gamma=loguniform(0.9, 0.999)", "--param", "Experiment.batch_size=choice([4, 8])")
# Every trial has another; returns of Counting are all the same.
METRIC = ("--metric", "train/Critic Loss", "--mode", "min")


def command(file: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "amago_ray.train", "tune", "--config", str(file), *PARAMS, *METRIC, *more]


def test_asha_of_eight_trials_whose_driver_is_killed(tmp_path: Path) -> None:
    """Trials wait their turn; the same command with --resume runs what is left, and what was under way goes on."""
    file = write_config(tmp_path, "Sweep.grace_epochs = 1", "Sweep.reduction_factor = 2")
    arguments = command(file, "--scheduler", "asha", "--num-samples", "8", "--max-concurrent", "1")
    sweep = tmp_path / "runs" / "tiny_sweep"
    run = subprocess.Popen(arguments, cwd=TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:

        def third_trial_has_reported() -> bool:
            assert run.poll() is None, run.communicate()[0]
            return len(trials(sweep)) >= 3

        wait_until(third_trial_has_reported, "three trials have not begun", 5 * MINUTES)
        family = [child.pid for child in psutil.Process(run.pid).children(recursive=True)]
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert_gone(family, 3 * MINUTES)
    before = trials(sweep)
    resumed = subprocess.run(
        [*arguments, "--resume"], cwd=TESTS.parent, capture_output=True, text=True, timeout=10 * MINUTES
    )
    print(resumed.stdout)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    after = trials(sweep)
    assert len(after) == 8 and before.keys() <= after.keys()
    assert {entry["status"] for entry in after.values()} == {"finished", "stopped"}, "ASHA has stopped some"
    for name, entry in after.items():
        epochs = [row["epoch"] for row in read_metrics(sweep / name) if row["section"] == "collect"]
        assert epochs == list(range(entry["epoch"])), "no epoch is missing or there twice"
    with Image.open(sweep / "sweep.png") as image:
        assert image.width > image.height


def test_ctrl_c_does_not_look_like_success_and_the_sweep_goes_on_afterwards(tmp_path: Path) -> None:
    file = write_config(tmp_path, "Experiment.epochs = 40")
    arguments, sweep = command(file, "--num-samples", "1"), tmp_path / "runs" / "tiny_sweep"
    run = subprocess.Popen(arguments, cwd=TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: bool(trials(sweep)) or run.poll() is not None, "no trial has begun", 5 * MINUTES)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=3 * MINUTES)
    assert run.returncode == 130, said
    assert "amago-ray: stopped; --resume goes on" in said
    ((name, entry),) = trials(sweep).items()
    assert entry["status"] == "running" and entry["epoch"] < 40
    resumed = subprocess.run([*arguments, "--resume"], cwd=TESTS.parent, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    ((same, entry),) = trials(sweep).items()
    assert (same, entry["status"], entry["epoch"]) == (name, "finished", 40)


def test_pbt_of_four_trials(tmp_path: Path) -> None:
    """Those that are behind go on from a copy of one that is ahead, with other parameters."""
    file = write_config(tmp_path, "Experiment.epochs = 4", "Sweep.perturb_epochs = 2")
    done = subprocess.run(
        command(file, "--scheduler", "pbt", "--num-samples", "4"),
        cwd=TESTS.parent, capture_output=True, text=True, timeout=10 * MINUTES,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    sweep = tmp_path / "runs" / "tiny_sweep"
    found = trials(sweep)
    assert len(found) == 4 and all(entry["epoch"] == 4 for entry in found.values())
    (log,) = (sweep / "tune").glob("pbt_global.txt")
    assert log.read_text().count("\n") >= 1, "one trial at least went on from another"
    assert all(0.9 <= entry["params"]["Agent.gamma"] <= 0.999 for entry in found.values())
    assert all(entry["params"]["Experiment.batch_size"] in (4, 8) for entry in found.values())
