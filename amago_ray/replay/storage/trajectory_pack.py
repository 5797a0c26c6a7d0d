"""Many trajectories as one contiguous message, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from amago_ray.messages import Trajectory, TrajectoryId


@dataclass(frozen=True)
class PackedTrajectories:
    """Trajectories laid end to end: one array per column, (sum_i (T_i + 1), ...), and one row of facts per trajectory.

    ids: (M, 3) int64. num_rows: (M,) int64, T_i + 1. first_time_idx, weight_version: (M,) int64. truncated: (M,) bool.
    """

    columns: dict[str, np.ndarray]
    ids: np.ndarray
    num_rows: np.ndarray
    first_time_idx: np.ndarray
    weight_version: np.ndarray
    truncated: np.ndarray
    env_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.num_rows)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all columns."""
        return sum(column[:1].nbytes for column in self.columns.values())

    def select(self, chosen: np.ndarray) -> PackedTrajectories:
        """A message of the trajectories `chosen` (n,) int64 alone, in that order."""
        stops = np.cumsum(self.num_rows)
        rows = np.concatenate([np.arange(stops[i] - self.num_rows[i], stops[i]) for i in chosen] or [stops[:0]])
        return PackedTrajectories(
            columns={name: column[rows] for name, column in self.columns.items()},
            ids=self.ids[chosen],
            num_rows=self.num_rows[chosen],
            first_time_idx=self.first_time_idx[chosen],
            weight_version=self.weight_version[chosen],
            truncated=self.truncated[chosen],
            env_names=tuple(self.env_names[i] for i in chosen),
        )

    def pieces(self, num_bytes: int) -> Iterator[PackedTrajectories]:
        """The same trajectories in messages of at most `num_bytes`, or of one trajectory where that one is larger."""
        ends = np.cumsum(self.num_rows) * self.row_bytes
        if not len(self) or ends[-1] <= num_bytes:
            yield from [self] if len(self) else []
            return
        first = 0
        while first < len(self):
            before = ends[first - 1] if first else 0
            stop = max(int(np.searchsorted(ends, before + num_bytes, side="right")), first + 1)
            yield self.select(np.arange(first, stop))
            first = stop

    def unpack(self) -> Iterator[Trajectory]:
        """The trajectories, with columns that are copies: a view would keep the whole message alive."""
        stops = np.cumsum(self.num_rows)
        for i, stop in enumerate(stops):
            rows = slice(stop - self.num_rows[i], stop)
            yield Trajectory(
                id=TrajectoryId(*(int(x) for x in self.ids[i])),
                env_name=self.env_names[i],
                columns={name: column[rows].copy() for name, column in self.columns.items()},
                first_time_idx=int(self.first_time_idx[i]),
                truncated=bool(self.truncated[i]),
                weight_version=int(self.weight_version[i]),
            )


def pack(trajectories: list[Trajectory]) -> PackedTrajectories:
    """One message of one or more trajectories that share their columns' names, shapes and dtypes."""
    return PackedTrajectories(
        columns={name: np.concatenate([t.columns[name] for t in trajectories]) for name in trajectories[0].columns},
        ids=np.array([(t.id.worker, t.id.incarnation, t.id.sequence) for t in trajectories], dtype=np.int64),
        num_rows=np.array([t.num_transitions + 1 for t in trajectories], dtype=np.int64),
        first_time_idx=np.array([t.first_time_idx for t in trajectories], dtype=np.int64),
        weight_version=np.array([t.weight_version for t in trajectories], dtype=np.int64),
        truncated=np.array([t.truncated for t in trajectories], dtype=bool),
        env_names=tuple(t.env_name for t in trajectories),
    )
