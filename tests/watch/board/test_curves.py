"""Of however many values, what a page draws has every spike, both ends, and every gap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from watch.test_run_status import make_run

from amago_ray.watch.board.curves import curve, thinned
from amago_ray.watch.metrics import AVERAGE_RETURN
from amago_ray.watch.run_log import RunLog


@pytest.mark.parametrize("num", [0, 1, 4, 5, 399, 400, 401, 1000, 123_457])
def test_never_more_points_than_asked_for(num: int) -> None:
    kept = thinned(np.random.default_rng(0).normal(size=num), 400)
    assert len(kept) == num if num <= 400 else 300 < len(kept) <= 400
    assert (np.diff(kept) > 0).all()
    if num:
        assert kept[0] == 0 and kept[-1] == num - 1


def test_spikes_and_gaps_stay() -> None:
    values = np.sin(np.arange(50_000) / 5000)
    values[[12_345, 40_001]] = 50.0, -50.0
    values[20_000:30_000] = np.nan
    values[30_500] = np.inf
    kept = thinned(values, 200)
    assert {12_345, 40_001} <= set(kept.tolist())
    inside = (kept > 20_300) & (kept < 29_700)
    assert inside.any() and np.isnan(values[kept[inside]]).all()
    assert 10 < len(thinned(np.full(5000, np.nan), 100)) <= 100


def test_a_curve_of_a_run(tmp_path: Path) -> None:
    log = RunLog(make_run(tmp_path, 4).root)
    log.refresh()
    name = f"collect/{AVERAGE_RETURN}"
    assert curve(log, name, "total_frames", 100) == {"x": [1000, 2000, 3000, 4000], "y": [None, 1.0, 2.0, 3.0]}
    assert curve(log, name, "epoch", 100)["x"] == [1, 2, 3, 4], "as people count them"
    assert curve(log, name, "wall_s", 100)["x"] == [30, 60, 90, 120]
    assert curve(log, "no such", "epoch", 100) == {"x": [], "y": []}
    with pytest.raises(ValueError, match="axis='time': it must be one of epoch, total_frames"):
        curve(log, name, "time", 100)
