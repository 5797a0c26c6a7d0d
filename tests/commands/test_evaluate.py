"""`amago-ray evaluate`: several policies, temperatures and saved rollouts, on a run that nobody had to train."""

from __future__ import annotations

import re
from pathlib import Path

import gin
import numpy as np
import pytest
from acting_cases import make_run
from PIL import Image

from amago_ray import train
from amago_ray.commands.command_line import check_writable
from amago_ray.envs.builtin import Identity


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """With the policies of epochs 0 and 2, of which the first is the latest."""
    gin.bind_parameter("Identity.size", 4)
    return make_run(tmp_path, Identity, "GRUTrajEncoder").directory.root


def evaluate(*arguments: str | Path) -> int:
    gin.clear_config()
    return train.main(["evaluate", *map(str, arguments)])


def test_all_epochs_in_a_table_and_a_picture(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--epoch", "all", "--episodes", "12") == 0
    header, *rows, picture = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["epoch", "environment", "rollouts"]
    assert [row.split()[:3] for row in rows] == [[epoch, "Identity-discrete", "12"] for epoch in "02"]
    assert rows[0].split()[3:] != rows[1].split()[3:]
    assert picture == str(run / "evaluation.png")
    with Image.open(picture) as image:
        assert image.format == "PNG"
    out = tmp_path / "elsewhere.png"
    assert evaluate(run, "--epoch", "2", "0", "2", "--episodes", "12", "--out", out) == 0
    assert capsys.readouterr().out.splitlines() == [header, *rows, str(out)]


def test_the_run_may_come_last(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--epoch", "2", run], [run, "--epoch", "2"]):
        assert evaluate("--episodes", "5", *words) == 0
    first, second = capsys.readouterr().out.split("Total Episodes")[1:]
    assert first == second
    for words in (["--epoch", "2"], ["--epoch", run], []):
        assert evaluate(*words) == 2
        assert "required: RUN" in capsys.readouterr().err


def test_the_best_policy_is_evaluated(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = run / "ckpts" / "best" / "policy.pt"
    best.parent.mkdir()
    (run / "ckpts" / "policy_weights" / "policy_epoch_2.pt").rename(best)
    assert evaluate(run, "--best", "--episodes", "12") == evaluate(run, "--episodes", "12") == 0
    of_best, of_latest = capsys.readouterr().out.split("Total Episodes")[1:]
    assert of_best != of_latest
    assert evaluate(run, "--best", "--epoch", "0") == 2
    assert "--best is one policy and --epoch names others" in capsys.readouterr().err


def test_temperature_tends_to_the_mode(run: Path, tmp_path: Path) -> None:
    taken = {}
    for name, words in {
        "greedy": ["--greedy"],
        "cold": ["--temperature", "0.001"],
        "hot": ["--temperature", "1000"],
        "own": [],
    }.items():
        assert evaluate(run, "--episodes", "60", *words, "--save-trajectories", tmp_path / name) == 0
        files = sorted((tmp_path / name).iterdir())
        taken[name] = np.concatenate([np.load(file)["actions"] for file in files]).argmax(axis=1).tolist()
    assert taken["cold"] == taken["greedy"] != taken["own"]
    np.testing.assert_allclose(np.bincount(taken["hot"]) / 120, 1 / 4, atol=0.12)


def test_saved_rollouts_are_amagos_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "rollouts"
    assert evaluate(run, "--episodes", "7", "--save-trajectories", folder) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "Average Total Return in" in line)
    files = sorted(folder.glob("*.npz"))
    assert len(files) == 7
    returns = []
    for file in files:
        with np.load(file) as rollout:
            assert rollout["_OBS_KEY_observation"].shape == (3, 5) and rollout["actions"].shape == (2, 4)
            assert rollout["dones"][-1] and not rollout["dones"][0]
            returns.append(rollout["rews"].sum())
    assert float(line.split()[-1]) == pytest.approx(np.mean(returns), abs=1e-3)
    assert evaluate(run, "--episodes", "3", "--epoch", "0", "2", "--save-trajectories", tmp_path / "both") == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["epoch_0", "epoch_2"]
    assert len(list((tmp_path / "both").glob("*/*.npz"))) == 6


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--epoch", "7"], "--epoch 7: .* has kept the policies of 0, 2"),
        (["--epoch", "two"], "--epoch two: write numbers of epochs, or all"),
        (["--epoch", "all", "2"], "--epoch all: name no other epochs beside it"),
        (["--epoch", "0", "2", "--gif", "a.gif"], "--gif draws one policy: name one --epoch"),
        (["--epoch", "2", "--out", "a.png"], "--out is of the picture of several policies"),
        (["--temperature", "0"], r"--temperature 0.0: it must be a number from 1e-06 to 1e\+06; .*--greedy"),
        (["--temperature", "1e-7"], "--temperature 1e-07: it must be a number from"),
        (["--temperature", "inf"], "--temperature inf: it must be a number from"),
        (["--temperature", "2", "--greedy"], "--greedy draws no actions"),
        (["--seed", "-1"], "--seed -1: it must be from 0 to 2147483647"),
        (["--save-trajectories", "."], "--save-trajectories .: there is something already"),
    ],
)
def test_mistakes(
    run: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    assert evaluate(run, *words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.search(expected, err), err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--epoch", "all", "--out", "config.txt/a.png"], "--out"),
        (["--epoch", "all", "--out", "ckpts"], "--out"),
        (["--gif", "config.txt/a.gif"], "--gif"),
    ],
)
def test_a_picture_that_cannot_be_written_is_told_before_anything_is_played(
    run: Path, words: list[str], option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amago_ray.rollout.evaluate.evaluate_policy", lambda *_, **__: pytest.fail("it was played"))
    monkeypatch.setattr("amago_ray.rollout.evaluate.check_renderable", lambda _: None)
    monkeypatch.chdir(run)
    assert evaluate(run, *words) == 2
    told = r"amago-ray: \S+ cannot be written \((Not a|File exists|Is a)[\w ]*\): " + option + " says where\n"
    assert re.fullmatch(told, capsys.readouterr().err)


def test_a_picture_that_is_there_is_kept_until_there_is_another(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    out.write_text("older")
    check_writable(out)
    check_writable(tmp_path / "deep" / "a.png")
    assert out.read_text() == "older" and not (tmp_path / "deep").exists()


def test_all_of_a_run_that_kept_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run / "ckpts" / "policy_weights").iterdir():
        path.unlink()
    assert evaluate(run, "--epoch", "all") == 2
    assert "has kept no policies yet (Experiment.ckpt_interval)" in capsys.readouterr().err
