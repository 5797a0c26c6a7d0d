"""Hyperparameter sweeps: experiments as trials of Ray Tune."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amago_ray.tune.population import Population
    from amago_ray.tune.trial import trainable

__all__ = ["Population", "trainable"]
_MODULE_OF = {"Population": "amago_ray.tune.population", "trainable": "amago_ray.tune.trial"}


def __getattr__(name: str) -> Any:
    # Lazy, so that a configuration may name `Sweep` where Ray Tune, an extra, is not installed.
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'amago_ray.tune' has no attribute {name!r}")
