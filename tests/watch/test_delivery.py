"""A place beside metrics.jsonl that refuses rows gets them later; neither the file nor another place lacks any."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from watch.test_sinks import curve, logged, progress_at, write_gif

from amago_ray.watch import delivery as module
from amago_ray.watch.metrics import MetricsLog, read_metrics
from amago_ray.watch.sinks import MetricsSink, Row, TensorboardSink

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Place(MetricsSink):
    """Refuses everything while it has a `fault`."""

    name = "a place"

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.losses: list[float] = []
        self.rewound: list[tuple[list[int], list[int]]] = []
        self.videos: list[str] = []
        self.closed = 0

    def _may_refuse(self) -> None:
        if self.fault is not None:
            raise self.fault

    def log(self, section: str, row: Row) -> None:
        self._may_refuse()
        self.losses.append(row["train/Loss"])

    def log_video(self, name: str, path: Path, row: Row) -> None:
        self._may_refuse()
        self.videos.append(name)

    def rewind(self, kept: Sequence[tuple[str, Row]], dropped: Sequence[tuple[str, Row]]) -> None:
        self._may_refuse()
        epochs = [[int(row["epoch"]) for _, row in rows] for rows in (kept, dropped)]
        self.rewound.append((epochs[0], epochs[1]))

    def close(self) -> None:
        self.closed += 1
        self._may_refuse()


class Scene:
    """A log with two places, of which the first is to fail."""

    def __init__(self, folder: Path):
        self.first, self.second, self.said = Place(), Place(), list[str]()
        self.folder = folder
        self.log = MetricsLog(folder, resume=False, sinks=[self.first, self.second], say=self.said.append)

    def epochs(self, epochs: range) -> None:
        for epoch in epochs:
            assert self.log.log("train", {"Loss": float(epoch)}, progress_at(epoch)) is None

    def in_file(self) -> list[float]:
        return [row["train/Loss"] for row in read_metrics(self.folder)]


@pytest.mark.parametrize("fault", [ConnectionResetError("Connection lost"), FULL, KeyError("x"), RuntimeError("a\nb")])
def test_rows_that_are_refused_come_later_in_their_order(tmp_path: Path, fault: Exception) -> None:
    scene = Scene(tmp_path)
    scene.epochs(range(1))
    scene.first.fault = fault
    scene.epochs(range(1, 4))
    assert scene.first.losses == [0] and scene.second.losses == scene.in_file() == [0, 1, 2, 3]
    reason = {KeyError: "KeyError: 'x'", RuntimeError: "RuntimeError: a b"}.get(type(fault), str(fault))
    (line,) = scene.said
    assert line == (
        f"a place does not take rows ({reason}): they are tried again with each epoch; metrics.jsonl has them"
    )
    scene.first.fault = None
    scene.epochs(range(4, 6))
    assert scene.first.losses == scene.second.losses == scene.in_file() == [0, 1, 2, 3, 4, 5]
    assert scene.said[1:] == ["a place takes rows again, and has those that waited"]
    scene.log.close()
    assert len(scene.said) == 2


def test_no_more_rows_wait_than_memory_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    scene = Scene(tmp_path)
    scene.first.fault = FULL
    scene.epochs(range(6))
    scene.first.fault = None
    scene.epochs(range(6, 7))
    assert scene.first.losses == [4, 5, 6] and scene.in_file() == [0, 1, 2, 3, 4, 5, 6]
    assert scene.said[1:] == ["a place takes rows again, and has those that waited, but for the oldest 4 of them"]


def test_what_waits_at_the_end_is_tried_a_last_time(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.first.fault = FULL
    scene.epochs(range(3))
    scene.first.fault = None
    scene.log.close()
    scene.log.close()
    assert scene.first.losses == [0, 1, 2] and scene.first.closed == scene.second.closed == 1
    assert scene.said[1:] == ["a place takes rows again, and has those that waited"]


@pytest.mark.parametrize("rows", [0, 3])
def test_a_place_that_cannot_be_closed_is_told(tmp_path: Path, rows: int) -> None:
    scene = Scene(tmp_path)
    scene.first.fault = BrokenPipeError(errno.EPIPE, "Broken pipe")
    scene.epochs(range(rows))
    scene.log.close()
    assert scene.second.closed == 1 and scene.second.losses == scene.in_file()
    what = "lacks 3 rows, which metrics.jsonl has" if rows else "could not be closed"
    assert scene.said[-1] == f"a place {what} ([Errno 32] Broken pipe)" and len(scene.said) == (2 if rows else 1)


def test_a_video_is_told_of_and_not_tried_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.first.fault = FULL
    scene.log.log_video("videos/validation", tmp_path / "a.gif", progress_at(0))
    assert scene.second.videos == ["videos/validation"] and scene.said == [
        "a place does not take the video videos/validation ([Errno 28] No space left on device): "
        f"it is in {tmp_path}/a.gif"
    ]
    scene.first.fault = None
    scene.epochs(range(1))
    assert scene.first.videos == [] and scene.first.losses == [0]


def test_a_place_that_cannot_go_back_is_told_and_the_others_do(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.epochs(range(4))
    scene.first.fault = FULL
    scene.log.rewind(1)
    assert scene.in_file() == [0, 1] and scene.second.rewound == [([0, 1], [2, 3])]
    (line,) = scene.said
    assert line.startswith("a place could not go back to where the run goes on ([Errno 28] No space left on device): ")
    scene.first.fault = None
    scene.epochs(range(2, 3))
    assert scene.first.losses == [0, 1, 2, 3, 2] and scene.in_file() == [0, 1, 2]


def test_rows_that_wait_are_dropped_with_the_epochs_that_are(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.epochs(range(1))
    scene.first.fault = FULL
    scene.epochs(range(1, 4))
    scene.first.fault = None
    scene.log.rewind(1)
    assert scene.first.rewound == [([0], [2, 3])], "it never had the one that waits"
    scene.epochs(range(2, 3))
    assert scene.first.losses == [0, 1, 2]


def test_a_metrics_file_that_is_removed_is_there_again_and_can_go_back(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.epochs(range(3))
    (tmp_path / "metrics.jsonl").unlink()
    scene.log.settle()
    assert scene.in_file() == [0, 1, 2]
    (tmp_path / "metrics.jsonl").unlink()
    scene.log.rewind(1)
    scene.epochs(range(2, 3))
    assert scene.in_file() == [0, 1, 2] and len(scene.said) == 2
    (tmp_path / "metrics.jsonl").unlink()
    scene.epochs(range(3, 4))
    assert scene.in_file() == [0, 1, 2, 3]
    assert scene.said[-1] == f"{tmp_path}/metrics.jsonl was removed: it is there again, with all that was in it"


# ---------------------------------------------------------------- TensorBoard


class TensorboardScene:
    """A log with TensorBoard, two rows an epoch."""

    def __init__(self, folder: Path):
        self.said: list[str] = []
        self.log = MetricsLog(folder, resume=False, sinks=[TensorboardSink(folder)], say=self.said.append)

    def epochs(self, epochs: range) -> None:
        for epoch in epochs:
            for section in ("collect", "train"):
                self.log.log(section, {"x": float(epoch)}, progress_at(epoch))


STEPS = [101 * (epoch + 1) for epoch in range(6)]


def test_tensorboard_goes_on_in_a_folder_that_was_removed(tmp_path: Path) -> None:
    scene = TensorboardScene(tmp_path)
    scene.epochs(range(2))
    shutil.rmtree(tmp_path / "tensorboard")
    scene.epochs(range(2, 4))
    scene.log.close()
    for name in ("collect/x", "train/x"):
        assert curve(tmp_path, name) == [(STEPS[2], 2.0), (STEPS[3], 3.0)]
    assert curve(tmp_path, "epoch") == [(STEPS[2], 2.0), (STEPS[3], 3.0)], "axes begin anew, too"
    refused, over = scene.said
    assert refused.startswith("TensorBoard does not take rows ([Errno 2] No such file or directory: ")
    assert over == "TensorBoard takes rows again, and has those that waited"


class Disk:
    """Room for so many bytes more, of files that are written unbuffered."""

    room = 1 << 30

    def open(self, path: Any, mode: str = "r", buffering: int = -1) -> Any:
        if buffering != 0:
            return open(path, mode, buffering)
        disk = self

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                if not disk.room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written = super().write(data[: disk.room])
                disk.room -= written
                return written

        return File(path, mode.replace("b", ""))


@pytest.mark.parametrize("room", [0, 30])
def test_tensorboard_has_every_row_once_its_disk_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    disk = Disk()
    monkeypatch.setattr("amago_ray.watch.sinks.open", disk.open, raising=False)
    scene = TensorboardScene(tmp_path)
    scene.epochs(range(2))
    for epoch in range(2, 4):
        disk.room = room
        scene.epochs(range(epoch, epoch + 1))
    disk.room = 1 << 30
    scene.epochs(range(4, 6))
    scene.log.close()
    for name in ("collect/x", "train/x", "epoch", "frames/A"):
        assert [event.step for event in logged(tmp_path).Scalars(name)] == STEPS
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1, "no file is left for each try"
    assert len(scene.said) == 2 and "does not take rows ([Errno 28] No space left on device" in scene.said[0]


def test_no_folder_of_a_run_is_made_for_tensorboard(tmp_path: Path) -> None:
    scene = TensorboardScene(tmp_path / "run")
    scene.epochs(range(1))
    (tmp_path / "run").rename(tmp_path / "renamed")
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl: No such file or directory"):
        scene.epochs(range(1, 2))
    scene.log.log_video("v", write_gif(tmp_path / "a.gif"), progress_at(1))
    scene.log.close()
    assert not (tmp_path / "run").exists() and len(scene.said) == 1


def test_a_run_that_goes_back_without_a_restart_is_shown_once(tmp_path: Path) -> None:
    """`Experiment.load_checkpoint`, in the process that began the run."""
    scene = TensorboardScene(tmp_path)
    scene.epochs(range(4))
    scene.log.rewind(1)
    scene.epochs(range(2, 3))
    scene.log.close()
    assert curve(tmp_path, "train/x") == [(STEPS[0], 0.0), (STEPS[1], 1.0), (STEPS[2], 2.0)]
