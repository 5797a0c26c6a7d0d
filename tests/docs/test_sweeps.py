"""The code in docs/sweeps.md runs as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TESTS

(TUNER,) = re.findall(
    r"```python\n(.*?)```", (TESTS.parent / "docs" / "sweeps.md").read_text(encoding="utf-8"), re.DOTALL
)  # fmt: skip


@pytest.mark.processes
def test_a_tuner_of_ones_own_runs(tmp_path: Path) -> None:
    """With one trial for the four, of one small epoch."""
    assert "num_samples=4" in TUNER and "epochs=8" in TUNER
    small = "epochs=1, train_timesteps_per_epoch=20, train_batches_per_epoch=5"
    script = tmp_path / "own.py"
    script.write_text(TUNER.replace("num_samples=4", "num_samples=1").replace("epochs=8", small))
    # Tune keeps its files at home, and would otherwise join the Ray that other tests use.
    env = os.environ | {"HOME": str(tmp_path), "RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    (policy,) = (tmp_path / "runs" / "recall").glob("*/ckpts/latest/policy.pt")
    assert policy.is_file()
