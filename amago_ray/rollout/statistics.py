"""Returns, lengths and logged metrics of the rollouts in progress, and how many timesteps there were."""

from __future__ import annotations

from collections import Counter

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
        rows = fresh.nonzero()[0]
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
        if not np.count_nonzero(ended):
            return {}
        return {
            row: EpisodeResult(
                env_names[row], float(self._total_reward[row]), int(self.lengths[row]), self._metrics[row]
            )
            for row in ended.nonzero()[0].tolist()
        }


class Frames:
    """Counts timesteps by the name of their environment.

    Names change with rollouts only: steps of all environments under the same names are but one number, until asked.
    """

    def __init__(self) -> None:
        self._by_name: Counter[str] = Counter()
        self._names: list[str] = []
        self._steps = 0  # of all environments, under these names

    def add(self, stepped: np.ndarray, names: list[str]) -> None:
        """One step of the environments that `stepped` (N,) bool; names: of all N."""
        if np.count_nonzero(stepped) < len(names):
            self._by_name.update(name for name, made in zip(names, stepped.tolist(), strict=True) if made)
            return
        if names != self._names:
            self.by_name()
            self._names = names.copy()
        self._steps += 1

    def by_name(self) -> Counter[str]:
        for name in self._names if self._steps else ():
            self._by_name[name] += self._steps
        self._steps = 0
        return self._by_name
