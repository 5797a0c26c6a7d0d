"""Returns, lengths and logged metrics of the rollouts in progress."""

from __future__ import annotations

import numpy as np

from amago_ray.envs.makers import Transition
from amago_ray.messages import EpisodeResult


class EpisodeStatistics:
    """Sums up N environments' rollouts and gives out one `EpisodeResult` per finished one.

    lengths: (N,) int64, steps made in each environment's rollout: the index of its current timestep.
    """

    def __init__(self, num_envs: int):
        self._total_reward = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, dtype=np.int64)
        self._metrics: list[dict[str, float]] = [{} for _ in range(num_envs)]

    def begin(self, fresh: np.ndarray) -> None:
        """New rollouts start in the environments of `fresh` (N,) bool."""
        rows = np.flatnonzero(fresh)
        self._total_reward[rows] = 0.0
        self.lengths[rows] = 0
        for row in rows:
            self._metrics[row] = {}

    def add(self, transition: Transition, ended: np.ndarray, env_names: list[str]) -> dict[int, EpisodeResult]:
        """Count one transition of every environment that stepped; returns the rollouts that `ended` (N,) bool, by row.

        Their `lengths` stay until rollouts begin in their place.
        """
        self._total_reward += transition.rewards  # 0 where nothing stepped
        self.lengths += transition.stepped
        for row, metrics in transition.infos.items():
            self._metrics[row].update(metrics)
        return {
            row: EpisodeResult(
                env_names[row], float(self._total_reward[row]), int(self.lengths[row]), self._metrics[row]
            )
            for row in np.flatnonzero(ended).tolist()
        }
