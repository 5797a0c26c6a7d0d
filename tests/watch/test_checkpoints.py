"""Returns of several checkpoints, in a table and as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amago_ray.messages import EpisodeResult
from amago_ray.watch.checkpoints import plot_checkpoints, returns_by_env, standard_error, table


def results(name: str, *returns: float) -> list[EpisodeResult]:
    return [EpisodeResult(name, value, 5, {}) for value in returns]


EVALUATED = {
    20: [*results("Lake", 4.0, 6.0, 8.0), *results("Sea", 0.5)],
    3: results("Lake", 1.0, 3.0),
}


def test_the_table_has_a_line_per_epoch_and_environment() -> None:
    header, *lines = table(EVALUATED).splitlines()
    assert header.split("  ")[0] == "epoch" and "std error" in header
    assert len({len(line) for line in (header, *lines)}) == 1
    assert [line.split() for line in lines] == [
        ["3", "Lake", "2", "2.000", "1.000", "1.414", "1.000", "3.000"],
        ["20", "Lake", "3", "6.000", "1.155", "2.000", "4.000", "8.000"],
        ["20", "Sea", "1", "0.500", "nan", "nan", "0.500", "0.500"],
    ]


def test_the_standard_error_is_that_of_a_mean() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 16))
    assert draws.mean(axis=1).std() == pytest.approx(np.mean([standard_error(row) for row in draws]), rel=0.05)
    assert np.isnan(standard_error(np.array([1.0])))
    assert list(returns_by_env(EVALUATED[20])) == ["Lake", "Sea"]


def test_the_picture_shows_mean_and_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    out = plot_checkpoints(EVALUATED, "a $run", tmp_path / "new" / "evaluation.png")
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 800
    (axes,) = figures[0].axes
    lake, sea = (container.lines[0] for container in axes.containers)
    assert lake.get_xydata().tolist() == [[3.0, 2.0], [20.0, 6.0]] and sea.get_xydata().tolist() == [[20.0, 0.5]]
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(2.0 - np.sqrt(2.0)) and band[:, 1].max() == pytest.approx(8.0)
