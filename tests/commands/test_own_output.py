"""What a command writes to standard output is its own: environments that print do not come between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gin
import pytest
from acting_cases import make_run

from amago_ray.commands.command_line import own_output
from amago_ray.envs.builtin import Identity

MODULE = """
import os, subprocess, sys
import gymnasium as gym
import numpy as np
from amago_ray.envs.builtin import Identity

print("imported", end="")

class Noisy(Identity):
    def __init__(self):
        super().__init__(size=4)
        print("built", end="")

    def reset(self, **kwargs):
        print("reset", end="")
        sys.stdout.flush()
        os.write(1, b"raw")
        subprocess.run(["echo", "-n", "child"])
        return super().reset(**kwargs)

    def step(self, action):
        print("stepped", end="")
        return super().step(action)

gym.register("Noisy-v0", entry_point=Noisy)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    gin.bind_parameter("Identity.size", 4)
    (tmp_path / "noisy_module.py").write_text(MODULE)
    return make_run(tmp_path, Identity, "GRUTrajEncoder").directory.root


def amago_ray(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "amago_ray.train", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.processes
def test_inspect_prints_lines_of_json_and_nothing_else(run: Path, tmp_path: Path) -> None:
    done = amago_ray(tmp_path, "inspect", run, "--env", "noisy_module:Noisy-v0", "--max-steps", "3")
    assert done.returncode == 0, done.stderr
    start, step, *_, end = map(json.loads, done.stdout.splitlines())
    assert (start["kind"], step["kind"], end["kind"]) == ("start", "step", "end")
    for printed in ("imported", "built", "reset", "raw", "child", "stepped"):
        assert printed in done.stderr


@pytest.mark.processes
def test_evaluate_prints_its_numbers_and_nothing_else(run: Path, tmp_path: Path) -> None:
    done = amago_ray(tmp_path, "evaluate", run, "--env", "noisy_module:Noisy-v0", "--episodes", "2")
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        name, _, number = line.rpartition(" ")
        assert name.strip() and float(number) is not None
        assert not any(printed in name for printed in ("imported", "built", "reset", "raw", "child", "stepped"))
    assert "stepped" in done.stderr


@pytest.mark.processes
def test_an_output_that_nobody_reads_or_that_is_full_ends_as_before(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amago_ray.train", "inspect", str(run), "--env", "noisy_module:Noisy-v0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.close()
    assert process.returncode == 141
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2 and "amago-ray: standard output cannot be written: No space left" in done.stderr


@pytest.mark.processes
def test_what_c_prints_goes_elsewhere_too() -> None:
    """It keeps it back until its buffer is full, or the process ends."""
    script = """
import ctypes
from amago_ray.commands.command_line import own_output
c = ctypes.CDLL(None)
c.printf(b"before ")
with own_output() as out:
    c.printf(b"simulator in C ")
    out.write("own ")
c.printf(b"after")
"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("before own after", "simulator in C "), done.stderr


def test_a_stream_that_stands_in_for_standard_output_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    with own_output() as out:
        print("from an environment")
        out.write("own\n")
    print("after")
    assert tuple(capsys.readouterr()) == ("own\nafter\n", "from an environment\n")
