"""The memory of any sequence model as a row of what it is made of, for steps that are recorded or compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor


class ChangesShape(ValueError):
    """A memory is not the same tensors from step to step, with other numbers in them."""


def parts_of(memory: Any) -> Iterator[Any]:
    """What a memory is made of, always in the same order: tensors, and whatever else there is."""
    if isinstance(memory, (list, tuple)):
        for part in memory:
            yield from parts_of(part)
    elif isinstance(memory, Mapping):
        for name in sorted(memory):
            yield from parts_of(memory[name])
    elif dataclasses.is_dataclass(memory):
        for field in dataclasses.fields(memory):
            yield from parts_of(getattr(memory, field.name))
    else:
        yield memory


def with_tensors(memory: Any, tensors: Iterator[Tensor]) -> Any:
    """A memory like it that is made of the next of `tensors`, in the order of `parts_of`."""
    if isinstance(memory, (list, tuple)):
        parts = [with_tensors(part, tensors) for part in memory]
        return type(memory)(*parts) if hasattr(memory, "_fields") else type(memory)(parts)
    if isinstance(memory, Mapping):
        made = {name: with_tensors(memory[name], tensors) for name in sorted(memory)}
        return {name: made[name] for name in memory}
    if dataclasses.is_dataclass(memory) and not isinstance(memory, type):
        names = [field.name for field in dataclasses.fields(memory)]
        return dataclasses.replace(memory, **{name: with_tensors(getattr(memory, name), tensors) for name in names})
    return next(tensors) if isinstance(memory, Tensor) else memory


def apart(memory: Any) -> Any:
    """The memory with no tensor in two of its places: one that moves from one to the other would count as kept."""
    found = [x for x in parts_of(memory) if isinstance(x, Tensor)]
    places = [x.data_ptr() for x in found]
    repeated = [x.numel() > 0 and place in places[:i] for i, (x, place) in enumerate(zip(found, places, strict=True))]
    if not any(repeated):
        return memory
    return with_tensors(memory, iter([x.clone() if again else x for x, again in zip(found, repeated, strict=True)]))


def replaced(before: Sequence[Any], after: Sequence[Any], device: str) -> list[int]:
    """Which parts of a memory are other tensors after a step, those before it being on `device`.

    Raises ChangesShape where that would not be all that changes.
    """
    if len(before) != len(after):
        raise ChangesShape(f"its memory is made of {len(before)} parts before a step and {len(after)} after it")
    found = []
    for number, (place, value) in enumerate(zip(before, after, strict=True)):
        if isinstance(place, Tensor) and isinstance(value, Tensor):
            if place.device.type != device:
                raise ChangesShape(f"its memory has a tensor on {place.device}, and not on the device")
            if (place.shape, place.dtype, place.device) != (value.shape, value.dtype, value.device):
                raise ChangesShape("tensors of its memory change their shape, type or device from step to step")
            if place is not value:
                found.append(number)
        elif isinstance(place, np.ndarray) or place != value:
            raise ChangesShape(f"its memory holds a {type(place).__name__} that is no tensor, and may change")
    return found
