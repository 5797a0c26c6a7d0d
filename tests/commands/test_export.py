"""`amago-ray export`: one line of what was written, or one of what is wrong."""

from __future__ import annotations

from pathlib import Path

import gin
import pytest
import torch
from acting_cases import make_run

from amago_ray import train
from amago_ray.envs.builtin import Identity
from amago_ray.nets.traj_encoders import FFTrajEncoder
from amago_ray.nets.tstep_encoders import FFTstepEncoder
from amago_ray.rollout.acting import load_policy
from amago_ray.rollout.portable import export_policy


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path, Identity, "FFTrajEncoder").directory.root


def export(*arguments: str | Path) -> int:
    gin.clear_config()
    return train.main(["export", *map(str, arguments)])


def test_a_file_is_written(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "there" / "a.pt2"
    assert export(run, "--format", "torch", "--out", out) == 0
    line = capsys.readouterr().out
    assert line == f"{out}: acts as the policy does over 40 steps of 3 environments (largest difference 0)\n"
    assert torch.export.load(out).module() is not None
    assert export(run, "--format", "torch", "--epoch", "2") == 0
    assert capsys.readouterr().out.startswith(f"{run / 'policy.pt2'}: ")
    assert (run / "policy.pt2").read_bytes() != out.read_bytes()


def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        ([tmp_path / "none"], "is in no run's folder"),
        ([tmp_path], "is no run's folder"),
        ([run, "--out", run / "config.txt" / "a.onnx"], "a.onnx cannot be written (File exists): --out says where"),
        ([run, "--epoch", "7"], f"--epoch 7: {run} has kept the policies of 0, 2"),
    ):
        assert export(*words) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and expected in err
    (run / "spaces.json").unlink()
    assert export(run) == 2
    err = capsys.readouterr().err
    assert "spaces.json is missing" in err and f"load_policy({str(run)!r}, spaces=(env.observation_space, " in err


class MyTstepEncoder(FFTstepEncoder):
    """It has no name for gin."""


class MyTrajEncoder(FFTrajEncoder):
    """Nor has this."""


def test_a_policy_whose_types_gin_has_no_names_for_is_exported_in_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, Identity, MyTrajEncoder, tstep_encoder_type=MyTstepEncoder).directory.root
    assert export(run) == 2
    assert capsys.readouterr().err.endswith(
        "config.txt does not say what Experiment.tstep_encoder_type and Experiment.traj_encoder_type were, because "
        "Python gave them and gin has no name for them: export it in Python, by "
        f"amago_ray.rollout.portable.export_policy(load_policy({str(run)!r}, "
        "settings={'tstep_encoder_type': ..., 'traj_encoder_type': ...}), FILE, 'onnx')\n"
    )
    types = {"tstep_encoder_type": MyTstepEncoder, "traj_encoder_type": MyTrajEncoder}
    export_policy(load_policy(run, settings=types), tmp_path / "a.pt2", "torch")
    assert (tmp_path / "a.pt2").is_file()
