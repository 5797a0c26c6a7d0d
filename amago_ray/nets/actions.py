"""Actions as stored (integers stay integers) and as networks see them (float vectors)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from amago_ray.specs import ActionSpec


def action_vector(stored: Tensor, spec: ActionSpec) -> Tensor:
    """Stored actions (..., *spec.shape) as float32 vectors (..., spec.vector_size): categories as one-hots."""
    if spec.kind == "discrete":
        return F.one_hot(stored.long(), spec.vector_size).float()
    if spec.kind == "multidiscrete":
        stored = stored.long()
        return torch.cat([F.one_hot(stored[..., i], n) for i, n in enumerate(spec.nvec)], dim=-1).float()
    return stored.float()


def stored_action(vector: Tensor, spec: ActionSpec) -> Tensor:
    """The inverse of `action_vector`, for vectors that are actions (one-hot where the space is categorical)."""
    if spec.kind == "discrete":
        return vector.argmax(dim=-1)
    if spec.kind == "multidiscrete":
        return torch.stack([part.argmax(dim=-1) for part in vector.split(spec.nvec, dim=-1)], dim=-1)
    return vector
