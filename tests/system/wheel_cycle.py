"""A wheel, built, installed with its dependencies into a clean environment, and used far from the repository.

`make test-wheel` runs it, and the suite does not: it takes minutes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TESTS, TINY_NETWORKS

ROOT = TESTS.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = (
    "Experiment.epochs = 1",
    "Experiment.train_timesteps_per_epoch = 40",
    "Experiment.train_batches_per_epoch = 2",
    "Experiment.num_rollout_workers = 1",
    "Experiment.test_episodes = 4",
    "Experiment.log_to_wandb = False",
    *TINY_NETWORKS,
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of commands of an environment that holds a wheel of this repository, and what it asks for."""
    folder = tmp_path_factory.mktemp("clean")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "tests"))
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    pip = [folder / "env" / "bin" / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, "torch==2.13.0"], check=True)
    subprocess.run([*pip, "setuptools>=77"], check=True)
    wheel = [*pip[:3], "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(wheel, check=True)
    (built,) = folder.glob("amago_ray-*.whl")
    shutil.rmtree(source)
    subprocess.run([*pip, f"{built}[board,envs]"], check=True)
    yield folder / "env" / "bin"
    shutil.rmtree(folder)  # gigabytes


def run(installed: Path, folder: Path, *command: str) -> str:
    """What a command prints that is given in `folder`, with nothing of the repository in reach."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PATH": f"{installed}:{environment['PATH']}", "RAY_ADDRESS": "local"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_commands_of_the_readme(installed: Path, tmp_path: Path) -> None:
    """As they are printed there, but for budgets and widths."""
    commands = [shlex.split(line) for line in re.findall(r"^    (amago-ray .*)$", README, re.MULTILINE)]
    assert [command[1] for command in commands] == ["--config", "status", "plot", "board"]
    train, *others = commands
    small = [word for binding in SMALL for word in ("--set", binding)]
    assert "Final test over 4 rollouts" in run(installed, tmp_path, *train, *small)
    for command in others[:-1]:
        run(installed, tmp_path, *command)
    _look_at_the_board(installed, tmp_path, *others[-1])
    assert (tmp_path / "runs" / "tmaze20" / "curves.png").is_file()


def _look_at_the_board(installed: Path, folder: Path, *command: str) -> None:
    """With the files that its pages are made of, which lie in the wheel."""
    board = [installed / command[0], *command[1:], "--port", "0"]
    with subprocess.Popen(board, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = next(found.group() for line in process.stdout if (found := re.search(r"http://[\w.:]+", line)))
            with urllib.request.urlopen(f"{url}/static/board.js", timeout=60) as answer:
                assert answer.status == 200
        finally:
            process.terminate()


def test_the_demo_by_its_name(installed: Path, tmp_path: Path) -> None:
    small = [word for binding in SMALL for word in ("--set", binding)]
    run(installed, tmp_path, "amago-ray", "--config", "meta_frozen_lake", *small)
    rows = [json.loads(line) for line in (tmp_path / "runs/meta_frozen_lake/metrics.jsonl").read_text().splitlines()]
    assert {"collect", "train"} <= {row["section"] for row in rows}
    where = run(installed, tmp_path, "python", "-c", "import amago_ray; print(amago_ray.__file__)")
    assert where.startswith(str(installed.parent))
    # Without their sources a learner would compute as it does without a compiler, and say nothing.
    for source in ("narrow_attention", "gru_recurrence"):
        run(installed, tmp_path, "python", "-c", f"from amago_ray.nets import kernels; kernels.compiled('{source}')")


def test_what_comes_along_is_listed_and_a_mistake_is_one_line(installed: Path, tmp_path: Path) -> None:
    assert run(installed, tmp_path, "amago-ray", "configs").splitlines()[0].startswith("atari/games ")
    with pytest.raises(AssertionError, match=r"did you mean 'tmaze'\?"):
        run(installed, tmp_path, "amago-ray", "--config", "tmase")
