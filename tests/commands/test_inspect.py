"""`amago-ray inspect`: lines of JSON that another program can read, of a run that nobody had to train."""

from __future__ import annotations

import json
from pathlib import Path

import gin
import pytest
from acting_cases import make_run

from amago_ray import train
from amago_ray.envs.builtin import Identity


@pytest.fixture
def run(tmp_path: Path) -> Path:
    gin.bind_parameter("Identity.size", 4)
    return make_run(tmp_path, Identity, "GRUTrajEncoder").directory.root


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict]:
    gin.clear_config()
    assert train.main(["inspect", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_per_step(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, *steps, end = inspect(capsys, run, "--seed", "3")
    assert start["kind"] == "start" and start["env"] == "Identity" and start["actions"]["sizes"] == [4]
    assert [step["t"] for step in steps] == list(range(end["steps"])) and end["return"] == steps[-1]["return"]
    assert inspect(capsys, run, "--seed", "3")[1:-1] == steps, "the same again"
    other = inspect(capsys, run, "--seed", "3", "--epoch", "2")[1:-1]
    assert [step["probs"] for step in other] != [step["probs"] for step in steps], "weights of another epoch"
    greedy = inspect(capsys, run, "--greedy", "--max-steps", "2")
    assert len(greedy) == 4 and all(step["vector"] == step["mode"] for step in greedy[1:-1])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--max-steps", "0"], "--max-steps 0: it must be 1 or more"),
        (["--greedy", "--temperature", "1"], "leave out either"),
        (["--epoch", "7"], "has kept the policies of 0, 2"),
        (["--temperature", "-1"], "--temperature -1.0: it must be a number from 1e-06 to 1e+06"),
        (["--temperature", "inf"], "--temperature inf: it must be a number from"),
        (["--seed", "-100000000"], "--seed -100000000: it must be from 0 to 2147483647"),
        (["--seed", str(2**31)], "--seed 2147483648: it must be from 0"),
    ],
)
def test_mistakes(run: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    gin.clear_config()
    assert train.main(["inspect", str(run), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_the_folder_of_a_sweep_is_no_run_and_its_trials_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("inspect", "evaluate"):
        assert train.main([command, str(run.parent)]) == 2
        said = f"amago-ray: {run.parent} has no config.txt; is it the folder of a run? {run} is one\n"
        assert capsys.readouterr().err == said
