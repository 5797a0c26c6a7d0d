"""`amago-ray export`: one line of what was written, or one of what is wrong."""

from __future__ import annotations

from pathlib import Path

import gin
import pytest
import torch
from acting_cases import make_run

from amago_ray import train
from amago_ray.envs.builtin import Identity


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
    assert "spaces.json is missing" in capsys.readouterr().err
