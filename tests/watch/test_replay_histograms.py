"""Stored trajectories become histograms: bins hold every value, and there is something on the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from amago_ray.replay.inspection import Contents
from amago_ray.watch.curves import COLOURS, DPI, PANEL_SIZE_IN
from amago_ray.watch.replay_histograms import MAX_BINS, bin_edges, plot_contents


def contents(num: int = 200, num_envs: int = 1, priorities: int = 0) -> Contents:
    rng = np.random.default_rng(0)
    return Contents(
        env_names=tuple(f"cost_$5_{i}$" for i in range(num_envs)),
        env=np.arange(num) % num_envs,
        lengths=rng.integers(1, 500, num),
        returns=rng.normal(size=num),
        age_s=rng.uniform(0, 5000, num),
        age_epochs=rng.integers(0, 10, num),
        weight_version=rng.integers(0, 10, num),
        first_time_idx=np.zeros(num, dtype=np.int64),
        priorities=rng.lognormal(size=priorities).astype(np.float32),
    )


@pytest.mark.parametrize(("num_envs", "priorities"), [(1, 0), (6, 200), (9, 200)])
def test_there_is_a_histogram_in_every_panel(tmp_path: Path, num_envs: int, priorities: int) -> None:
    out = tmp_path / "replay.png"
    assert plot_contents(contents(num_envs=num_envs, priorities=priorities), "a run", out) == out
    panels = 4 if priorities else 3
    with Image.open(out) as image:
        assert image.size == (round(PANEL_SIZE_IN[0] * DPI * panels), round(PANEL_SIZE_IN[1] * DPI))
        pixels = np.asarray(image.convert("RGB"))
    colours = [np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) for colour in COLOURS]
    for i, panel in enumerate(np.array_split(pixels, panels, axis=1)):
        shown = [bool((panel == colour).all(axis=-1).sum() > 50) for colour in colours[:-1]]
        assert shown == [j < (min(num_envs, 6) if i < 2 else 1) for j in range(6)], i


def test_a_single_trajectory_is_drawn(tmp_path: Path) -> None:
    plot_contents(contents(num=1, priorities=1), "a run", tmp_path / "replay.png")


@settings(max_examples=200, deadline=None)
@given(
    values=st.one_of(
        st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=50),
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50),
    ),
    logarithmic=st.booleans(),
)
def test_bins_hold_every_value(values: list[float], logarithmic: bool) -> None:
    x = np.array(values, dtype=np.float64)
    if logarithmic:
        x = np.abs(x) + 1e-3
    edges = bin_edges(x, logarithmic)
    assert 2 <= len(edges) <= MAX_BINS + 2 and (np.diff(edges) >= 0).all()
    counts, _ = np.histogram(x, edges)
    assert counts.sum() == len(x)


def test_whole_numbers_have_bins_of_equal_share() -> None:
    np.testing.assert_array_equal(bin_edges(np.array([1.0, 4.0, 2.0])), [0.5, 1.5, 2.5, 3.5, 4.5])
    for high in (39, 40, 80, 81, 1000):
        edges = bin_edges(np.arange(high + 1.0))
        (step,) = set(np.diff(edges))
        assert step == int(step) and edges[0] == -0.5 and len(edges) <= MAX_BINS + 1
