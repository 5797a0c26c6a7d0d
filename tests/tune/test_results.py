"""What a sweep leaves: its record, its table and its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from amago_ray import train
from amago_ray.tune.results import SweepResults, _draw_parameter, plot_sweep
from amago_ray.watch.metrics import AVERAGE_RETURN


def results() -> SweepResults:
    made = SweepResults("val/return", "max", epochs=4)
    for epoch, value in ((1, 1.0), (2, 5.0), (3, 3.0)):
        made.add("a_00000", {"Agent.gamma": 0.9, "kind": "x"}, epoch, value)
    made.add("a_00001", {"Agent.gamma": 0.99, "kind": "y"}, 4, 4.0)
    made.add("a_00002", {"Agent.gamma": 0.95, "kind": "x"}, 1, float("nan"))
    return made


def test_the_best_trial_is_first_by_its_best_value() -> None:
    made = results()
    assert [name for name, _ in made.ranked()] == ["a_00000", "a_00001", "a_00002"]
    assert (made.trials["a_00000"].best, made.trials["a_00000"].last) == (5.0, 3.0)
    made.mode = "min"
    assert [name for name, _ in made.ranked()] == ["a_00001", "a_00000", "a_00002"]
    least = SweepResults("loss", "min", 4)
    least.add("t", {}, 1, 2.0)
    assert least.add("t", {}, 2, 3.0).best == 2.0


def test_a_best_value_stands_beside_the_parameters_that_made_it(tmp_path: Path) -> None:
    """Which "pbt" changes in the middle of a trial."""
    made = SweepResults("val/return", "max", 4)
    for epoch, rate, value in ((1, 1e-2, 50.0), (2, 1e-3, 100.0), (4, 5.0, 3.0)):
        made.add("a", {"lr": rate}, epoch, value)
    made.write(tmp_path)
    assert SweepResults.read(tmp_path).table().splitlines()[1].split() == ["a", "running", "4", "100", "3", "0.001"]
    axes: Any = Figure().subplots()
    _draw_parameter(axes, made, made.ranked(), "lr")
    assert axes.collections[0].get_offsets().tolist() == [[0.001, 100.0]]
    assert made.trials["a"].params == {"lr": 5.0}


def test_the_record_is_the_same_after_reading(tmp_path: Path) -> None:
    made = results()
    made.trials["a_00000"].params["numpy"] = np.int64(3)
    made.write(tmp_path)
    assert SweepResults.read(tmp_path).table() == made.table()
    with pytest.raises(ValueError, match="holds no sweep"):
        SweepResults.read(tmp_path / "elsewhere")


def test_the_table() -> None:
    assert results().table().splitlines() == [
        "trial    status   epoch  best val/return  last  Agent.gamma  kind",
        "a_00000  running      3                5     3          0.9     x",
        "a_00001  running      4                4     4         0.99     y",
        "a_00002  running      1                -     -         0.95     x",
    ]


def test_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = results()
    made.write(tmp_path)
    for name in ("a_00000", "a_00001"):
        (tmp_path / name).mkdir()
        rows = [
            {
                "section": "val",
                "epoch": n,
                "gradient_steps": n,
                "total_frames": n * 100,
                "wall_s": n,
                f"val/{AVERAGE_RETURN}": "damaged" if n == 2 else n * 1.5,  # a gap
            }
            for n in range(5)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train.main(["plot", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'sweep.png'}\n"
    with Image.open(tmp_path / "sweep.png") as image:
        colours = {colour for count, colour in image.convert("RGB").getcolors(1 << 24) if count > 100}
    assert (0, 114, 178) in colours, "the best trial is drawn in blue"
    SweepResults("val/return", "max", 4).write(tmp_path / "empty")
    with pytest.raises(ValueError, match="no trial has a value of val/return yet"):
        plot_sweep(tmp_path / "empty")
