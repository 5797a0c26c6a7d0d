"""A module's state as one flat buffer, for broadcasting, and as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor, nn


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights in a PyTorch file, on the CPU. Raises ValueError for any other file; runs no code of it."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file of policy weights")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # PyTorch's own message says how to run it nevertheless
        raise ValueError(
            f"{path} is not a file of PyTorch weights: it is damaged, or holds other things than weights, which could "
            "be code and are not loaded"
        ) from error
    except OSError as error:
        raise ValueError(f"{path} is not a file of PyTorch weights: it is cut off ({error.strerror})") from error
    except Exception as error:  # whatever PyTorch makes of bytes that are not its own
        reason = str(error).partition("\n")[0] or "it is cut off"
        raise ValueError(f"{path} is not a file of PyTorch weights: {reason}") from error
    if not (isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"{path} does not hold a state dict of policy weights")
    return dict(state)


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill `module` from a PyTorch file. Raises ValueError when there is none, or it is of another architecture."""
    state = read_state_dict(path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this configuration: {' '.join(str(error).split())[:300]}") from error


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
