"""Few sizes in place of many, for libraries that write code for each.

oneDNN computes products of bfloat16 matrices on processors, and writes code for every size that it meets. For a size
that is new with every batch that takes longer than the product itself.
"""

from __future__ import annotations

import numpy as np

ROW_COUNTS = 32  # of transitions that heads compute, at most, where few are to occur
LENGTHS = 8  # of padded batches, at most, likewise


def rounded_up(size: int, largest: int, sizes: int) -> int:
    """The least of some `sizes` sizes up to `largest`, evenly apart, that is not below `size`."""
    step = -(-largest // sizes)
    return min(-(-size // step) * step, largest)


def rows_of(real: np.ndarray, few_sizes: bool) -> tuple[np.ndarray, int]:
    """Where `real` (B, L) bool is true in a flat view, (N,) int64, and how many rows at the end only fill up.

    few_sizes: fill up N with rows that are there already, so that no more than ROW_COUNTS numbers occur.
    """
    rows = np.flatnonzero(real)
    num = rounded_up(len(rows), real.size, ROW_COUNTS) if few_sizes else len(rows)
    return np.resize(rows, num), num - len(rows)
