"""`amago-ray replay`: tables and a picture, verifying, exporting; mistakes end in one line."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytest
from conftest import TINY_NETWORKS
from PIL import Image
from ring_cases import Recorded, counting, make_shards

from amago_ray import train
from amago_ray.envs.makers import env_spaces
from amago_ray.messages import Trajectory
from amago_ray.replay.datasets.dataset import RowLayout
from amago_ray.replay.datasets.recorded_spaces import record_spaces, recorded_spaces
from amago_ray.replay.inspection import find_stored_data
from amago_ray.replay.readers import AmagoDataset, StoredDataset
from amago_ray.replay.storage.trajectory_pack import pack

CONFIG = (
    *TINY_NETWORKS,
    "Experiment.run_name = 'counted'",
    "Experiment.make_train_env = @Counting",
    "Counting.episode_length = 7",
    "Experiment.max_seq_len = 4",
    "Experiment.replay_capacity_gb = 0.5",
    "Experiment.replay_capacity_trajectories = None",
    "Experiment.num_replay_shards = 2",
)


def replay(*arguments: str | Path) -> int:
    """Exit status of the command."""
    gin.clear_config()
    try:
        return train.main(["replay", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that is still going on: two shards, rollouts in pieces of 5 and 2, some not committed."""
    folder = tmp_path / "counted"
    folder.mkdir()
    (folder / "config.txt").write_text("\n".join(CONFIG) + "\n")
    recorded = Recorded(counting(7))
    recorded.worker.collect(60)
    recorded.worker.close()
    shards = make_shards(2, folder=folder / "replay", segment_bytes=2000)
    for t in recorded.written:
        shards[t.id.sequence % 2].push(pack([t]))
        if t.id.sequence == 11:
            for shard in shards:
                shard.commit()
    assert len(recorded.written) == 16
    return folder


def every(run: Path) -> list[Trajectory]:
    """All that is stored, in the order of the shards."""
    shards = find_stored_data(run).open()
    for shard in shards:
        shard.show_staged()
    return [t for shard in shards for t in shard.trajectories()]


def test_tables_and_a_picture(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(run) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ 0 +6 +\d+ +[\d.]+ kB +\d+ +1\.00x +\d s +\d s +1 +0 +2 $", out, re.MULTILINE), out
    assert re.search(r"^ all +12 +42 +[\d.]+ kB ", out, re.MULTILINE), out
    assert re.search(r"^ Counting\S* +12 +42 +[\d.]+ +[\d.]+ +[\d.]+ +3\.5 +2 +5 $", out, re.MULTILINE), out
    assert "Weights of version -1 to -1" in out and "6 of them are later pieces" in out
    picture = run / "replay.png"
    assert out.endswith(f"{picture}\n")
    with Image.open(picture) as image:
        assert image.format == "PNG"
    assert replay(run / "replay", "--out", run / "other" / "a.png") == 0
    assert (run / "other" / "a.png").is_file() and not (run / "replay" / "replay.png").exists()


def test_a_run_without_finished_rollouts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for segment in run.rglob("*.segment"):
        segment.unlink()
    assert replay(run) == 0
    assert "Nothing is visible yet" in capsys.readouterr().out and not (run / "replay.png").exists()


def test_verifying_says_what_is_lost(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(run, "--verify") == 0
    out = capsys.readouterr().out
    assert re.search(r"^18 records with 16 whole trajectories in \d+ segments, .* in [\d.]+ s \(.*/s\): all as", out)
    segments = sorted((run / "replay" / "shard_1").glob("*.segment"))
    with open(segments[-1], "ab") as file:
        file.write(segments[0].read_bytes()[-300:-200])  # no beginning of a record: not what a dying writer leaves
    content = bytearray(segments[0].read_bytes())
    content[-1] ^= 1
    segments[0].write_bytes(bytes(content))
    assert replay(run, "--verify") == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[-1].endswith("2 damaged")
    assert re.search(rf"^damaged: {segments[0]}, byte [\d,]+: .*checksum; lost: 1 trajectories, \d tim", lines[0]), (
        lines
    )
    assert re.search(rf"^damaged: {segments[-1]}, byte [\d,]+: .*; lost: 100 bytes", lines[1]), lines


@pytest.mark.processes
@pytest.mark.parametrize("format", ["npz", "minari"])
def test_what_is_exported_is_imported_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    out, again = tmp_path / "exported", tmp_path / "again"
    assert replay(run, "--export", out, "--format", format) == 0
    told = capsys.readouterr().out
    assert f"16 trajectories are in {out}." in told and ("8 episodes are later pieces" in told) == (format == "minari")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counted", "exported"]
    command = re.search(r"again: amago-ray (.*) --out DIR$", told, re.MULTILINE)
    assert command is not None
    gin.clear_config()
    assert train.main([*command[1].split(), "--out", str(again)]) == 0
    for a, b in zip(every(run), every(again), strict=True):
        for name, column in a.columns.items():
            np.testing.assert_array_equal(column, b.columns[name], err_msg=name)
        assert (a.first_time_idx, a.env_name) == (b.first_time_idx, b.env_name)
        assert a.weight_version == b.weight_version and (format == "npz" or a.truncated == b.truncated)
    assert any(t.weight_version for t in every(again))


def test_a_broken_record_is_left_out_of_an_export(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = every(run)
    segment = min((run / "replay" / "shard_0").glob("*.segment"))
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1  # of the last record's last column
    segment.write_bytes(bytes(content))
    assert replay(run, "--export", tmp_path / "out") == 1
    out = capsys.readouterr().out
    assert re.search(rf"^damaged: {segment}, byte \d+", out) and "15 trajectories are in" in out
    layout = RowLayout(*env_spaces(counting(7)))
    dataset = AmagoDataset(tmp_path / "out")
    read = [dataset.trajectory(i, layout) for i in range(len(dataset))]
    whole = every(run)
    assert len(whole) == len(read) == len(stored) - 1
    for a, b in zip(whole, read, strict=True):
        assert a.first_time_idx == b.first_time_idx
        np.testing.assert_array_equal(a.columns["obs.rollout"], b.columns["obs.rollout"])


def test_a_picture_that_cannot_be_written_comes_behind_all_else(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a run on a disk that is read only: what is damaged is told, too."""
    with open(max((run / "replay" / "shard_0").glob("*.segment")), "ab") as file:
        file.write(b"no record" * 20)

    def refuse(*args: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("amago_ray.commands.replay.plot_contents", refuse)
    assert replay(run) == 2
    out, err = capsys.readouterr()
    assert "trajectories" in out and "damaged: " in out
    told = f"the picture {run}/replay.png cannot be written (Read-only file system): --out says where"
    assert err == f"amago-ray: {told}\n"


def test_nothing_changes_in_what_is_looked_at(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (run / "replay").rglob("*") if path.is_file()}
    for arguments in (["--out", str(tmp_path / "a.png")], ["--verify"], ["--export", str(tmp_path / "out")]):
        assert replay(run, *arguments) == 0
    assert before == {path: path.read_bytes() for path in (run / "replay").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{tmp}/nowhere"], ["nowhere: there is no such folder"]),
        (["{tmp}"], ["holds no stored data", "replay_durable"]),
        (["{run}", "--export", "{tmp}"], ["--export", "this exists already"]),
        (["{run}", "--export", "{tmp}/out", "--config", "{tmp}/none.gin"], ["none.gin: there is no such file"]),
        (["{run}", "--out", "{run}/config.txt/a.png"], ["config.txt/a.png cannot be written (", "): --out says where"]),
        (["{tmp}/moved", "--export", "{tmp}/out"], ["needs the environments' spaces", "--config FILE"]),
    ],
)
def test_mistakes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: list[str]
) -> None:
    if "moved" in arguments[0]:
        (run / "replay").rename(tmp_path / "moved")
    assert replay(*(argument.format(run=run, tmp=tmp_path) for argument in arguments)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for part in expected:
        assert part in err
    assert not (tmp_path / "out").exists()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("format", "free"), [("npz", [100]), ("minari", [100]), ("minari", [1 << 30, 1 << 30, 1 << 30, 8 << 20])]
)
def test_an_export_without_room_for_it(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    free: list[int],
) -> None:
    """Before it begins and in the middle of it: HDF5 itself would end the process."""
    usage, left = shutil.disk_usage, iter(free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=next(left)))
    assert replay(run, "--export", tmp_path / "out", "--format", format) == 2
    told = capsys.readouterr().err
    assert told.strip().count("\n") == 0 and f"{tmp_path}/out.unfinished" in told
    assert f"No space left on device: {free[-1]:,} bytes are free, and" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counted"]
    assert next(left, None) is None


def test_what_replay_stored_is_imported_without_a_configuration(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says itself of which environments it is, where it was not removed."""
    words = ["import-data", str(run / "replay"), "--out", str(tmp_path / "out")]
    assert train.main(words) == 2 and "add --config FILE" in capsys.readouterr().err
    layout = RowLayout(*env_spaces(counting(7)))
    record_spaces(run / "replay", layout)
    assert train.main(words) == 0
    assert f"{len(every(tmp_path / 'out'))} trajectories, " in capsys.readouterr().out
    assert recorded_spaces(tmp_path / "out") == recorded_spaces(run / "replay")
    dataset = StoredDataset(tmp_path / "out")
    dataset.check_spaces(layout)
    for a, i in zip(StoredDataset(run).readable(), dataset.readable(), strict=True):
        stored = StoredDataset(run).trajectory(a, layout)
        for name, column in dataset.trajectory(i, layout).columns.items():
            np.testing.assert_array_equal(column, stored.columns[name], err_msg=name)


@pytest.mark.processes  # of Minari
@pytest.mark.parametrize("format", ["npz", "minari"])
def test_an_export_to_a_relative_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert replay(run, "--export", "data/here", "--format", format) == 0, capsys.readouterr().err
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["here"]
    words = [] if format == "minari" else ["--config", str(run / "config.txt")]
    assert train.main(["import-data", "data/here", "--out", "data/again", *words]) == 0, capsys.readouterr().err


def test_an_export_that_fails_leaves_no_folders_that_it_made(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def savez(*args: Any, **arrays: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", savez)
    monkeypatch.chdir(tmp_path)
    assert replay(run, "--export", "data/deep/here") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counted"]


def test_a_disk_that_fills_during_an_export(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def savez(*args: Any, **arrays: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", savez)
    assert replay(run, "--export", tmp_path / "out") == 2
    assert f"{tmp_path}/out.unfinished/out cannot be written: No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counted"]


def test_an_export_that_fails_leaves_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.gin").write_text((run / "config.txt").read_text().replace("@Counting", "'CartPole-v1'", 1))
    assert replay(run, "--export", tmp_path / "out", "--config", tmp_path / "other.gin") == 2
    assert "of other environments than the stored data" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counted", "other.gin"]
