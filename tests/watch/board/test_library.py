"""Runs are found wherever they lie below a folder, and nothing else is."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from watch.test_run_status import make_run

from amago_ray.watch import run_log
from amago_ray.watch.board import library as module
from amago_ray.watch.board.library import Library, Run


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCAN_INTERVAL_S", 0.0)


def found(*folders: Path) -> list[str]:
    library = Library(folders)
    library.scan()
    return list(library.runs)


def run_at(folder: Path, epochs_done: int = 2) -> Path:
    """A run with this folder."""
    made = make_run(folder.parent / "made", epochs_done).root
    made.rename(folder)
    (folder.parent / "made").rmdir()
    return folder


def test_runs_are_found_at_any_depth_and_named_by_where_they_lie(tmp_path: Path) -> None:
    for name in ("run_10", "run_9", "sweep/a", "sweep/deep/er/b"):
        folder = tmp_path / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        run_at(folder)
    run_at(tmp_path / "run_9" / "ckpts" / "not_a_run_of_its_own")
    assert found(tmp_path) == ["run_9", "run_10", "sweep/a", "sweep/deep/er/b"]
    assert found(tmp_path / "run_9") == ["run_9"]
    both = found(tmp_path / "run_9", tmp_path / "sweep")
    assert both == ["run_9", "sweep/a", "sweep/deep/er/b"]
    assert found(tmp_path / "run_9", tmp_path / "run_9" / ".") == ["run_9"], "the same once"


def test_two_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for where in ("x", "y"):
        (tmp_path / where).mkdir()
        run_at(tmp_path / where / "run")
    names = found(tmp_path / "x" / "run", tmp_path / "y" / "run")
    assert len(names) == 2 and "run" in names and (tmp_path / "y" / "run").as_posix() in names


def test_runs_below_a_folder_of_any_name_are_found_but_what_tune_keeps_of_a_sweep(tmp_path: Path) -> None:
    names = ("tune", "videos", "replay", "ckpts", "tensorboard", "wandb_logs")
    for name in names:
        (tmp_path / name).mkdir()
        run_at(tmp_path / name / "run")
    (tmp_path / "sweep" / "tune").mkdir(parents=True)
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    run_at(tmp_path / "sweep" / "trial")
    run_at(tmp_path / "sweep" / "tune" / "not_a_run_of_its_own")
    assert set(found(tmp_path)) == {"sweep/trial", *(f"{name}/run" for name in names)}


def test_a_folder_that_may_not_be_read_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_at(tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    is_file = Path.is_file

    def guarded(path: Path) -> bool:
        if path.parent.name == "theirs":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", guarded)
    assert found(tmp_path) == ["ours"]


def test_names_that_are_no_utf8_can_be_asked_for(tmp_path: Path) -> None:
    bad = tmp_path / os.fsdecode(b"bad\xff")
    run_at(bad)
    (bad / os.fsdecode(b"\xfe.png")).touch()
    library = Library([tmp_path])
    library.scan()
    (run,) = library.runs.values()
    assert run.id == "bad\\xff" and run.root == bad and list(run.media()) == ["\\xfe.png"]
    assert found(bad) == ["bad\\xff"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    run_at(tmp_path / "outside")
    os.symlink(tmp_path / "outside", tmp_path / "inside" / "link")
    assert found(tmp_path / "inside") == []
    run = run_at(tmp_path / "inside" / "run")
    (run / "secret.txt").write_text("secret")
    (run / "real.png").write_bytes(b"png")
    os.symlink(run / "secret.txt", run / "link.png")
    (run / "videos").mkdir()
    (run / "videos" / "epoch_0.gif").write_bytes(b"gif")
    assert set(Run("run", run).media()) == {"real.png", "videos/epoch_0.gif"}


def test_runs_come_and_go(tmp_path: Path) -> None:
    library = Library([tmp_path])
    library.scan()
    assert not library.runs
    run_at(tmp_path / "a")
    library.scan()
    first = library.runs["a"]
    assert library.refresh(budget_s=10.0) and len(first.log) == 5
    run_at(tmp_path / "b")
    library.scan()
    assert library.runs["a"] is first and list(library.runs) == ["a", "b"], "what was read of it is kept"
    shutil.rmtree(tmp_path / "a")
    library.scan()
    assert list(library.runs) == ["b"]
    shutil.rmtree(tmp_path / "b")
    assert library.refresh(budget_s=10.0), "between two looks"
    assert Run("b", tmp_path / "b").media() == {}
    with pytest.raises(ValueError, match=r"b has no config\.txt"):
        library.runs["b"].status(0.0)
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        Library([tmp_path / "nowhere"])


def test_many_logs_are_read_bit_by_bit_newest_first(tmp_path: Path) -> None:
    for i in range(3):
        run = run_at(tmp_path / f"run_{i}")
        os.utime(run / "metrics.jsonl", (1000.0 + i, 1000.0 + i))
    library = Library([tmp_path])
    library.scan()
    calls = 0
    while not library.refresh(budget_s=-1.0) and calls < 10:  # not even time for one
        calls += 1
    assert calls == 10 and not any(len(run.log) for run in library.runs.values())
    order: list[str] = []
    for run in library.runs.values():
        run.refresh = lambda until, name=run.id: order.append(name)  # type: ignore[method-assign, misc]
    assert library.refresh(budget_s=10.0) and order == ["run_2", "run_1", "run_0"]


def test_a_long_log_does_not_hold_up_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read bit by bit, though it is the newest."""
    monkeypatch.setattr(run_log, "PIECE_BYTES", 200)
    clock = itertools.count()
    monkeypatch.setattr(run_log.time, "monotonic", lambda: next(clock) / 1000)  # it stands still but where it is read
    for i in range(3):
        run_at(tmp_path / f"run_{i}")
    path = tmp_path / "run_2" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() * 400)
    rows = len(path.read_bytes().splitlines())
    library = Library([tmp_path])
    library.scan()
    assert not library.refresh(budget_s=0.3)
    assert [len(library.runs[f"run_{i}"].log) for i in range(2)] == [5, 5]
    assert 0 < len(library.runs["run_2"].log) < rows / 2
    looks = 1
    while not library.refresh(budget_s=0.3):
        looks += 1
    assert len(library.runs["run_2"].log) == rows and 3 < looks < 40


def test_a_status_is_kept_while_nothing_is_new(tmp_path: Path) -> None:
    run = Run("run", make_run(tmp_path, 3).root)
    run.log.refresh()
    now = run.log.written_at
    assert now is not None
    first = run.status(now)
    assert run.status(now + 1) is first and first.epoch == 3
    assert run.status(now + 1000).state == "silent"
    newest = (run.root / "metrics.jsonl").read_bytes().splitlines()[-1]
    with open(run.root / "metrics.jsonl", "ab") as file:
        file.write(newest.replace(b'"epoch": 2', b'"epoch": 3') + b"\n")
    run.log.refresh()
    assert run.status(now + 1001).epoch == 4


def test_events_are_read_less_what_is_broken(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    assert Run("run", run.root).events() == []
    run.note("a worker died", 3)
    with open(run.events, "a") as file:
        file.write('{"time": 1, "text": 5}\nnot json\n{"time": 2, "epo')
    (event,) = Run("run", run.root).events()
    assert event["text"] == "a worker died" and event["epoch"] == 3
    assert json.loads(run.events.read_text().splitlines()[0])["time"] == event["time"]
