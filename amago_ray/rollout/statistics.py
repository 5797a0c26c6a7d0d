"""Returns, lengths and logged metrics of the rollouts in progress."""

from __future__ import annotations

import numpy as np

from amago_ray.envs.makers import Transition
from amago_ray.messages import EpisodeResult


class EpisodeStatistics:
    """Sums up N environments' rollouts and gives out one `EpisodeResult` per finished one."""

    def __init__(self, num_envs: int):
        self._total_reward = np.zeros(num_envs)
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._metrics: list[dict[str, float]] = [{} for _ in range(num_envs)]
        self._finished: list[EpisodeResult] = []

    def begin(self, fresh: np.ndarray) -> None:
        """New rollouts start in the environments of `fresh` (N,) bool."""
        rows = np.flatnonzero(fresh)
        self._total_reward[rows] = 0.0
        self._length[rows] = 0
        for row in rows:
            self._metrics[row] = {}

    def add(self, transition: Transition, ended: np.ndarray, env_names: list[str]) -> None:
        """Count one transition of every environment that stepped, of which some `ended` (N,) bool."""
        self._total_reward += transition.rewards  # 0 where nothing stepped
        self._length += transition.stepped
        for row, metrics in transition.infos.items():
            self._metrics[row].update(metrics)
        for row in np.flatnonzero(ended).tolist():
            self._finished.append(
                EpisodeResult(
                    env_names[row], float(self._total_reward[row]), int(self._length[row]), self._metrics[row]
                )
            )

    def take(self) -> list[EpisodeResult]:
        """The rollouts that finished since the last call, in the order of their end."""
        finished, self._finished = self._finished, []
        return finished
