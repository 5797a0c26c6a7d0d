"""A module's state as one array of bytes, for broadcasting, and as a file."""

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
        other = first_difference(weight_shapes(state), weight_shapes(module.state_dict()))
        raise ValueError(
            f"{path} does not fit this configuration: {other or ' '.join(str(error).split())[:300]}; networks, and "
            "spaces of environments, must be those that it is of"
        ) from error


def weight_shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Name -> shape of every weight of a state dict."""
    return {name: list(value.shape) for name, value in state.items()}


def first_difference(saved: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> str | None:
    """In words, the first weight that two sets of `weight_shapes` do not agree in; None where they do."""
    for name in sorted(saved.keys() | now.keys()):
        if saved.get(name) != now.get(name):
            before, after = (tuple(x[name]) if name in x else "absent" for x in (saved, now))
            return f"{name} was {before}, now {after}"
    return None


def flatten_state(module: nn.Module) -> np.ndarray:
    """Parameters and buffers of `module` as one array of bytes (N,), in the order of its state dict."""
    return torch.cat([_bytes(value.detach()) for value in module.state_dict().values()]).cpu().numpy()


@torch.no_grad()
def load_flat_state(module: nn.Module, buffer: np.ndarray) -> None:
    """Fill `module` from what `flatten_state` made of an equal one. Raises ValueError when the sizes differ."""
    state = module.state_dict()
    sizes = [value.numel() * value.element_size() for value in state.values()]
    if sum(sizes) != len(buffer):
        raise ValueError(f"weights of {len(buffer)} bytes do not fit a module of {sum(sizes)}: configurations differ")
    flat = torch.from_numpy(np.array(buffer))  # a copy: the buffer may be a read-only view of shared memory
    for value, piece in zip(state.values(), flat.split(sizes), strict=True):
        if piece.storage_offset() % value.element_size():  # after one of another size, numbers begin anywhere
            piece = piece.clone()
        value.copy_(piece.view(value.dtype).view(value.shape))


def _bytes(value: Tensor) -> Tensor:
    """Whatever numbers they are: a conversion would round integers, and leave out imaginary parts."""
    numbers = value.resolve_conj().resolve_neg().reshape(-1)
    if numbers.stride(0) != 1:  # a column of something
        numbers = numbers.clone(memory_format=torch.contiguous_format)
    return numbers.view(torch.uint8)
