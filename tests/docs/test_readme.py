"""The README's code runs as printed, and what it points at exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    script = folder / "own.py"
    script.write_text(text)
    # Tune keeps its files at home, and would otherwise join the Ray that other tests use.
    env = os.environ | {"HOME": str(folder), "RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.processes
def test_own_environment_runs_and_is_learned(tmp_path: Path) -> None:
    done = run_script(tmp_path, BLOCKS[0])
    results = re.search(r"'Average Total Return in Recall': ([\d.]+)", done.stdout)
    assert results is not None, done.stdout
    assert float(results.group(1)) > 0.9  # guessing gets 1/3
    assert (tmp_path / "runs" / "recall" / "ckpts" / "latest" / "policy.pt").is_file()


@pytest.mark.processes
def test_a_tuner_of_ones_own_runs(tmp_path: Path) -> None:
    """In the script of the first block, with one trial for the four."""
    environment, tuner = BLOCKS[0].split("with Experiment")[0], BLOCKS[1]
    assert "num_samples=4" in tuner and "epochs=8" in tuner
    small = "epochs=1, train_timesteps_per_epoch=20, train_batches_per_epoch=5"
    run_script(tmp_path, environment + tuner.replace("num_samples=4", "num_samples=1").replace("epochs=8", small))
    (policy,) = (tmp_path / "runs" / "recall").glob("*/ckpts/latest/policy.pt")
    assert policy.is_file()


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        assert (REPOSITORY / link).exists(), link


def test_configurations_in_the_table_exist() -> None:
    named = set(re.findall(r"`(configs/\w+\.gin)`", README))
    assert named == {f"configs/{path.name}" for path in (REPOSITORY / "configs").glob("*.gin")}
