"""A relabeler is tried on a first rollout before any process starts: shards would find its mistakes an epoch later."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from amago_ray.agent.spec import AgentSpec
from amago_ray.replay.sampling.relabeling import Relabeler, categories_of, relabeled

DRAWS = 8  # one that relabels by chance does something else each time


def check_relabeler(
    relabeler: Relabeler, observation_space: gym.Space, columns: dict[str, np.ndarray], spec: AgentSpec
) -> None:
    """Raises ValueError for spaces that it cannot relabel, for answers that are no table, and what it raises itself.

    columns: a rollout that began and went on in the run's own environment.
    """
    relabeler.check_spaces(observation_space)
    categories, rng = categories_of(spec.obs_spec, spec.action_spec), np.random.default_rng(0)
    for _ in range(DRAWS):
        relabeled(relabeler, columns, rng, categories=categories)
