"""Rows arrive at wandb and TensorBoard under their own names, and those that a resumed run writes again count once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from amago_ray.watch.metrics import MetricsLog, Progress, read_metrics
from amago_ray.watch.sinks import TENSORBOARD_FOLDER, TensorboardSink, WandbOptions, WandbSink


def progress_at(epoch: int) -> Progress:
    return Progress(epoch, 10 * (epoch + 1), {"A": 100 * (epoch + 1), "B": epoch + 1}, wall_s=1.5 * (epoch + 1))


def logged(run_dir: Path) -> EventAccumulator:
    """What TensorBoard shows of a run."""
    events = EventAccumulator(str(run_dir / TENSORBOARD_FOLDER), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def curve(run_dir: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in logged(run_dir).Scalars(name)]


def begin(run_dir: Path, **options: Any) -> MetricsLog:
    return MetricsLog(run_dir, resume=False, sinks=[TensorboardSink(run_dir, **options)])


def resume(run_dir: Path, epoch: int, **options: Any) -> MetricsLog:
    log = MetricsLog(run_dir, resume=True, sinks=[TensorboardSink(run_dir, **options)])
    log.rewind(epoch)
    return log


def write_gif(path: Path) -> Path:
    frames = [Image.fromarray(np.full((4, 6, 3), shade, np.uint8)) for shade in (0, 120, 240)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def test_tensorboard_shows_every_number_of_every_row(tmp_path: Path) -> None:
    log = begin(tmp_path)
    for epoch in range(3):
        log.log("collect", {"Return": float(epoch)}, progress_at(epoch))
        values = {"Loss": np.float32(0.5**epoch), "nan": float("nan")}
        log.log("train", values, progress_at(epoch))
        assert curve(tmp_path, "train/Loss")[-1] == (101 * (epoch + 1), 0.5**epoch), "at once"
    rows = read_metrics(tmp_path)
    for name in ("collect/Return", "train/Loss"):
        assert curve(tmp_path, name) == [(row["total_frames"], row[name]) for row in rows if name in row]
    for name in ("epoch", "gradient_steps", "wall_s", "frames/A", "frames/B"):
        assert curve(tmp_path, name) == [(row["total_frames"], row[name]) for row in rows[::2]], "once an epoch"
    numbers = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
    assert set(logged(tmp_path).Tags()["scalars"]) == numbers - {"total_frames"}, "which is the axis"
    log.close()


def test_what_a_resumed_run_writes_again_is_there_once(tmp_path: Path) -> None:
    log = begin(tmp_path)
    for epoch in range(6):
        log.log("train", {"Loss": float(epoch)}, progress_at(epoch))
        log.log_video("videos/validation", write_gif(tmp_path / "a.gif"), progress_at(epoch))
    log.close()
    log = resume(tmp_path, 2)
    log.log("train", {"Loss": 30.0}, progress_at(3))
    log.close()
    assert curve(tmp_path, "train/Loss") == [(101, 0), (202, 1), (303, 2), (404, 30)]
    assert shown(tmp_path, "train/Loss") == [101, 202, 303, 404]
    assert [event.step for event in logged(tmp_path).Images("videos/validation")] == [101, 202, 303]
    log = resume(tmp_path, 3)  # nothing is dropped
    log.log("train", {"Loss": 40.0}, progress_at(4))
    log.close()
    assert curve(tmp_path, "train/Loss") == [(101, 0), (202, 1), (303, 2), (404, 30), (505, 40)]


def shown(run_dir: Path, name: str) -> list[int]:
    """The steps of a curve in TensorBoard's page, which does not read as `logged` does."""
    pages = EventMultiplexer({"run": str(run_dir / TENSORBOARD_FOLDER)})
    pages.Reload()
    return [event.step for event in pages.Tensors("run", name)]


def test_what_a_resumed_run_drops_is_gone_though_it_ends_before_its_first_row(tmp_path: Path) -> None:
    """metrics.jsonl has dropped it by then: the next resume knows nothing of it."""
    log = begin(tmp_path)
    for epoch in range(5):
        log.log("train", {"Loss": float(epoch)}, progress_at(epoch))
    log.close()
    resume(tmp_path, 1).close()
    log = resume(tmp_path, 1)
    log.log("train", {"Loss": 20.0}, progress_at(2))
    log.close()
    assert curve(tmp_path, "train/Loss") == [(101, 0), (202, 1), (303, 20)]
    assert shown(tmp_path, "train/Loss") == [101, 202, 303]


def test_epochs_that_collect_nothing_are_told_apart(tmp_path: Path) -> None:
    """They have one step in common, and only some of them are dropped."""

    def log_epochs(log: MetricsLog, epochs: range, offset: float) -> None:
        for epoch in epochs:
            progress = Progress(epoch, 10 * (epoch + 1), {"A": 100})
            log.log("train", {"Loss": epoch + offset}, progress)
        log.close()

    log_epochs(begin(tmp_path), range(5), 0.0)
    log_epochs(resume(tmp_path, 2), range(3, 5), 0.5)
    assert curve(tmp_path, "train/Loss") == [(100, 0), (100, 1), (100, 2), (100, 3.5), (100, 4.5)]


def test_a_run_that_collects_nothing_is_drawn_over_updates(tmp_path: Path) -> None:
    log = begin(tmp_path, axis="gradient_steps")
    for epoch in range(3):
        log.log("train", {"Loss": float(epoch)}, Progress(epoch, 10 * (epoch + 1)))
    log.close()
    assert curve(tmp_path, "train/Loss") == [(10, 0), (20, 1), (30, 2)]
    assert "gradient_steps" not in logged(tmp_path).Tags()["scalars"]


def test_a_run_that_was_begun_without_it_is_shown_whole(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume=False)
    for epoch in range(4):
        log.log("train", {"Loss": float(epoch)}, progress_at(epoch))
    log.close()
    log = resume(tmp_path, 1)
    log.log("train", {"Loss": 20.0}, progress_at(2))
    log.close()
    assert curve(tmp_path, "train/Loss") == [(101, 0), (202, 1), (303, 20)]


def test_a_video_is_shown_as_it_is(tmp_path: Path) -> None:
    log = begin(tmp_path)
    picture = write_gif(tmp_path / "a.gif")
    log.log_video("videos/validation", picture, progress_at(1))
    log.close()
    (event,) = logged(tmp_path).Images("videos/validation")
    assert event.encoded_image_string == picture.read_bytes() and event.step == 202


def test_without_tensorboard_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amago_ray.watch.sinks.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"log_to_tensorboard=True needs .*pip install 'amago_ray\[tensorboard\]'"):
        TensorboardSink(tmp_path)


@pytest.mark.processes
def test_wandb_offline_continues_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    first = MetricsLog(tmp_path, resume=False, sinks=[WandbSink(WandbOptions("test", mode="offline"), tmp_path)])
    first.log("val", {"return": 1.0, "nan": float("nan")}, progress_at(1))
    first.log_video("videos/validation", write_gif(tmp_path / "a.gif"), progress_at(1))
    run_id = first.to_resume["wandb_run_id"]
    first.close()
    sink = WandbSink(WandbOptions("test", mode="offline", run_id=run_id), tmp_path)
    again = MetricsLog(tmp_path, resume=True, sinks=[sink])
    assert run_id is not None and again.to_resume == {"wandb_run_id": run_id}
    again.close()
    assert len(read_metrics(tmp_path)) == 1
    assert list((tmp_path / "wandb_logs").rglob(f"run-{run_id}.wandb"))
    assert list((tmp_path / "wandb_logs").rglob("media/videos/videos/*.gif"))


def test_wandb_errors_name_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with pytest.raises(ValueError, match="mode='sometimes'"):
        WandbOptions("test", mode="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="run_id='a/b'"):
        WandbSink(WandbOptions("test", mode="offline", run_id="a/b"), tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="log_to_wandb"):
        WandbSink(WandbOptions("test", mode="offline"), tmp_path)


@pytest.mark.processes
def test_wandb_and_tensorboard_are_imported_only_when_used() -> None:
    program = "import sys, amago_ray.watch.metrics; sys.exit('wandb' in sys.modules or 'tensorboard' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
