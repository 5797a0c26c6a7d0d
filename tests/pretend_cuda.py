"""A GPU that computes nothing, to find on a CPU what a GPU would trip over.

Tensors on PyTorch's meta device, which have shapes and no values, say that they are on "cuda", so that every branch for
GPUs is taken. What mixes devices, or wants a value, fails there as it does on a GPU; the rest is watched:

    with PretendCuda() as gpu:
        learner = ...            # with "cuda" as its device
        learner.update(batch)
    assert gpu.faults == []
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
META = torch.device("meta")
COPIES = ("_to_copy", "to", "copy_")


class _AsCuda(TorchFunctionMode):
    """What asks for "cuda" gets meta, and what asks a meta tensor where it is hears "cuda". Pinning is noted."""

    def __init__(self, faults: list[str], pinned: set[int]):
        super().__init__()
        self._faults, self._pinned = faults, pinned

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            device = func(*args)
            return CUDA if device.type == "meta" else device
        if func is Tensor.cuda:
            return args[0].to(META)
        if func is Tensor.pin_memory:
            return self._pin(args[0].clone())
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            self._faults.append("numbers of the host made a tensor on the device")
        pin = kwargs.pop("pin_memory", False)
        if func is Tensor.to or "device" in kwargs:
            args, kwargs = tree_map(_as_meta, (args, kwargs))
        result = func(*args, **kwargs)
        return self._pin(result) if pin else result

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned.add(tensor.untyped_storage().data_ptr())
        return tensor


def _as_meta(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return META
    return "meta" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


class _Watch(TorchDispatchMode):
    """Notes the operators that wait for the device, or make the device wait for the host."""

    def __init__(self, faults: list[str], pinned: set[int]):
        super().__init__()
        self._faults, self._pinned = faults, pinned
        self.copies_to_device = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_host = [x for x in tensors if x.device.type == "cpu" and x.dim() > 0]
        on_device = any(x.device.type == "meta" for x in tensors) or kwargs.get("device") == META
        if on_device and on_host:
            if name not in COPIES:
                self._faults.append(f"{name} of tensors on both devices")
            elif name == "copy_" and args[0].device.type == "cpu":
                self._faults.append("copy to the host")
            else:
                self.copies_to_device += 1
                if any(x.untyped_storage().data_ptr() not in self._pinned for x in on_host):
                    self._faults.append(f"{name} to the device, from memory that is not pinned")
        return func(*args, **kwargs)


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> torch.amp.autocast:
    return torch.amp.autocast("cuda" if device_type == "meta" else device_type, *args, **kwargs)


class PretendCuda:
    """faults: what was found so far. copies_to_device: how many tensors with values went there."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        pinned: set[int] = set()
        self._modes = _AsCuda(self.faults, pinned), _Watch(self.faults, pinned)

    @property
    def copies_to_device(self) -> int:
        return self._modes[1].copies_to_device

    def __enter__(self) -> PretendCuda:
        self._stack = ExitStack()
        for mode in self._modes:
            self._stack.enter_context(mode)
        # Backward passes see no mode of functions. Meta tensors there are "meta" but for these two.
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(Tensor, "is_cuda", property(lambda x: x.is_meta), raising=False)
        patch.setattr(torch, "autocast", _autocast)
        # By which checkpoints compare what is computed again: some saw the device's name, others not.
        patch.setitem(checkpoint._allowed_determinism_checks_to_fns, "default", lambda x: (x.shape, x.dtype))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
