"""`amago-ray status` as a user gives it, on runs at rest; `tests/system/test_watching.py` asks it beside a live one."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from ring_cases import trajectory
from watch.test_run_status import make_run

from amago_ray import train
from amago_ray.replay.datasets.stored_source import UNBOUNDED
from amago_ray.replay.storage.config import StoreConfig
from amago_ray.replay.storage.folders import shard_folder
from amago_ray.replay.storage.store import TrajectoryStore
from amago_ray.replay.storage.trajectory_pack import pack
from amago_ray.watch.metrics import METRICS_FILE


def lines_of(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What each row of the table says."""
    facts = {}
    for line in capsys.readouterr().out.splitlines():
        name, _, fact = line.strip().partition("  ")
        facts[name.strip()] = fact.strip()
    return facts


def test_the_table_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, 13)
    for epoch in range(8):
        run.save_training_state(epoch, lambda folder: None, {})
    now = time.time()
    os.utime(run.root / METRICS_FILE, (now, now))
    assert train.main(["status", str(run.root)]) == 0
    facts = lines_of(capsys)
    assert facts["state"] == "running" and facts["newest row"] in ("0 s ago", "1 s ago")
    assert facts["epoch"] == "13 of 20"
    assert facts["frames"] == "13,000  (33/s)" and facts["updates"] == "780  (2/s)"
    assert facts["return, collecting"] == "12.000  (epoch 13)" and facts["best validation"] == "6.000  (epoch 7)"
    assert facts["saved states"] == "after epoch 3, 4, 5, 6, 7, 8 and 2 before"
    assert facts["replay"] == "nothing is stored in files"


def test_damage_of_what_is_stored_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where nothing else is left, which looked like a run that has only begun."""
    run = make_run(tmp_path, 2)
    folder = shard_folder(run.replay, 0)
    folder.mkdir(parents=True)
    store = TrajectoryStore(StoreConfig(folder, UNBOUNDED, segment_bytes=600))
    for n in range(6):
        store.push(pack([trajectory(n)]))
        store.commit()
    store.close()
    first, *others = sorted(folder.glob("*.segment"))
    assert others
    train.main(["status", str(run.root)])
    assert re.fullmatch(r"6 trajectories, .* old", lines_of(capsys)["replay"])
    os.truncate(first, 10)
    train.main(["status", str(run.root)])
    told = in_one(capsys).replace(" ", "")  # which folds paths, too
    assert re.match(r"\dtrajectories,.*old;itisdamaged:.*0000000000", told)
    for path in others:
        os.truncate(path, 10)
    train.main(["status", str(run.root)])
    told = in_one(capsys)
    assert told.startswith("is damaged: ") and f"(and {len(others)} more)" in told
    assert train.main(["replay", str(run.root)]) == 1
    out = capsys.readouterr().out
    assert "visible" not in out and out.count("damaged: ") == 1 + len(others)


def in_one(capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of replay, of which the table makes several lines."""
    out = capsys.readouterr().out
    return " ".join(line.strip() for line in out[out.index(" replay") :].removeprefix(" replay").splitlines()).strip()


def test_a_silent_run_is_told_by_the_exit_status_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, silent = make_run(tmp_path / "a", 20), make_run(tmp_path / "b", 2)
    assert train.main(["status", str(done.root)]) == 0
    assert train.main(["status", str(done.root), str(silent.root)]) == 1
    out = capsys.readouterr().out
    assert "finished" in out and "silent for" in out


def test_a_killed_run_is_told_of_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, 2)
    now = time.time()
    os.utime(run.root / METRICS_FILE, (now, now))
    with run.locked():
        left = (tmp_path / ".run.lock").read_bytes()
    (tmp_path / ".run.lock").write_bytes(left)
    assert train.main(["status", str(run.root)]) == 1
    assert lines_of(capsys)["state"] == "not running: its process was killed"


def test_a_failed_run_is_told_of_with_its_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, 2)
    run.record_stop(1, "ValueError: thin ice", failed=True)
    assert train.main(["status", str(run.root)]) == 1
    assert lines_of(capsys)["state"] == "failed: ValueError: thin ice"
    run.record_stop(1, "enough")
    assert train.main(["status", str(run.root)]) == 0
    assert lines_of(capsys)["state"] == "stopped: enough"


def test_many_runs_have_a_row_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / str(number), 20) for number in range(6)]
    assert train.main(["status", *(str(run.root) for run in runs)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "finished" in line]
    assert len(rows) == 6 and all(row[1:5] == ["finished", "20", "of", "20"] for row in rows)


def test_of_a_folder_of_runs_all_have_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of a sweep's. They are told apart by their folders where they have the same name."""
    for number in (10, 9, 1, 2):
        make_run(tmp_path / "sweep" / f"trial_{number}", 20)
    make_run(tmp_path, 20)
    assert train.main(["status", str(tmp_path)]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "finished" in line]
    assert rows == ["run", *(f"sweep/trial_{number}/run" for number in (1, 2, 9, 10))]


def test_runs_of_several_folders_are_told_apart_and_are_there_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also beside one whose log cannot be read."""
    first, second = (make_run(tmp_path / name, 20).root for name in ("a", "b"))
    assert train.main(["status", str(first), str(tmp_path / "b"), str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["run", "b/run"]
    (second / METRICS_FILE).unlink()
    (second / METRICS_FILE).mkdir()
    assert train.main(["status", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "finished" in out and f"{second / METRICS_FILE} is a folder" in err


def test_what_is_no_run_hides_no_other_and_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as the folder of a sweep, which `status runs/*` names too, or one that is misspelt."""
    sweep, misspelt = tmp_path / "sweep", tmp_path / "rum"
    sweep.mkdir()
    done, silent = (make_run(tmp_path / str(epochs), epochs).root for epochs in (20, 2))
    assert train.main(["status", str(sweep), str(done), str(misspelt)]) == 2
    out, err = capsys.readouterr()
    assert "finished" in out
    assert err.splitlines() == [
        f"amago-ray: {folder} has no config.txt; is it the folder of a run?" for folder in (sweep, misspelt)
    ]
    assert train.main(["status", str(misspelt), str(silent)]) == 1, "a silent run would be hidden for as long"


def test_what_is_no_run_is_a_mistake_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"amago-ray: {tmp_path} has no config.txt; is it the folder of a run?\n"


def test_lines_that_cannot_be_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, 20)
    file = run.root / METRICS_FILE
    rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([rows[0], rows[1][:40] + b"\n", b"[1, 2]\n", b"\xff\xfe\n", *rows[2:], rows[0][:30]]))
    assert train.main(["status", str(run.root)]) == 0
    out, err = capsys.readouterr()
    assert "20 of 20" in out
    assert err == f"amago-ray: {file}: 3 of its lines cannot be read and are left out\n", "the last is being written"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it lacks Experiment.epochs"),
        (b"garbage (((", "it lacks Experiment.epochs"),
        (b"Experiment.epochs = 5.5\n", "Experiment.epochs=5.5: it must be an integer of 0 or more"),
        (b"\xff", "config.txt is damaged, or is no text"),
    ],
)
def test_a_damaged_config_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, expected: str
) -> None:
    run = make_run(tmp_path, 4)
    run.config.write_bytes(content)
    assert train.main(["status", str(run.root)]) == 2
    out, err = capsys.readouterr()
    assert not out and expected in err and str(run.config) in err and err.count("\n") == 1
