"""Learning curves become a picture with something on it; a run without rows becomes a clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amago_ray.watch.curves import DPI, PANEL_SIZE_IN, plot_runs, read_run
from amago_ray.watch.metrics import AVERAGE_RETURN, METRICS_FILE, MetricsLog, Progress


def write_run(run_dir: Path, *, epochs: int = 20, attempts: int = 0, val: bool = True) -> Path:
    log = MetricsLog(run_dir, resume=False)
    for epoch in range(epochs):
        progress = Progress(epoch, 10 * epoch, {"Lake": 1000 * (epoch + 1)}, wall_s=2.0 * (epoch + 1))
        skill = 1 - 0.8**epoch
        success = {f"Average Attempt {i} Success in Lake": skill * i / attempts for i in range(1, attempts + 1)}
        log.log("collect", {AVERAGE_RETURN: skill if epoch else float("nan"), **success}, progress)
        log.log("train", {"loss": 1.0}, progress)
        if val and epoch % 5 == 0:
            log.log("val", {AVERAGE_RETURN: skill + 0.1, **success}, progress)
    log.close()
    return run_dir


def read_picture(path: Path, *, panels: int) -> np.ndarray:
    """The picture's pixels (H, W, 3), checked for its size and for a fair share of ink."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (round(PANEL_SIZE_IN[0] * DPI * panels), round(PANEL_SIZE_IN[1] * DPI))
        pixels = np.asarray(image.convert("RGB"))
    for panel in np.array_split(pixels, panels, axis=1):
        assert 0.01 < (panel < 250).any(axis=-1).mean() < 0.5
    return pixels


def has_colour(pixels: np.ndarray, colour: str) -> bool:
    return bool((pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1).any())


def test_one_run_with_attempts_has_three_panels(tmp_path: Path) -> None:
    out = tmp_path / "docs" / "curves.png"
    assert plot_runs([write_run(tmp_path / "lake", attempts=5)], out) == out
    assert has_colour(read_picture(out, panels=3), "#0072B2")


def test_several_runs_have_their_own_colours(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "seed_0"),
        write_run(tmp_path / "seed_1", epochs=2, val=False),
        write_run(tmp_path / "cost_$5_$6"),
    ]
    pixels = read_picture(plot_runs(runs, tmp_path / "curves.png"), panels=2)
    assert has_colour(pixels, "#0072B2") and has_colour(pixels, "#009E73")


def test_runs_with_and_without_attempts_mix(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "meta", attempts=3),
        write_run(tmp_path / "plain"),
        write_run(tmp_path / "one", epochs=2),
    ]
    read_picture(plot_runs(runs, tmp_path / "curves.png"), panels=3)


@pytest.mark.parametrize("value", ["[1, 2]", '"high"', "true", "{}", "NaN"])
def test_values_that_are_no_numbers_are_gaps(tmp_path: Path, value: str) -> None:
    """As where the status and the board show them. The axes of a row have to be numbers."""
    path = write_run(tmp_path / "lake", attempts=2) / METRICS_FILE
    row = (
        f'{{"section": "val", "epoch": 20, "total_frames": 9, "gradient_steps": 9, "wall_s": 9.0, '
        f'"val/{AVERAGE_RETURN}": {value}, "val/Average Attempt 1 Success in Lake": {value}}}\n'
    )
    expected = read_picture(plot_runs([path.parent], tmp_path / "curves.png"), panels=3)
    lines = path.read_text()
    path.write_text(lines + row)
    np.testing.assert_array_equal(read_picture(plot_runs([path.parent], tmp_path / "curves.png"), panels=3), expected)
    path.write_text(lines + row.replace("9.0", value))  # this line is no row, and left out
    np.testing.assert_array_equal(read_picture(plot_runs([path.parent], tmp_path / "curves.png"), panels=3), expected)
    assert read_run(path.parent).log.unread == f"{path}: 1 of its lines cannot be read and are left out"


def test_the_points_of_curves_and_attempts(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "lake", epochs=6, attempts=2))
    assert run.train is not None and run.val is not None
    skill = [1 - 0.8**epoch for epoch in range(6)]
    assert run.train.frames.tolist() == [2000, 3000, 4000, 5000, 6000], "the first has no return"
    assert run.train.minutes.tolist() == pytest.approx([2 * n / 60 for n in range(2, 7)])
    assert run.train.returns.tolist() == pytest.approx(skill[1:])
    assert run.val.frames.tolist() == [1000, 6000]
    assert run.val.returns.tolist() == pytest.approx([0.1, skill[5] + 0.1])
    assert [(moment.frames, moment.numbers.tolist()) for moment in run.attempts] == [(1000, [1, 2]), (6000, [1, 2])]
    assert run.attempts[1].success.tolist() == pytest.approx([skill[5] / 2, skill[5]])


def test_a_run_without_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere has no metrics\.jsonl"):
        plot_runs([tmp_path / "nowhere"], tmp_path / "curves.png")
    (tmp_path / METRICS_FILE).touch()
    with pytest.raises(ValueError, match=f"{tmp_path.name}.* no returns yet"):
        plot_runs([tmp_path], tmp_path / "curves.png")
    with pytest.raises(ValueError, match="at least one run"):
        plot_runs([], tmp_path / "curves.png")


def test_runs_without_returns_are_left_out_and_the_others_drawn(tmp_path: Path) -> None:
    """A colour for each run that is drawn; one that has begun, or has only its configuration, is named."""
    drawn = [write_run(tmp_path / "seed_0"), write_run(tmp_path / "seed_1")]
    begun = write_run(tmp_path / "begun", epochs=1, val=False)
    starting = tmp_path / "starting"
    starting.mkdir()
    (starting / "config.txt").touch()
    runs = [begun, drawn[0], starting, drawn[1]]
    assert [run for run in runs if not read_run(run).has_returns] == [begun, starting]
    pixels = read_picture(plot_runs(runs, tmp_path / "curves.png"), panels=2)
    assert (pixels == read_picture(plot_runs(drawn, tmp_path / "same.png"), panels=2)).all()
    with pytest.raises(ValueError, match=r"begun, .*starting: no returns yet"):
        plot_runs([begun, starting], tmp_path / "curves.png")


def test_a_run_with_one_point_has_a_mark(tmp_path: Path) -> None:
    """Training and validation alike, in both panels."""
    training = read_picture(plot_runs([write_run(tmp_path / "t", epochs=2, val=False)], tmp_path / "t.png"), panels=2)
    validation = read_picture(plot_runs([write_run(tmp_path / "v", epochs=1)], tmp_path / "v.png"), panels=2)
    for pixels, colour in ((training, "#80b8d8"), (validation, "#0072B2")):
        for panel in np.array_split(pixels, 2, axis=1):
            assert has_colour(panel, colour)
