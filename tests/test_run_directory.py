"""The run directory: only whole files, only whole training states, and an error that names the setting."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from amago_ray.atomic_files import write_atomically
from amago_ray.run_directory import RunDirectory

STRANGE_NAMES = ["plain", "a*b", "what?", "[x]", "a[0-9]*", "spaces and (brackets)", "a.b", "déjà-vu", "a_epoch_3"]


def contents(folder: Path) -> set[str]:
    """Every file below `folder`."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def writes(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "weights.bin").write_text(text)
        (folder / "deep" / "more.bin").write_text(text)

    return fill


class Crash(Exception):
    pass


def crashes(folder: Path) -> None:
    (folder / "weights.bin").write_text("half of it")
    raise Crash


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path, "my run")
    directory.create()
    return directory


def test_the_layout(run: RunDirectory, tmp_path: Path) -> None:
    root = tmp_path / "my run"
    assert run.config == root / "config.txt" and run.wandb_logs == root / "wandb_logs"
    assert run.latest_policy == root / "ckpts" / "latest" / "policy.pt"
    assert run.policy_epoch(3) == root / "ckpts" / "policy_weights" / "policy_epoch_3.pt"
    assert run.training_state(3) == root / "ckpts" / "training_states" / "my run_epoch_3"
    for folder in (run.wandb_logs, run.latest_policy.parent, run.policy_weights, run.training_states):
        assert folder.is_dir()
    assert contents(tmp_path) == set()
    run.create()  # again, as when a run is resumed
    assert not run.exists() and run.saved_epochs() == []


def test_a_relative_base_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory("runs", "r")
    monkeypatch.chdir(tmp_path / "elsewhere")
    directory.create()
    assert (tmp_path / "runs" / "r" / "ckpts").is_dir()


def test_a_home_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunDirectory("~/runs", "r").root == tmp_path / "runs" / "r"


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, below: str) -> None:
    file = tmp_path / "a file"
    file.write_text("not a folder")
    base = file / below
    with pytest.raises(ValueError, match="ckpt_base_dir='.*a file.*' cannot be written: ") as caught:
        RunDirectory(base, "r").create()
    assert "\n" not in str(caught.value) and file.read_text() == "not a folder"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_lock_that_cannot_be_removed_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The run ends as it would, whether well or by an error of its own, and another one may follow."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(code, os.strerror(code), str(path))

    run = RunDirectory(tmp_path, "r")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with run.locked():
            pass
        with pytest.raises(Crash), run.locked():
            raise Crash
    assert (tmp_path / ".r.lock").exists()
    with run.locked():
        pass
    assert not (tmp_path / ".r.lock").exists()


def test_a_note_that_cannot_be_written_ends_nothing(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    run.events.mkdir()
    run.note("not even opened", 0)
    run.events.rmdir()
    run.note("first", 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        run.note("second", 1)
    run.note("third", 2)
    assert [json.loads(line)["text"] for line in run.events.read_text().splitlines()] == ["first", "second", "third"]


def test_notes_that_are_removed_are_there_again_but_not_in_a_run_that_is_begun_anew(run: RunDirectory) -> None:
    def texts() -> list[str]:
        return [json.loads(line)["text"] for line in run.events.read_text().splitlines()]

    run.note("first", 0)
    run.events.unlink()
    run.note("second", 0)
    assert texts() == ["first", "second"]
    other = run.events.with_name("other")
    other.write_bytes(run.events.read_bytes().splitlines(keepends=True)[1])
    other.replace(run.events)
    run.note("third", 0)
    assert texts() == ["second", "third"]
    run.remove()
    run.create()
    run.note("of another run", 0)
    assert texts() == ["of another run"]
    shutil.rmtree(run.root)  # by hand
    run.create()
    run.note("of a third one", 0)
    assert texts() == ["of a third one"]


# Single files


def test_a_write_is_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "policy.pt"
    seen = []

    def write(path: Path) -> None:
        path.write_text("new")
        seen.append((path.parent, target.exists()))

    write_atomically(target, write)
    assert target.read_text() == "new" and contents(tmp_path) == {"policy.pt"}
    assert seen == [(tmp_path, False)]  # beside the target, on the same file system, and not under its name


def test_a_write_that_fails_says_why_where_nothing_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(Crash):
        write_atomically(tmp_path / "policy.pt", lambda path: crashes(path.parent))


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "policy.pt"
    target.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half of it")
        raise Crash

    with pytest.raises(Crash):
        write_atomically(target, fail)
    assert target.read_text() == "old" and contents(tmp_path) == {"policy.pt"}
    with pytest.raises(FileNotFoundError):
        write_atomically(target, lambda path: None)  # nothing was written
    write_atomically(target, lambda path: path.write_text("new"))
    assert target.read_text() == "new"


# Training states


def test_a_training_state_is_saved_and_found(run: RunDirectory) -> None:
    for epoch in (10, 2, 33):
        folder = run.save_training_state(epoch, writes(f"weights {epoch}"), {"epoch": epoch, "name": "é"})
        assert folder == run.training_state(epoch)
    assert run.saved_epochs() == [2, 10, 33] and run.exists()
    assert run.load_run_state(10) == {"epoch": 10, "name": "é"}
    assert (run.training_state(10) / "weights.bin").read_text() == "weights 10"
    files = {"weights.bin", "deep/more.bin", "run_state.json"}
    assert contents(run.training_states) == {f"my run_epoch_{e}/{name}" for e in (2, 10, 33) for name in files}


def test_a_state_that_was_not_finished_is_not_listed(run: RunDirectory) -> None:
    run.save_training_state(1, writes("one"), {})
    with pytest.raises(Crash):
        run.save_training_state(2, crashes, {})
    assert run.saved_epochs() == [1]
    run.training_state(3).mkdir()  # a folder without the marker
    (run.training_state(3) / "weights.bin").write_text("")
    assert run.saved_epochs() == [1]
    run.save_training_state(2, writes("two"), {"again": True})  # over what the crash left
    assert run.saved_epochs() == [1, 2]
    assert contents(run.training_state(2)) == {"weights.bin", "deep/more.bin", "run_state.json"}
    assert sorted(path.name for path in run.training_states.iterdir()) == [f"my run_epoch_{e}" for e in (1, 2, 3)]


def test_the_marker_is_written_last(run: RunDirectory) -> None:
    def fill(folder: Path) -> None:
        assert run.saved_epochs() == [] and not (folder / "run_state.json").exists()
        (folder / "weights.bin").write_text("x")

    run.save_training_state(1, fill, {})
    with pytest.raises(TypeError):
        run.save_training_state(2, fill_nothing, {"not for JSON": object()})
    assert run.saved_epochs() == [1]


def fill_nothing(folder: Path) -> None:
    pass


def test_a_state_may_be_saved_again(run: RunDirectory) -> None:
    run.save_training_state(1, writes("old"), {"version": 1})
    with pytest.raises(Crash):
        run.save_training_state(1, crashes, {"version": 2})
    assert run.load_run_state(1) == {"version": 1}  # the old one is whole until the new one is
    run.save_training_state(1, lambda folder: (folder / "other.bin").write_text("new"), {"version": 2})
    assert run.load_run_state(1) == {"version": 2}
    assert contents(run.training_state(1)) == {"other.bin", "run_state.json"}


def test_a_state_that_was_half_removed_is_not_listed(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save_training_state(1, writes("old"), {})
    remove = shutil.rmtree

    def stop_within(path: Path, **settings: bool) -> None:
        if Path(path) == run.training_state(1):
            (Path(path) / "weights.bin").unlink()
            raise Crash
        remove(path, **settings)

    monkeypatch.setattr(shutil, "rmtree", stop_within)
    with pytest.raises(Crash):
        run.save_training_state(1, writes("new"), {})
    assert run.saved_epochs() == []


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_names_are_taken_literally(tmp_path: Path, name: str) -> None:
    for other in STRANGE_NAMES:
        directory = RunDirectory(tmp_path, other)
        directory.create()
        directory.save_training_state(7, writes(other), {"name": other})
    run = RunDirectory(tmp_path, name)
    for stranger in ("axb", "whatx", "x", "a5c", "aXb", "other"):  # what the names would match as patterns
        folder = run.training_states / f"{stranger}_epoch_1"
        folder.mkdir()
        (folder / "run_state.json").write_text(json.dumps({}))
    (run.training_states / f"{name}_epoch_x").mkdir()
    assert run.saved_epochs() == [7] and run.load_run_state(7) == {"name": name}


def test_a_name_that_continues_another(tmp_path: Path) -> None:
    for name, epoch in (("run", 1), ("run_epoch_2", 3)):
        directory = RunDirectory(tmp_path, name)
        directory.create()
        directory.save_training_state(epoch, writes(""), {})
    assert RunDirectory(tmp_path, "run").saved_epochs() == [1]
    assert RunDirectory(tmp_path, "run_epoch_2").saved_epochs() == [3]


def test_a_run_that_only_logged_exists(run: RunDirectory) -> None:
    (run.root / "metrics.jsonl").write_text("{}\n")
    assert run.exists()


@pytest.mark.parametrize("own", [True, False])
def test_a_state_that_comes_back_keeps_what_only_its_own_run_has(run: RunDirectory, tmp_path: Path, own: bool) -> None:
    """A copy of one of the run's own earlier states; another run's data and processes are not here."""
    of_one = {"marks": {"0": {"end": 7}}, "workers": {"0": {}}, "ahead": {}}
    states = {epoch: {"progress": {"epoch": epoch}, "wandb_run_id": f"w{epoch}", **of_one} for epoch in (1, 2)}
    for epoch, state in states.items():
        run.save_training_state(epoch, writes(f"weights {epoch}"), state)
    copy = shutil.copytree(run.training_state(1), tmp_path / "copy")
    run.remove_training_state(1)
    run.adopt_training_state(copy, own)
    assert run.saved_epochs() == [1]
    assert (run.training_state(1) / "deep" / "more.bin").read_text() == "weights 1"
    expected = states[1] if own else {"progress": {"epoch": 1}, "wandb_run_id": "w2"}
    assert run.load_run_state(1) == expected


def test_a_runs_own_state_is_not_replaced_by_a_copy_that_may_be_damaged(run: RunDirectory, tmp_path: Path) -> None:
    for epoch in (1, 2):
        run.save_training_state(epoch, writes("whole"), {"progress": {"epoch": epoch}, "marks": {}})
    copy = shutil.copytree(run.training_state(1), tmp_path / "copy")
    (copy / "weights.bin").write_text("half")
    run.adopt_training_state(copy, own=True)
    assert run.saved_epochs() == [1] and (run.training_state(1) / "weights.bin").read_text() == "whole"
    run.save_training_state(1, writes("of another line"), {"progress": {"epoch": 1}})
    run.adopt_training_state(copy, own=True)
    assert (run.training_state(1) / "weights.bin").read_text() == "half"
