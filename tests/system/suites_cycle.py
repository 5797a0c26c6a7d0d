"""Every suite with its own package, each in an environment of its own under .venv-suites/: `make test-suites`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import TESTS

ROOT = TESTS.parent
PACKAGES = TESTS / "envs" / "suites" / "packages"
TESTS_OF = {path.stem: path for path in PACKAGES.glob("*.py")} | {
    extra: PACKAGES.parent / f"test_{extra}.py"  # that `make test` has too, beside all other extras
    for extra in ("minigrid", "popgym")
}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Of these constraints.txt has the version that all other suites run with.
BRINGS_ITS_OWN = {"metaworld": "mujoco"}


def install(python: Path, *what: str | Path, pins: Path = ROOT / "constraints.txt") -> None:
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", pins, *what], check=True)


def new_environment(name: str) -> Path:
    """The interpreter of an empty environment."""
    folder = ROOT / ".venv-suites" / name
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    return folder / "bin" / "python"


def packages_of(python: Path) -> Path:
    """Where an interpreter's packages lie."""
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())


@pytest.fixture(scope="module")
def without_extras() -> Path:
    """The packages that every installation has, and pytest: what an extra lacks must not be lent by another one."""
    python = new_environment("base")
    install(python, f"torch=={torch.__version__.partition('+')[0]}")  # alone and first: see the Makefile
    install(python, "-e", ROOT, "pytest", "pytest-timeout")
    return packages_of(python)


def environment(extra: str, below: Path) -> Path:
    """The interpreter of an environment with the packages of `extra` on top of those in `below`."""
    python = new_environment(extra)
    (packages_of(python) / "layer.pth").write_text(str(below))
    lines = (ROOT / "constraints.txt").read_text()
    if extra in BRINGS_ITS_OWN:
        lines = re.sub(rf"(?m)^{BRINGS_ITS_OWN[extra]}==.*\n", "", lines)
    pins = python.parent.parent / "constraints.txt"
    pins.write_text(lines)
    install(python, *EXTRAS[extra], pins=pins)
    return python


@pytest.mark.processes
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("extra", sorted(TESTS_OF))
def test_a_suite_with_its_package(extra: str, without_extras: Path) -> None:
    command = [environment(extra, without_extras), "-m", "pytest", "-q", TESTS_OF[extra]]
    search = os.pathsep.join((str(ROOT), str(TESTS)))
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
