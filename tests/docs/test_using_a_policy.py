"""The code in docs/using_a_policy.md runs as printed, the files' without this package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gin
import numpy as np
import pytest
from acting_cases import make_run
from conftest import TESTS

from amago_ray import load_policy, train

DOCUMENT = (TESTS.parent / "docs" / "using_a_policy.md").read_text(encoding="utf-8")
IN_PYTHON, IN_A_BATCH, IN_ONNX, IN_TORCH = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
COMMANDS = [
    line.split("#")[0].split()[1:] for line in re.findall(r"^amago-ray .*$", DOCUMENT, re.MULTILINE)
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a run "runs/tmaze", where the commands are given."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, "amago_ray/TMaze-v0", "GRUTrajEncoder")
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "tmaze")
    return tmp_path


def test_it_acts_in_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(IN_PYTHON + IN_A_BATCH, names)
    assert re.fullmatch(r"return -?[\d.]+\n", capsys.readouterr().out)
    assert np.shape(names["actions"]) == (4,)


def test_the_commands_of_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluations = [command for command in COMMANDS if command[0] == "evaluate"]
    assert len(evaluations) == 3
    for command in evaluations:
        words = " ".join(command).replace("10 20 30", "0 2").replace("200", "5").split()
        gin.clear_config()
        assert train.main([*words, *(() if "--episodes" in words else ("--episodes", "5"))]) == 0
    out = capsys.readouterr().out
    assert "runs/tmaze/evaluation.png\n" in out and "compare.png\n" in out
    assert len(list((folder / "rollouts").iterdir())) == 5


@pytest.mark.processes
def test_the_files_act_without_this_package(folder: Path) -> None:
    """As the policy does on the same observations, in a process that can import neither this package nor Ray."""
    exports = [command for command in COMMANDS if command[0] == "export"]
    assert len(exports) == 2
    for command in exports:
        assert train.main(command) == 0
    policy = load_policy(folder / "runs" / "tmaze", sample=False)
    policy.observation_space.seed(1)
    observations, state, expected = [policy.observation_space.sample() for _ in range(12)], None, []
    for observation in observations:
        action, state = policy.act(observation, state, reward=0.0)
        expected.append(int(action))
    np.save(folder / "observations.npy", np.stack(observations))
    code = (
        "import sys; sys.modules['amago_ray'] = sys.modules['ray'] = sys.modules['gymnasium'] = None\n"
        "import numpy as np; observations = np.load('observations.npy')\n"
    )
    done = subprocess.run([sys.executable, "-c", code + IN_ONNX + IN_TORCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for format in ("onnx", "torch"):
        assert [int(value) for value in re.findall(rf"{format} (-?\d+)", done.stdout)] == expected
    assert len(set(expected)) > 1
