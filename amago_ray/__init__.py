"""amago_ray: distributed training of long-memory, in-context reinforcement-learning agents on Ray."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amago_ray.experiment import Experiment
    from amago_ray.rollout.acting import load_policy

__version__ = "0.1.0"
__all__ = ["Experiment", "__version__", "load_policy"]

# Lazy, so that the learning half (`amago_ray.agent`, `.nets`, `.learner`) and a policy in use import where Ray is not
# installed.
_PUBLIC = {"Experiment": "amago_ray.experiment", "load_policy": "amago_ray.rollout.acting"}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'amago_ray' has no attribute {name!r}")
