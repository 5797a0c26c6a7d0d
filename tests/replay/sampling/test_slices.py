"""The slices that training sequences are: which starts are possible, how likely each is, and what they cover."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from ring_cases import assert_uniform

from amago_ray.replay.sampling.slices import PaddedSampling, check_padded_sampling, draw_slices

MODES = get_args(PaddedSampling)
CASES = [(10, 4), (5, 4), (7, 1), (40, 16), (2, 1)]


def starts(n: int, max_len: int, mode: str) -> range:
    """The documented range of starts before slices are cut to the trajectory."""
    low = 1 - max_len if mode in ("both", "left") else 0
    high = n - 2 if mode in ("both", "right") else n - max_len
    return range(low, high + 1)


def draw(n: int, max_len: int, mode: str, num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return draw_slices(np.full(num, n), max_len, mode, np.random.default_rng(seed))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "max_len"), CASES)
def test_starts_are_uniform_on_the_documented_range(n: int, max_len: int, mode: str) -> None:
    allowed = starts(n, max_len, mode)
    start, length = draw(n, max_len, mode, 400 * len(allowed))
    before_cutting = np.where(start == 0, length - max_len, start)  # a slice that was cut on the left starts at 0
    assert set(before_cutting.tolist()) == set(allowed)
    np.testing.assert_array_equal(start, np.maximum(before_cutting, 0))
    np.testing.assert_array_equal(start + length, np.minimum(before_cutting + max_len, n))
    if len(allowed) > 1:
        assert_uniform((before_cutting == s).sum() for s in allowed)


def visits(n: int, max_len: int, mode: str) -> list[int]:
    """How many of the possible slices contain each timestep, as documented."""
    inner, last = max_len, max_len - 1
    from_left = [min(t + 1, max_len) if mode in ("none", "right") else inner for t in range(n)]
    from_right = [min(n - t, max_len) if mode in ("none", "left") else inner for t in range(n)]
    found = [
        min(a, b, n - max_len + 1 if mode == "none" else inner) for a, b in zip(from_left, from_right, strict=True)
    ]
    if mode in ("both", "right"):
        found[-1] = last
    return found


@pytest.mark.parametrize("mode", MODES)
def test_every_timestep_is_visited_as_often_as_documented(mode: str) -> None:
    n, max_len, num = 24, 8, 60_000
    start, length = draw(n, max_len, mode, num)
    t = np.arange(n)
    share = ((start[:, None] <= t) & (t < (start + length)[:, None])).mean(axis=0)
    expected = np.array(visits(n, max_len, mode)) / len(starts(n, max_len, mode))
    np.testing.assert_allclose(share, expected, atol=5 * 0.5 / np.sqrt(num))
    if mode == "both":
        assert share.min() > 0.85 * share.max()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [1, 3, 4])
def test_short_trajectories_are_taken_whole(n: int, mode: str) -> None:
    start, length = draw(n, 4, mode, 50)
    assert (start == 0).all() and (length == n).all()


@pytest.mark.parametrize("mode", MODES)
def test_one_draw_serves_trajectories_of_all_lengths(mode: str) -> None:
    n = np.random.default_rng(1).integers(1, 30, size=2000)
    start, length = draw_slices(n, 8, mode, np.random.default_rng(0))
    assert start.dtype == length.dtype == np.int64
    assert (start >= 0).all() and (length >= 1).all() and (length <= 8).all() and (start + length <= n).all()
    assert ((length == n) | (n > 8)).all()
    if mode == "none":
        assert (length == np.minimum(n, 8)).all()


def test_modes_have_names() -> None:
    for mode in MODES:
        check_padded_sampling(mode)
    with pytest.raises(ValueError, match="padded_sampling='centre': use one of 'none', 'both', 'left', 'right'"):
        check_padded_sampling("centre")
