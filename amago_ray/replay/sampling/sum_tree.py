"""Draws in proportion to weights that change."""

from __future__ import annotations

import numpy as np


class SumTree:
    """A binary tree of sums over a ring of weights: O(log n) to change one, and to draw one in proportion to it.

    Entries have running numbers; those in [first, first + n) are held, for any n up to a capacity that grows as needed.
    All methods take and give whole arrays (Schaul et al. 2016, arXiv 1511.05952, appendix B.2.1).
    """

    def __init__(self) -> None:
        self._capacity = 1  # a power of two
        self._sums = np.zeros(2)  # node i has children 2i and 2i + 1; leaves are the last half

    @property
    def total(self) -> float:
        return float(self._sums[1])

    def rebuild(self, first: int, weights: np.ndarray) -> None:
        """Hold exactly `weights` (n,) under the numbers first, first + 1, ..."""
        while self._capacity < len(weights):
            self._capacity *= 2
        self._sums = np.zeros(2 * self._capacity)
        leaves = self._sums[self._capacity :]
        leaves[(first + np.arange(len(weights))) % self._capacity] = weights
        for width in _halvings(self._capacity):
            below = self._sums[2 * width : 4 * width]
            self._sums[width : 2 * width] = below[0::2] + below[1::2]

    def set(self, numbers: np.ndarray, weights: np.ndarray) -> None:
        """Give entries new weights. Of a number that is named twice, the last weight stands."""
        node = numbers % self._capacity + self._capacity
        self._sums[node] = weights
        while (node := np.unique(node // 2))[0] > 0:
            self._sums[node] = self._sums[2 * node] + self._sums[2 * node + 1]

    def get(self, numbers: np.ndarray) -> np.ndarray:
        return self._sums[numbers % self._capacity + self._capacity]

    def draw(self, first: int, num: int, rng: np.random.Generator) -> np.ndarray:
        """`num` numbers, each drawn with probability weight / total, with replacement. The total must be above 0."""
        target = rng.random(num) * self.total
        node = np.ones(num, dtype=np.int64)
        for _ in range(self._capacity.bit_length() - 1):
            left = self._sums[2 * node]
            # A left child that rounding made too small must not send a draw into an empty right one.
            right = (target >= left) & (self._sums[2 * node + 1] > 0)
            target = np.where(right, target - left, target)
            node = 2 * node + right
        slot = node - self._capacity
        return first + (slot - first) % self._capacity


def _halvings(capacity: int) -> list[int]:
    """capacity / 2, capacity / 4, ..., 1."""
    return [1 << i for i in reversed(range(capacity.bit_length() - 1))]
