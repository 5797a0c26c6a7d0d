"""Which slice of which trajectory: pure functions of a random generator."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

PaddedSampling = Literal["none", "both", "left", "right"]


def check_padded_sampling(mode: str) -> None:
    """Raises ValueError for a mode that is none of `PaddedSampling`."""
    if mode not in get_args(PaddedSampling):
        raise ValueError(f"padded_sampling={mode!r}: use one of {', '.join(map(repr, get_args(PaddedSampling)))}")


def draw_slices(
    num_transitions: np.ndarray, max_len: int, mode: PaddedSampling, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """First transition and number of transitions of one training slice per trajectory, both (B,) int64.

    For a trajectory of n transitions and slices of l = `max_len` (n > l; shorter ones are taken whole), the start is
    uniform on [0, n-l] ("none"), [-l+1, n-2] ("both"), [-l+1, n-l] ("left") or [0, n-2] ("right"), and the slice
    [start, start + l) is cut to the trajectory. "none" visits the l - 1 timesteps at either end less often than the
    others, "left" those at the right end only, "right" those at the left end only, and "both" visits all of them
    equally often; except that in "both" and "right" the last timestep is in l - 1 slices where others are in l.
    """
    n = num_transitions
    low = np.where(mode in ("both", "left"), 1 - max_len, 0)
    high = np.where(mode in ("both", "right"), n - 2, n - max_len)
    fits = n <= max_len
    start = rng.integers(np.where(fits, 0, low), np.where(fits, 0, high), endpoint=True)
    stop = np.minimum(start + max_len, n)
    start = np.maximum(start, 0)
    return start, stop - start
