"""Twenty minutes in which a run's processes are killed and frozen, its driver too: `make chaos` (CHAOS_S seconds)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from system.monkey import Prey, end_and_check, hunt


@pytest.mark.timeout(7200)
def test_chaos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = float(os.environ.get("CHAOS_S", "1200"))
    prey = Prey(tmp_path, epochs=100_000)
    try:
        deeds = hunt(prey, seconds, interval_s=float(os.environ.get("CHAOS_INTERVAL_S", "2")), seed=0)
        report = end_and_check(prey, deeds)
    finally:
        if prey.process.poll() is None:
            prey.kill_driver()
    with capsys.disabled():
        print("\n" + json.dumps({"seconds": seconds} | report, indent=2))
    first, last = report["return"]
    assert last > first, "it learns all the same"
