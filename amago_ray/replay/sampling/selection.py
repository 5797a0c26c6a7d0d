"""Which trajectories a shard samples, and how often: weights over what is visible.

Every mode is a weight per trajectory, and a trajectory is drawn with probability weight / total. Over several shards,
totals say how the draws are shared out, so that together they are one big buffer:

    "trajectories"  weight 1                          uniform over trajectories (AMAGO's)
    "timesteps"     weight T                          uniform over stored timesteps, as the place of a sequence
    "recent"        weight 2^(-age / half_life)       age in epochs, by which commits are numbered
    "prioritized"   weight priority^alpha             priorities come from the learner (arXiv 1511.05952)

What a drawn trajectory gives is another matter (`slices`): of T timesteps, one sequence of up to l = max_seq_len. So in
"timesteps" those of all trajectories with T >= l are seen equally often, on average over each of them, and those of
shorter ones, which are taken whole, T / l as often. That is for padded_sampling "none": the others cut slices at the
edges, and see trajectories little longer than l down to half as often.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from amago_ray.atomic_files import write_atomically
from amago_ray.replay.sampling.sum_tree import SumTree
from amago_ray.replay.storage.table import Table

LEAST_EXPONENT = -1000.0  # of a weight: what is older weighs as much, and not 0, where nothing newer is left

SamplingMode = Literal["trajectories", "timesteps", "recent", "prioritized"]


@dataclass(frozen=True)
class SelectionConfig:
    """mode: see the module. half_life: of "recent", in epochs. priority_exponent: alpha of "prioritized"."""

    mode: SamplingMode = "trajectories"
    half_life: float = 100.0
    priority_exponent: float = 0.6

    def __post_init__(self) -> None:
        if self.mode not in get_args(SamplingMode):
            raise ValueError(
                f"replay_sampling={self.mode!r}: use one of {', '.join(map(repr, get_args(SamplingMode)))}"
            )
        if self.half_life <= 0:
            raise ValueError(f"replay_half_life={self.half_life}: it must be above 0 epochs")
        if self.priority_exponent < 0:
            raise ValueError(f"priority_exponent={self.priority_exponent}: it must be 0 (uniform) or more")


class Selection:
    """Draws trajectories of a `Table` in proportion to their weights.

    folder: where priorities are kept, so that a restarted shard has them again; None keeps them in memory only.
    commit: number of the newest one. damage: is told, in words, what of the priorities could not be read or kept.
    """

    def __init__(
        self,
        config: SelectionConfig,
        table: Table,
        folder: Path | None = None,
        commit: int = 0,
        damage: list[str] | None = None,
    ):
        self.config = config
        self._table = table
        self._excluded: set[int] = set()
        self._commit = commit
        told = [] if damage is None else damage
        self._priorities = PriorityFile(folder, told) if config.mode == "prioritized" else None
        self._tree: SumTree | None = None if config.mode == "trajectories" else SumTree()
        self.table_changed(commit)

    @property
    def total(self) -> float:
        """Sum of the weights of all that can be drawn."""
        return float(len(self._table)) if self._tree is None else self._tree.total

    def draw(self, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of `num` trajectories, (num,) int64, and the probability that a draw gives each, (num,) float64.

        With replacement. There must be something to draw (`total` > 0).
        """
        if self._tree is None:
            return self._table.first + rng.integers(len(self._table), size=num), np.full(num, 1.0 / len(self._table))
        numbers = self._tree.draw(self._table.first, num, rng)
        return numbers, self._tree.get(numbers) / self._tree.total

    def table_changed(self, commit: int | None = None) -> None:
        """Weigh anew after trajectories were added or evicted. commit: the newest one's number, where it is new."""
        self._commit = self._commit if commit is None else commit
        if self._priorities is not None:
            self._priorities.follow(self._table.first, self._table.end)
        self._excluded = {number for number in self._excluded if number >= self._table.first}
        if self._tree is not None:
            weights = self._weights()
            weights[np.array(sorted(self._excluded), dtype=np.int64) - self._table.first] = 0.0
            self._tree.rebuild(self._table.first, weights)

    def _weights(self) -> np.ndarray:
        rows = self._table.rows
        if self.config.mode == "timesteps":
            return rows["num_rows"].astype(np.float64) - 1.0
        if self.config.mode == "recent":
            return np.exp2(np.maximum((rows["commit"] - self._commit) / self.config.half_life, LEAST_EXPONENT))
        if self._priorities is not None:
            return self._priorities.values.astype(np.float64) ** self.config.priority_exponent
        return np.ones(len(rows))

    def exclude(self, numbers: list[int]) -> None:
        """Never draw these again."""
        self._excluded |= set(numbers)
        if self._tree is None:
            self._tree = SumTree()
            weights = np.ones(len(self._table))
            weights[np.array(sorted(self._excluded), dtype=np.int64) - self._table.first] = 0.0
            self._tree.rebuild(self._table.first, weights)
        else:
            self._tree.set(np.array(numbers), np.zeros(len(numbers)))

    def set_priorities(self, numbers: np.ndarray, priorities: np.ndarray, largest: float) -> None:
        """Give trajectories new priorities (n,) > 0; those evicted meanwhile are left out.

        largest: that the learner has seen so far, which new trajectories begin with.
        """
        assert self._priorities is not None and self._tree is not None
        self._priorities.largest = max(self._priorities.largest, largest)
        there = (numbers >= self._table.first) & (numbers < self._table.end)
        there &= ~np.isin(numbers, list(self._excluded))
        if there.any():
            self._priorities.set(numbers[there], priorities[there])
            stored = self.priorities(numbers[there]).astype(np.float64)
            self._tree.set(numbers[there], stored**self.config.priority_exponent)

    def priorities(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) float32. Only for mode "prioritized"."""
        assert self._priorities is not None
        return self._priorities.values[numbers - self._table.first]


class PriorityFile:
    """Priorities by trajectory number, in memory and in a file beside the segments.

    The file holds the number of its first entry, the largest priority and one float32 per trajectory. It is written
    anew at every commit, and single entries in place between, so that they survive the process. They only say what to
    sample more often: where the file cannot be read or written, that is told in `damage`, and the run goes on.
    """

    HEAD = np.dtype([("first", "<i8"), ("largest", "<f8"), ("crc", "<i8")])  # CRC-32 of the two before

    def __init__(self, folder: Path | None, damage: list[str]):
        self._path = None if folder is None else folder / "priorities"
        self._damage = damage
        self._first = 0
        self.values = np.zeros(0, dtype=np.float32)
        self.largest = 1.0
        if self._path is None:
            return
        try:
            for unfinished in self._path.parent.glob(".priorities.*"):  # of a process that was killed
                unfinished.unlink()
            if self._path.exists():
                self._load(self._path.read_bytes())
        except OSError as error:
            damage.append(f"{self._path}: priorities cannot be read ({error.strerror}); they start anew")

    def _load(self, stored: bytes) -> None:
        size = self.HEAD.itemsize
        head = np.frombuffer(stored[:size], dtype=self.HEAD)[0] if len(stored) >= size else None
        if head is None or zlib.crc32(stored[: size - 8]) != head["crc"] or len(stored) % 4:
            self._damage.append(f"{self._path}: it is not as it was written; priorities start anew")
            return
        self._first, self.largest = int(head["first"]), float(head["largest"])
        self.values = np.frombuffer(stored[size:], "<f4").copy()
        wrong = ~(np.isfinite(self.values) & (self.values > 0))
        if wrong.any():
            self.values[wrong] = self.largest
            self._damage.append(f"{self._path}: {wrong.sum()} priorities are not numbers above 0; they start anew")

    def follow(self, first: int, end: int) -> None:
        """Hold exactly the numbers [first, end); new ones begin with the largest priority."""
        if (first, end) == (self._first, self._first + len(self.values)):
            return
        values = np.full(end - first, self.largest, dtype=np.float32)
        kept = range(max(first, self._first), min(end, self._first + len(self.values)))
        if kept:
            values[kept.start - first : kept.stop - first] = self.values[
                kept.start - self._first : kept.stop - self._first
            ]
        self._first, self.values = first, values
        if self._path is not None:
            stored = self._head() + values.tobytes()
            with self._or_in_memory():
                write_atomically(self._path, lambda path: path.write_bytes(stored))

    def set(self, numbers: np.ndarray, priorities: np.ndarray) -> None:
        places = numbers - self._first
        self.values[places] = priorities
        if self._path is None:
            return
        with self._or_in_memory(), open(self._path, "r+b", buffering=0) as file:
            file.write(self._head())
            for place, value in zip(places.tolist(), self.values[places], strict=True):
                file.seek(self.HEAD.itemsize + 4 * place)
                file.write(value.tobytes())

    @contextlib.contextmanager
    def _or_in_memory(self) -> Iterator[None]:
        """Where the file cannot be written, leave it as it is, which is right by number, and only older."""
        try:
            yield
        except OSError as error:
            self._damage.append(f"{self._path}: priorities cannot be written ({error.strerror}); they stay in memory")
            self._path = None

    def _head(self) -> bytes:
        head = np.array([(self._first, self.largest, 0)], dtype=self.HEAD)
        head["crc"] = zlib.crc32(head.tobytes()[:-8])
        return head.tobytes()
