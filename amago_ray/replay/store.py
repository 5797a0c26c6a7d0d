"""Trajectories in memory, oldest first, bounded in bytes and in number."""

from __future__ import annotations

from collections import deque

import numpy as np

from amago_ray.data import Trajectory, TrajectoryId


class TrajectoryStore:
    """A first-in-first-out store of trajectories.

    capacity_bytes, capacity_trajectories: the oldest are evicted beyond either.
    """

    def __init__(self, capacity_bytes: int, capacity_trajectories: int):
        self.capacity_bytes = capacity_bytes
        self.capacity_trajectories = capacity_trajectories
        self.num_bytes = 0
        self.num_transitions = 0
        self.evicted = 0
        # Evicted entries leave a gap at the front that is compacted now and then, so that indexing stays O(1).
        self._entries: list[Trajectory | None] = []
        self._first = 0

    def __len__(self) -> int:
        return len(self._entries) - self._first

    def __getitem__(self, index: int) -> Trajectory:
        """The `index`-th oldest trajectory."""
        entry = self._entries[self._first + index]
        assert entry is not None
        return entry

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Transitions of the trajectories at `indices`, (B,) int64."""
        return np.array([self[i].num_transitions for i in indices], dtype=np.int64)

    def check_fits(self, trajectory: Trajectory) -> None:
        """Raises ValueError for a trajectory that is too large for the whole store."""
        if trajectory.num_bytes > self.capacity_bytes:
            raise ValueError(
                f"one trajectory of {trajectory.num_bytes:,} bytes ({trajectory.num_transitions:,} timesteps of "
                f"{trajectory.env_name!r}) does not fit a shard of {self.capacity_bytes:,} bytes: "
                "raise Experiment.replay_capacity_gb or lower Experiment.traj_save_len"
            )

    def append(self, trajectory: Trajectory) -> None:
        """Add the newest trajectory, evicting the oldest as needed. Raises ValueError when it alone is too large."""
        self.check_fits(trajectory)
        self._entries.append(trajectory)
        self.num_bytes += trajectory.num_bytes
        self.num_transitions += trajectory.num_transitions
        while self.num_bytes > self.capacity_bytes or len(self) > self.capacity_trajectories:
            self._evict_oldest()

    def _evict_oldest(self) -> None:
        oldest = self[0]
        self._entries[self._first] = None
        self._first += 1
        self.num_bytes -= oldest.num_bytes
        self.num_transitions -= oldest.num_transitions
        self.evicted += 1
        if self._first > 1024 and self._first > len(self):
            self._entries = self._entries[self._first :]
            self._first = 0


class SeenIds:
    """Remembers which trajectories were stored, so that a repeated push is recognised.

    A writer sends its trajectories in order and repeats only what was not acknowledged, so a window of the newest ids
    of each life of each worker is enough.
    """

    def __init__(self, window: int = 4096):
        self._window = window
        self._newest: dict[tuple[int, int], tuple[deque[int], set[int]]] = {}

    def add(self, id: TrajectoryId) -> bool:
        """Remember `id`; False when it was known."""
        order, known = self._newest.setdefault((id.worker, id.incarnation), (deque(), set()))
        if id.sequence in known:
            return False
        order.append(id.sequence)
        known.add(id.sequence)
        if len(order) > self._window:
            known.discard(order.popleft())
        return True
