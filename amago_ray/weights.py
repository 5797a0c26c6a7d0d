"""A module's state as one flat buffer, for broadcasting."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def flatten_state(module: nn.Module) -> np.ndarray:
    """Parameters and buffers of `module` as one float32 array (N,), in the order of its state dict."""
    return torch.cat([value.detach().float().flatten() for value in module.state_dict().values()]).cpu().numpy()


@torch.no_grad()
def load_flat_state(module: nn.Module, buffer: np.ndarray) -> None:
    """Fill `module` from what `flatten_state` made of an equal one. Raises ValueError when the sizes differ."""
    state = module.state_dict()
    size = sum(value.numel() for value in state.values())
    if size != len(buffer):
        raise ValueError(f"weights of {len(buffer)} numbers do not fit a module of {size}: configurations differ")
    flat = torch.from_numpy(np.array(buffer))  # a copy: the buffer may be a read-only view of shared memory
    for value, piece in zip(state.values(), flat.split([v.numel() for v in state.values()]), strict=True):
        value.copy_(piece.view_as(value))
