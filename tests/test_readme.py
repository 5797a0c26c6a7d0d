"""The README's code runs as printed, and what it points at exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_own_environment_runs_and_is_learned(tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    script = tmp_path / "own.py"
    script.write_text(block.group(1))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
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


def test_configurations_in_the_table_exist() -> None:
    named = set(re.findall(r"`(configs/\w+\.gin)`", README))
    assert named == {f"configs/{path.name}" for path in (REPOSITORY / "configs").glob("*.gin")}
