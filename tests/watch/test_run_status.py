"""What the files of a run say of it, at every moment of its life and with whatever is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from amago_ray.run_directory import RunDirectory
from amago_ray.watch.metrics import AVERAGE_RETURN, METRICS_FILE, MetricsLog, Progress
from amago_ray.watch.run_status import Return, run_status

STARTED = 1_000_000.0
EPOCH_S = 30.0


def make_run(folder: Path, epochs_done: int, epochs: int = 20, **settings: Any) -> RunDirectory:
    """A run of epochs of 30 s, 1,000 frames and 60 updates, that validates every second epoch."""
    directory = RunDirectory(folder, "run")
    directory.create()
    values = {"epochs": epochs, "run_name": "run", **settings}
    directory.config.write_text("".join(f"Experiment.{name} = {value!r}\n" for name, value in values.items()))
    os.utime(directory.config, (STARTED, STARTED))
    if epochs_done:
        log = MetricsLog(directory.root, resume=True)
        for epoch in range(epochs_done):
            done = epoch + 1
            progress = Progress(epoch, 60 * done, {"A": 1000 * done}, EPOCH_S * done)
            log.log("collect", {AVERAGE_RETURN: float("nan") if epoch < 1 else float(epoch)}, progress)
            log.log("train", {"Total Loss": 1.0}, progress)
            if epoch % 2 == 0:
                log.log("val", {AVERAGE_RETURN: float(epoch % 8)}, progress)
        log.close()
        written = STARTED + EPOCH_S * epochs_done
        os.utime(directory.root / METRICS_FILE, (written, written))
    return directory


def test_a_run_in_the_middle(tmp_path: Path) -> None:
    run = make_run(tmp_path, 13)
    for epoch in (0, 10):
        run.save_training_state(epoch, lambda folder: None, {})
    status = run_status(run.root, now=STARTED + 13 * EPOCH_S + 10)
    assert (status.name, status.state, status.age_s) == ("run", "running", 10.0)
    assert (status.epoch, status.epochs, status.frames, status.updates) == (13, 20, 13_000, 780)
    assert status.frames_per_s == pytest.approx(1000 / EPOCH_S) and status.updates_per_s == pytest.approx(2.0)
    assert status.wall_s == 13 * EPOCH_S and status.saved == (1, 11)
    assert status.collect_return == Return(12.0, 13) and status.val_return == Return(4.0, 13)
    assert status.best_return == Return(6.0, 7), "the first of the best"
    assert status.replay is None and status.replay_error is None


def test_the_states_of_a_life(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0)
    status = run_status(run.root, now=STARTED + 20)
    assert (status.state, status.age_s, status.epoch) == ("starting", 20.0, 0)
    assert status.frames_per_s is status.collect_return is status.best_return is None
    assert run_status(run.root, now=STARTED + 61).state == "silent"
    make_run(tmp_path, 1)
    end = STARTED + EPOCH_S
    assert run_status(run.root, now=end + 60 + 3 * EPOCH_S).state == "running"
    assert run_status(run.root, now=end + 60 + 3 * EPOCH_S + 1).state == "silent"
    resumed = end + 1000
    os.utime(run.config, (resumed, resumed))
    status = run_status(run.root, now=resumed + 5)
    assert (status.state, status.age_s, status.epoch) == ("starting", 5.0, 1)
    run.stopped.write_text(json.dumps({"epoch": 0, "reason": "enough"}))
    status = run_status(run.root, now=resumed + 10_000)
    assert (status.state, status.reason) == ("stopped", "enough")
    run.record_stop(0, "ValueError: thin ice", failed=True)
    status = run_status(run.root, now=resumed + 10_000)
    assert (status.state, status.reason) == ("failed", "ValueError: thin ice")


def test_a_run_whose_process_was_killed_is_silent_at_once(tmp_path: Path) -> None:
    """Its lock is there, and nobody has it: only where it is seen from the machine that it is of."""
    run, now = make_run(tmp_path, 2), STARTED + 2 * EPOCH_S + 1
    lock = tmp_path / ".run.lock"
    with run.locked():
        assert (run_status(run.root, now).state, run_status(run.root, now).killed) == ("running", False)
        left = lock.read_bytes()
    assert run_status(run.root, now).state == "running", "it ended in order, and its folder may be a copy"
    lock.write_bytes(left)
    assert (run_status(run.root, now).state, run_status(run.root, now).killed) == ("silent", True)
    lock.write_bytes(b"another machine")
    assert run_status(run.root, now).state == "running"
    lock.write_bytes(left)
    with run.locked():
        assert run_status(run.root, now).state == "running", "it was taken up again"
    done = make_run(tmp_path / "done", 20)
    (tmp_path / "done" / ".run.lock").write_bytes(left)
    assert run_status(done.root).state == "finished"


def test_a_run_that_has_done_all_epochs_is_finished_however_long_ago(tmp_path: Path) -> None:
    run = make_run(tmp_path, 20)
    assert run_status(run.root, now=STARTED + 1e6).state == "finished"


def test_a_long_epoch_is_no_silence(tmp_path: Path) -> None:
    """The longest of the run is what others are measured by, such as one with a validation."""
    run = make_run(tmp_path, 4)
    rows = [json.loads(line) for line in (run.root / METRICS_FILE).read_text().splitlines()]
    for row in rows:
        row["wall_s"] += 1000.0 * (row["epoch"] >= 2)
    (run.root / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = (run.root / METRICS_FILE).stat().st_mtime
    assert run_status(run.root, now=written + 3000).state == "running"
    assert run_status(run.root, now=written + 3200).state == "silent"


def test_a_torn_row_and_nulls_do_not_matter(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    with open(run.root / METRICS_FILE, "ab") as file:
        file.write(b'{"section": "col')
    assert run_status(run.root).collect_return is None
    assert run_status(run.root).val_return == Return(0.0, 1)


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path / 'other'} has no config.txt; is it the folder of a run"):
        run_status(tmp_path / "other")
