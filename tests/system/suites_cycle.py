"""Every suite with its own package, each in an environment of its own under .venv-suites/: `make test-suites`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from conftest import TESTS

ROOT = TESTS.parent
PACKAGES = TESTS / "envs" / "suites" / "packages"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Of these constraints.txt has the version that all other suites run with.
BRINGS_ITS_OWN = {"metaworld": "mujoco"}


def environment(extra: str) -> Path:
    """The interpreter of an environment with what this one has, and the packages of `extra` on top of it."""
    folder = ROOT / ".venv-suites" / extra
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    layer = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()) / "layer.pth"
    layer.write_text(sysconfig.get_path("purelib"))
    pins = (ROOT / "constraints.txt").read_text()
    if extra in BRINGS_ITS_OWN:
        pins = re.sub(rf"(?m)^{BRINGS_ITS_OWN[extra]}==.*\n", "", pins)
    (folder / "constraints.txt").write_text(pins)
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", folder / "constraints.txt", *EXTRAS[extra]], check=True)
    return python


@pytest.mark.processes
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("extra", sorted(path.stem for path in PACKAGES.glob("*.py")))
def test_a_suite_with_its_package(extra: str) -> None:
    command = [environment(extra), "-m", "pytest", "-q", PACKAGES / f"{extra}.py"]
    search = os.pathsep.join((str(ROOT), str(TESTS)))
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
