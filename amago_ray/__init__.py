"""amago_ray: distributed training of long-memory, in-context reinforcement-learning agents on Ray."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amago_ray.experiment import Experiment

__version__ = "0.1.0"
__all__ = ["Experiment", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the learning half (`amago_ray.agent`, `.nets`, `.learner`) imports where Ray is not installed.
    if name == "Experiment":
        return importlib.import_module("amago_ray.experiment").Experiment
    raise AttributeError(f"module 'amago_ray' has no attribute {name!r}")
