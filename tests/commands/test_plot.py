"""`amago-ray plot`: what it says beside the picture, and what it has no picture of."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from watch.test_curves import write_run

from amago_ray import train
from amago_ray.tune.results import SweepResults
from amago_ray.watch.metrics import METRICS_FILE


def test_runs_that_have_only_begun_have_reached_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn, starting = write_run(tmp_path / "drawn"), tmp_path / "starting"
    starting.mkdir()
    (starting / "config.txt").touch()
    assert train.main(["plot", str(starting), str(drawn), "--reached", "0.5", "--out", str(tmp_path / "a.png")]) == 0
    left_out, picture, collected, validated = capsys.readouterr().out.splitlines()
    assert left_out == f"{starting} has no returns yet and is left out" and picture == str(tmp_path / "a.png")
    assert collected.startswith("drawn: training (exploring) return reached 0.5 after 10 s of training, 5,000 frames")
    assert validated.startswith("drawn: validation return reached 0.5 after 12 s")


def test_a_folder_that_may_not_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    run = write_run(tmp_path / "run")
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert train.main(["plot", str(run)]) == 2
    told = f"amago-ray: {run}/curves.png cannot be written (Permission denied): --out says where\n"
    assert capsys.readouterr().err == told


def test_folders_for_the_picture_are_made_of_a_sweep_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = SweepResults("val/return", "max", epochs=4)
    results.add("a_00000", {"Agent.gamma": 0.9}, 1, 1.0)
    results.write(tmp_path / "sweep")
    for of in (tmp_path / "sweep", write_run(tmp_path / "run")):
        out = tmp_path / f"of_{of.name}" / "new" / "a.png"
        assert train.main(["plot", str(of), "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"{out}\n" and out.is_file()
    (tmp_path / "file").touch()
    assert train.main(["plot", str(tmp_path / "sweep"), "--out", str(tmp_path / "file" / "a.png")]) == 2
    assert "file/a.png cannot be written (File exists): --out says where\n" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["sweep --reached 1", "sweep run", "run sweep", "sweep run --reached 1"])
def test_a_sweep_is_drawn_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    results = SweepResults("val/return", "max", epochs=4)
    results.add("a_00000", {"Agent.gamma": 0.9}, 1, 1.0)
    results.write(tmp_path / "sweep")
    assert train.main(["plot", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "sweep is a sweep" in err


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_return_that_is_no_number_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    assert train.main(["plot", str(write_run(tmp_path / "run")), "--reached", value]) == 2
    assert capsys.readouterr().err == f"amago-ray: --reached {value}: it must be a finite number\n"


def test_damaged_lines_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run, and of a sweep's trials."""
    sweep = tmp_path / "sweep"
    run = write_run(sweep / "a_00000")
    assert train.main(["plot", str(run), "--reached", "0.5"]) == 0
    out, picture = capsys.readouterr().out, (run / "curves.png").read_bytes()
    path = run / METRICS_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"\xff\xfe\n", *lines[3:], b"[1, 2]\n"]))
    told = f"amago-ray: {path}: 2 of its lines cannot be read and are left out\n"
    assert train.main(["plot", str(run), "--reached", "0.5"]) == 0
    assert capsys.readouterr() == (out, told) and (run / "curves.png").read_bytes() == picture
    results = SweepResults("val/return", "max", epochs=4)
    results.add("a_00000", {"Agent.gamma": 0.9}, 1, 1.0)
    results.write(sweep)
    assert train.main(["plot", str(sweep)]) == 0
    assert capsys.readouterr() == (f"{sweep}/sweep.png\n", told)


def test_each_log_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str | bytes] = []
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    rows = sum(len((run / METRICS_FILE).read_bytes().splitlines()) for run in runs)
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    assert train.main(["plot", *map(str, runs), "--reached", "0.5", "--out", str(tmp_path / "a.png")]) == 0
    assert len(parsed) == rows


def test_a_folder_in_place_of_the_log_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / METRICS_FILE).mkdir(parents=True)
    (tmp_path / "run" / "config.txt").write_text("Experiment.epochs = 4\n")
    for command in ("plot", "status"):
        assert train.main([command, str(tmp_path / "run")]) == 2
        told = f"{tmp_path}/run/metrics.jsonl is a folder, where a file of that name has to be: remove it"
        assert capsys.readouterr().err == f"amago-ray: {told}\n"
