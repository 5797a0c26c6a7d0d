"""A run's metrics are read as they grow, whatever becomes of the file meanwhile."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from amago_ray.watch import run_log
from amago_ray.watch.metrics import METRICS_FILE, MetricsLog, Progress
from amago_ray.watch.run_log import RunLog


def write(log: MetricsLog, epoch: int, value: float = 1.0, wall_s: float | None = None) -> None:
    progress = Progress(epoch, 10 * epoch, {"A": 100 * epoch}, 2.0 * epoch if wall_s is None else wall_s)
    log.log("train", {"Total Loss": value}, progress)


def losses(log: RunLog) -> list[tuple[int, float]]:
    """(epoch, loss)."""
    return [(int(log.axes["epoch"][row]), value) for row, value in log.finite("train/Total Loss")]


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, file = RunLog(tmp_path), MetricsLog(tmp_path, resume=False)
    assert not log.refresh() and len(log) == 0 and log.written_at is None, "it is there and empty"
    for epoch in range(3):
        write(file, epoch, epoch / 2)
    assert log.refresh() and losses(log) == [(0, 0.0), (1, 0.5), (2, 1.0)]
    parsed: list[str | bytes] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    assert not log.refresh() and not parsed
    write(file, 3, 7.0)
    assert log.refresh() and losses(log)[-1] == (3, 7.0) and len(parsed) == 1
    assert log.axes["total_frames"].tolist() == [0, 100, 200, 300] and log.ends == {0: 0, 1: 1, 2: 2, 3: 3}
    assert log.generation == 0
    file.close()


def test_a_line_is_waited_for_until_it_is_whole(tmp_path: Path) -> None:
    file = MetricsLog(tmp_path, resume=False)
    write(file, 0)
    file.close()
    path, log = tmp_path / METRICS_FILE, RunLog(tmp_path)
    line = path.read_bytes()
    path.write_bytes(line + line[:40])
    assert log.refresh() and len(log) == 1
    path.write_bytes(line + line)
    assert log.refresh() and len(log) == 2 and log.broken == 0


def test_what_is_no_row_is_counted_and_left_out(tmp_path: Path) -> None:
    row = '{"section": "train", "epoch": 0, "total_frames": 1, "gradient_steps": 1, "wall_s": 1.0, "train/x": %s}\n'
    lines = [row % 1, "\n", "null\n", "[1]\n", '{"section": "train"}\n', '{"epoch": "x", "section"\n', "\xff\xfe\n"]
    values = ("NaN", "Infinity", "-Infinity", "null", '"text"', "2", f"1{'0' * 400}", "true", "[1]")
    lines += [row % value for value in values]
    lines.append(lines[0].replace('"total_frames": 1', f'"total_frames": 1{"0" * 400}'))
    (tmp_path / METRICS_FILE).write_bytes("".join(lines).encode("latin-1"))
    log = RunLog(tmp_path)
    log.refresh()
    assert list(log.finite("train/x")) == [(0, 1.0), (6, 2.0)], "numbers that are none are gaps"
    assert log.broken == 7 and all(len(axis) == 10 for axis in log.axes.values())
    assert log.series["train/x"].rows.tolist() == [*range(10)]
    assert all(math.isnan(value) for row, value in enumerate(log.series["train/x"].values) if row not in (0, 6))


@pytest.mark.parametrize("regrown", [0, 1, 4], ids=["shorter", "as long", "longer"])
def test_a_run_that_is_resumed_rewinds_its_rows(tmp_path: Path, regrown: int) -> None:
    """Noticed when it is looked at before the rows have grown back, and after."""
    log, file = RunLog(tmp_path), MetricsLog(tmp_path, resume=False)
    for epoch in range(4):
        write(file, epoch)
    log.refresh()
    file.close()
    file = MetricsLog(tmp_path, resume=True)
    file.rewind(2)
    for epoch in range(3, 3 + regrown):
        write(file, epoch, 5.0, 2.0 * epoch + 0.5)
    file.close()
    assert log.refresh() and log.generation == 1
    assert losses(log) == [(0, 1.0), (1, 1.0), (2, 1.0)] + [(epoch, 5.0) for epoch in range(3, 3 + regrown)]


def test_a_run_that_is_resumed_where_it_ended_just_goes_on(tmp_path: Path) -> None:
    log, file = RunLog(tmp_path), MetricsLog(tmp_path, resume=False)
    write(file, 0)
    log.refresh()
    file.rewind(0)
    write(file, 1)
    file.close()
    assert log.refresh() and log.generation == 0 and losses(log) == [(0, 1.0), (1, 1.0)]


def test_a_run_that_is_removed_or_begun_anew(tmp_path: Path) -> None:
    log, file = RunLog(tmp_path), MetricsLog(tmp_path, resume=False)
    write(file, 0)
    write(file, 1)
    log.refresh()
    file.close()
    (tmp_path / METRICS_FILE).unlink()
    assert log.refresh() and len(log) == 0 and log.written_at is None and not log.refresh()
    file = MetricsLog(tmp_path, resume=False)
    write(file, 0, 9.0)
    file.close()
    assert log.refresh() and losses(log) == [(0, 9.0)]


@pytest.mark.parametrize("piece", [1, 7, 100, 200, 1000])
def test_a_long_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """Each call takes at least a line, however little time it has, and what is written meanwhile comes, too."""
    monkeypatch.setattr(run_log, "PIECE_BYTES", piece)
    log, file = RunLog(tmp_path), MetricsLog(tmp_path, resume=False)
    for epoch in range(20):
        write(file, epoch, epoch / 2)
    size = (tmp_path / METRICS_FILE).stat().st_size
    read = []
    while not read or not log.complete:
        assert log.refresh(time.monotonic() - 1.0)
        read.append(len(log))
        assert log.written_at is not None and len(read) < 30
        if len(read) == 2:
            write(file, 20, 10.0)
    file.close()
    assert losses(log) == [(epoch, epoch / 2) for epoch in range(21)] and log.broken == log.generation == 0
    assert read == sorted(read) and len(read) > size // max(piece, size // 20) // 2
    assert not log.refresh(time.monotonic() - 1.0)


def test_a_file_that_is_begun_anew_while_it_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "PIECE_BYTES", 100)
    log, file = RunLog(tmp_path), MetricsLog(tmp_path, resume=False)
    for epoch in range(10):
        write(file, epoch)
    file.close()
    log.refresh(0.0)
    assert not log.complete
    file = MetricsLog(tmp_path, resume=False)
    write(file, 0, 7.0)
    file.close()
    assert log.refresh() and log.complete and losses(log) == [(0, 7.0)]
    log.refresh(0.0)
    (tmp_path / METRICS_FILE).unlink()
    assert log.refresh(0.0) and log.complete and len(log) == 0
