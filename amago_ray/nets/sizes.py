"""Few sizes in place of many, for libraries that write code for each.

oneDNN computes products of bfloat16 matrices on processors, and writes code for every size that it meets. For a size
that is new with every batch that takes longer than the product itself. It keeps the code of the last 1,024, so that
numbers of rows must not depend on how long a batch is: 8 lengths with 32 numbers each would be 256, in every layer.
"""

from __future__ import annotations

import numpy as np

DIGITS = 5  # binary ones, to which numbers of rows are rounded: 16 numbers from a power of two to the next
LENGTHS = 8  # of padded batches, at most, likewise


def rounded_up(size: int, largest: int, sizes: int) -> int:
    """The least of some `sizes` sizes up to `largest`, evenly apart, that is not below `size`."""
    step = -(-largest // sizes)
    return min(-(-size // step) * step, largest)


def few_digits(size: int, largest: int) -> int:
    """The least number of DIGITS binary digits, and then zeros, that is not below `size`, or `largest` if less."""
    zeros = max((size - 1).bit_length() - DIGITS, 0)
    return min(-(-size >> zeros) << zeros, largest)


def rows_of(real: np.ndarray, few_sizes: bool, largest: int | None = None) -> tuple[np.ndarray, int]:
    """Where `real` (B, L) bool is true in a flat view, (N,) int64, and how many rows at the end only fill up.

    few_sizes: fill up N with rows that are there already, so that few numbers occur (see `few_digits`). largest: of
    these; by default B x L.
    """
    rows = np.flatnonzero(real)
    num = few_digits(len(rows), largest or real.size) if few_sizes else len(rows)
    return np.resize(rows, num), num - len(rows)
