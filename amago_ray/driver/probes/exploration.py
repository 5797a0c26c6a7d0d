"""A user's exploration makes its first steps before any process starts."""

from __future__ import annotations

import numpy as np

from amago_ray.envs.exploration import ExplorationWrapper
from amago_ray.specs import ActionSpec

STEPS = 3


def check_exploration(made: ExplorationWrapper, action_spec: ActionSpec, masked: bool) -> None:
    """A rollout's first steps with a user's exploration. Raises ValueError for one that could not go on.

    masked: some actions may be illegal.
    """
    if type(made).__module__ == ExplorationWrapper.__module__:
        return
    name = type(made).__name__
    if not hasattr(made, "steps"):
        raise ValueError(f"{name}: its __init__ does not call super().__init__(num_envs, action_spec, seed)")
    legal = np.ones((made.num_envs, action_spec.vector_size), np.int8) if masked else None
    for t in range(STEPS):
        made.begin(np.full(made.num_envs, t == 0))
        actions = np.zeros((made.num_envs, *action_spec.shape), action_spec.dtype)
        made(actions, np.full(made.num_envs, t), legal)
    metrics = made.metrics()
    if not all(np.ndim(value) == 0 for value in metrics.values()):
        raise ValueError(f"{name}: `metrics` returned {metrics!r:.80}; it must be a dict of numbers")
    made.load_state_dict(made.state_dict())
