"""What a run's networks are tried on before anything starts, and whose of them have to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amago_ray.cuda_graphs import is_known
from amago_ray.specs import ArraySpec, ObsSpec


def is_own(part: nn.Module) -> bool:
    """Whether a network, or a part of it, is of a user's module: the tests have tried this package's own."""
    return not all(map(is_known, part.modules()))


def observed(spec: ArraySpec, num: int, rng: np.random.Generator) -> np.ndarray:
    """`num` timesteps of an array, (num, ...), such as any code takes that fits the space.

    Numbers are between 0 and 1 as far as the bounds allow: what is declared as a byte or a real number may be an index.
    """
    shape = (num, *spec.shape)
    if spec.nvec:
        return rng.integers(np.reshape(spec.nvec, spec.shape), size=shape).astype(spec.dtype)
    is_real = np.dtype(spec.dtype).kind == "f"
    values = rng.random(shape) if is_real else rng.integers(2, size=shape)
    if spec.bounds is not None:
        values = np.clip(values, *(np.reshape(x, spec.bounds.shape) for x in (spec.bounds.low, spec.bounds.high)))
    return values.astype(spec.dtype)


def timesteps(
    obs_spec: ObsSpec, rl2_dim: int, num: int, length: int, legal_key: str | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Observations (num, length, ...) and rl2 (num, length, rl2_dim). legal_key: the array that allows everything."""
    rng = np.random.default_rng(0)
    obs = {name: observed(spec, num * length, rng) for name, spec in obs_spec.items()}
    if legal_key is not None:
        obs[legal_key][:] = 1
    rl2 = rng.random((num, length, rl2_dim)).astype(np.float32)
    tensors = {name: torch.from_numpy(x).unflatten(0, (num, length)) for name, x in obs.items()}
    return tensors, torch.from_numpy(rl2)


def apart(one: Tensor, other: Tensor, tolerance: float) -> float | None:
    """The largest difference of two tensors, None where it is within `tolerance`, relative above 1. NaN is far."""
    if not one.numel():
        return None
    off = (one - other).abs().max().item()
    return None if off <= tolerance * (1.0 + other.abs().max().item()) else off


def check_numbers(called: str, answer: Any) -> None:
    """Raises ValueError unless what a method returned is a tensor of finite numbers. called: its class and name."""
    if not isinstance(answer, Tensor):
        raise ValueError(f"{called} returned a {kind_of(answer)}; it must return a tensor")
    if not answer.isfinite().all():
        wrong = answer[~answer.isfinite()][0].item()
        raise ValueError(f"{called} made {wrong} of numbers that are finite, such as the space allows")


def kind_of(answer: Any) -> str:
    """What something is, in words: its class, and how many parts it has."""
    module, name = type(answer).__module__.partition(".")[0], type(answer).__name__
    name = name if module == "builtins" else f"{module}.{name}"
    return f"{name} of {len(answer)}" if isinstance(answer, tuple | list) else name
