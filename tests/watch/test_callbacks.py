"""The callbacks that come along, over a run that a test plays: what they keep, draw, write down, when they stop it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from amago_ray.run_directory import RunDirectory
from amago_ray.watch.callbacks import Callback, JobProgress, KeepBestPolicy, RunView, StopAtReturn, ValidationVideo
from amago_ray.watch.metrics import AVERAGE_RETURN, Progress

VAL, COLLECT = f"val/{AVERAGE_RETURN}", f"collect/{AVERAGE_RETURN}"


class PlayedRun(RunView):
    """A run of which a test says what happens. Policies are the text of their epoch."""

    def __init__(self, folder: Path, epochs: int = 10):
        self.epochs, self.directory = epochs, RunDirectory(folder, "run")
        self.directory.create()
        self.now = Progress(epoch=-1)
        self.logged: dict[str, float] = {}
        self.videos: list[tuple[str, Path]] = []
        self.reason: str | None = None

    @property
    def progress(self) -> Progress:
        return self.now

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.logged

    def evaluate(self, make_env: Any, **options: Any) -> dict[str, float]:
        raise NotImplementedError

    def policy(self) -> Any:
        raise NotImplementedError

    def save_policy(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"policy of epoch {self.epoch}")

    def record_gif(self, path: Path) -> None:
        self.save_policy(path)

    def log_video(self, name: str, path: Path) -> None:
        self.videos.append((name, path))

    def stop(self, reason: str) -> None:
        self.reason = reason

    @property
    def stop_reason(self) -> str | None:
        return self.reason

    def play(self, callback: Callback, epoch: int, **logged: float) -> None:
        """One epoch with a validation, which logs val and collect returns, or anything else."""
        names = {"val": VAL, "collect": COLLECT}
        self.now = Progress(epoch, 10 * (epoch + 1), {"A": 100 * (epoch + 1)}, wall_s=2.0 * (epoch + 1))
        self.logged |= {names.get(name, name): value for name, value in logged.items()}
        callback.after_collection(self)
        callback.after_learning(self)
        callback.after_validation(self)
        callback.after_epoch(self)


@pytest.fixture
def run(tmp_path: Path) -> PlayedRun:
    return PlayedRun(tmp_path)


def test_a_run_stops_at_its_return_and_not_before(run: PlayedRun) -> None:
    stop = StopAtReturn(2.0)
    stop.on_start(run)
    run.play(stop, 0, collect=5.0)
    run.play(stop, 1, val=1.99)
    run.play(stop, 2, val=math.nan)
    assert run.reason is None
    run.play(stop, 3, val=2.0)
    assert run.reason == "val/return = 2 has reached 2"


def test_any_metric_may_stop_it(run: PlayedRun) -> None:
    stop = StopAtReturn(0.5, metric="val/Average Attempt 3 Success in Lake")
    run.play(stop, 0, val=9.0)  # this environment has not finished a rollout yet
    assert run.reason is None
    run.play(stop, 1, **{"val/Average Attempt 3 Success in Lake": 0.75})
    assert run.reason is not None


@pytest.mark.parametrize("callback", [StopAtReturn(1.0, "val/retrun"), KeepBestPolicy("val/retrun")])
def test_a_misspelt_metric_is_answered_by_the_nearest(run: PlayedRun, callback: Callback) -> None:
    run.play(callback, 0)  # nothing is logged yet
    with pytest.raises(ValueError, match=r"metric='val/retrun': nothing of this name is logged.*'val/return'"):
        run.play(callback, 1, val=1.0)
    with pytest.raises(ValueError, match=r"did you mean 'train/Total Loss'"):
        run.play(StopAtReturn(1.0, "train/Totl Loss"), 1, **{"train/Total Loss": 1.0})


def test_the_best_policy_is_kept_over_worse_ones_and_a_resume(run: PlayedRun) -> None:
    best, folder = run.directory.best_policy, run.directory.best_policy.parent
    keep = KeepBestPolicy()
    keep.on_start(run)
    for epoch, value in enumerate([math.nan, 1.0, 3.0, 2.0, 3.0]):
        run.play(keep, epoch, val=value)
        assert best.exists() == (epoch > 0)
    assert best.read_text() == "policy of epoch 2"
    about = json.loads((folder / "policy.json").read_text())
    assert about == {"epoch": 2, "metric": "val/return", "value": 3.0}

    resumed = KeepBestPolicy()
    resumed.on_start(run)
    run.play(resumed, 5, val=2.5)
    assert best.read_text() == "policy of epoch 2"
    run.play(resumed, 6, val=3.5)
    assert best.read_text() == "policy of epoch 6"
    other = KeepBestPolicy("collect/return")  # cannot be compared with what is there
    other.on_start(run)
    run.play(other, 7, collect=-1.0)
    assert best.read_text() == "policy of epoch 7"


def test_the_same_object_serves_another_run(tmp_path: Path) -> None:
    keep, first, second = KeepBestPolicy(), PlayedRun(tmp_path / "a"), PlayedRun(tmp_path / "b")
    for run, value in ((first, 9.0), (second, 1.0)):
        keep.on_start(run)
        run.play(keep, 0, val=value)
        assert run.directory.best_policy.exists()


@pytest.mark.parametrize("resume_at", [None, 14])
def test_a_video_with_the_first_validation_of_every_ten_epochs(run: PlayedRun, resume_at: int | None) -> None:
    video = ValidationVideo(10)
    video.on_start(run)
    for epoch in range(0, 40, 4):
        if resume_at is not None and epoch > resume_at:
            run.now, video, resume_at = Progress(resume_at), ValidationVideo(10), None
            video.on_start(run)
        run.play(video, epoch)
    folder = run.directory.root / "videos"
    drawn = [0, 12, 20, 32]
    assert run.videos == [("videos/validation", folder / f"epoch_{epoch}.gif") for epoch in drawn]
    assert (folder / "epoch_12.gif").read_text() == "policy of epoch 12"


def test_a_video_of_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="does not render"):
        ValidationVideo().check(lambda: gym.make("CartPole-v1"))
    ValidationVideo().check("CartPole-v1")
    with pytest.raises(ValueError, match=r"ValidationVideo.every=0: it must be 1 or more"):
        ValidationVideo(0)


@pytest.mark.parametrize("reason", [None, "enough"])
def test_a_job_scheduler_reads_how_far_the_run_is(
    run: PlayedRun, capsys: pytest.CaptureFixture[str], reason: str | None
) -> None:
    job, before = JobProgress(stdout=True), time.time()
    job.on_start(run)
    run.play(job, 0, collect=1.5, val=math.nan)
    run.reason = reason
    job.on_end(run)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert json.loads((run.directory.root / "progress.json").read_text()) == rows[-1]
    assert [row["state"] for row in rows] == ["running", "running", "finished" if reason is None else "stopped"]
    assert [row["epoch"] for row in rows] == [0, 1, 1]
    assert before - 1 <= rows[0].pop("time") <= rows[1].pop("time") <= rows[2].pop("time") <= time.time() + 1
    expected = {"run": "run", "reason": None, "epochs": 10, "frames": 100, "updates": 10, "wall_s": 2.0}
    assert rows[1] == expected | {"state": "running", "epoch": 1, "collect_return": 1.5, "val_return": None}
    assert rows[2]["reason"] == reason


def test_nothing_is_printed_unless_asked_for(run: PlayedRun, capsys: pytest.CaptureFixture[str]) -> None:
    JobProgress().on_start(run)
    assert capsys.readouterr().out == ""
