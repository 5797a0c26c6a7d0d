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

(BLOCK,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.processes
def test_own_environment_runs_and_is_learned(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(BLOCK)
    env = os.environ | {"RAY_ADDRESS": "local"}
    done = subprocess.run(
        [sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=env
    )
    assert done.returncode == 0, done.stderr
    results = re.search(r"'Average Total Return in Recall': ([\d.]+)", done.stdout)
    assert results is not None, done.stdout
    assert float(results.group(1)) > 0.9  # guessing gets 1/3
    assert (tmp_path / "runs" / "recall" / "ckpts" / "latest" / "policy.pt").is_file()


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        assert (REPOSITORY / link).exists(), link


def test_it_is_two_screens_at_most() -> None:
    assert len(README.splitlines()) <= 125
