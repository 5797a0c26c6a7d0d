"""The visible trajectories of a shard: their facts, and where they lie."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from amago_ray.replay.storage.records import FACTS

INDEX = np.dtype([*FACTS.descr, ("record", "<i8"), ("first_row", "<i8"), ("num_bytes", "<i8"), ("commit", "<i8")])

KEY = ["commit", "worker", "incarnation", "sequence"]  # rows are ordered by it


class Table:
    """A growing table of INDEX rows from which rows are dropped at the front: the visible trajectories.

    Rows have running numbers in [first, end) that never change.
    """

    def __init__(self) -> None:
        self._rows = np.empty(1024, dtype=INDEX)
        self._offset = 0  # of row `first` in `_rows`
        self.first = self.end = 0

    def __len__(self) -> int:
        return self.end - self.first

    @property
    def rows(self) -> np.ndarray:
        """(n,) the visible rows, oldest first: a view."""
        return self._rows[self._offset : self._offset + len(self)]

    @property
    def oldest(self) -> tuple[int, ...] | None:
        """Commit and identity of the first row."""
        return self.rows[KEY][0].tolist() if len(self) else None

    def before(self, key: Sequence[int]) -> int:
        """How many rows come before the one that was `oldest` once, or before its place if it is not there any more."""
        keys = np.stack([self.rows[name] for name in KEY], axis=1)
        found = np.flatnonzero((keys == np.array(key)).all(axis=1))
        return int(found[0]) if len(found) else bisect_left(keys.tolist(), list(key))

    def append(self, rows: np.ndarray) -> None:
        if self._offset + len(self) + len(rows) > len(self._rows):
            grown = np.empty(max(2 * (len(self) + len(rows)), 1024), dtype=INDEX)
            grown[: len(self)] = self.rows
            self._rows, self._offset = grown, 0
        self._rows[self._offset + len(self) : self._offset + len(self) + len(rows)] = rows
        self.end += len(rows)

    def drop(self, num: int) -> None:
        self._offset += num
        self.first += num
