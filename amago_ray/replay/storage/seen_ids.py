"""Which trajectories were stored: how a shard recognises a repeated push."""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_HOLES = 1 << 16


class SeenIds:
    """The identities of all trajectories that a shard ever stored, in a few bytes per life of each worker.

    A worker numbers its trajectories and deals them out over the shards in turn, so that one shard gets every
    `stride`-th of them, in order but for what is in flight. So one number says which all were seen, and a small set
    holds those that came before their turn.

    stride: number of shards.
    """

    def __init__(self, stride: int = 1):
        self._stride = stride
        self._next: dict[tuple[int, int], dict[int, int]] = {}  # life -> residue -> smallest number not yet seen
        self._early: dict[tuple[int, int], set[int]] = {}
        self._stride_of: dict[tuple[int, int], int] = {}

    def new(self, ids: np.ndarray) -> np.ndarray:
        """(M,) bool: which of `ids` (M, 3) int64 were not stored, and stand in it for the first time."""
        found: set[tuple[int, int, int]] = set()
        mask = np.zeros(len(ids), dtype=bool)
        for i, (worker, incarnation, sequence) in enumerate(ids.tolist()):
            id, life = (worker, incarnation, sequence), (worker, incarnation)
            residue = sequence % self._stride_of.get(life, self._stride)
            mask[i] = (
                sequence >= self._next.get(life, {}).get(residue, 0)
                and sequence not in self._early.get(life, ())
                and id not in found
            )
            found.add(id)
        return mask

    def add(self, ids: np.ndarray) -> None:
        """Remember `ids` (M, 3) int64."""
        for worker, incarnation, sequence in ids.tolist():
            self._add((worker, incarnation), sequence)

    def _add(self, life: tuple[int, int], sequence: int) -> None:
        expected = self._next.setdefault(life, {})
        early = self._early.setdefault(life, set())
        stride = self._stride_of.setdefault(life, self._stride)
        following = expected.get(sequence % stride, sequence % stride)
        if sequence > following:
            early.add(sequence)
            if len(early) <= MAX_HOLES:
                return
            sequence = following = min(early)  # the numbers before it never came: their writer left them out
            early.discard(sequence)
        if sequence == following:
            following += stride
            while following in early:
                early.discard(following)
                following += stride
            expected[sequence % stride] = following

    def to_json(self) -> list[list[Any]]:
        """What `from_json` needs to remember the same."""
        return [
            [*life, self._stride_of[life], sorted(expected.items()), sorted(self._early[life])]
            for life, expected in self._next.items()
        ]

    @staticmethod
    def from_json(lives: list[list[Any]], stride: int) -> SeenIds:
        """stride: of lives that begin from now on; another number of shards than before changes nothing for others."""
        seen = SeenIds(stride)
        for worker, incarnation, stride_of_life, expected, early in lives:
            life = (worker, incarnation)
            seen._stride_of[life] = stride_of_life
            seen._next[life] = {int(residue): int(n) for residue, n in expected}
            seen._early[life] = set(early)
        return seen
