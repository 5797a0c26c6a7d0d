"""The action spaces of the diagnostic environments, one for each kind of action that agents support."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from gymnasium import spaces

from amago_ray.envs.builtin.arguments import check_choice, check_integer
from amago_ray.specs import ActionKind


def make_action_space(kind: ActionKind, size: int) -> spaces.Space[Any]:
    """A space of one kind and size.

    kind "discrete": `size` actions. "continuous": float32 of shape (size,) in [-1, 1]. "multibinary": shape (size,).
    "multidiscrete": `size` entries of 2, 3, 4, 2, 3, 4, ... categories, so that unequal entries are met too.
    Raises ValueError for an unknown kind, for a size below 1, and for "discrete" below 2.
    """
    check_choice("action", kind, get_args(ActionKind))
    check_integer("size", size, at_least=2 if kind == "discrete" else 1)
    if kind == "discrete":
        return spaces.Discrete(size)
    if kind == "continuous":
        return spaces.Box(-1.0, 1.0, shape=(size,), dtype=np.float32)
    if kind == "multibinary":
        return spaces.MultiBinary(size)
    return spaces.MultiDiscrete([2 + entry % 3 for entry in range(size)])
