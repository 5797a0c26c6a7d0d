"""What is made of a module's weights and kept until they change: acting reuses it at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """Something made of tensors, made again only after one of them was written into, or they moved elsewhere.

    make: returns it, and what it was made of. Without gradient: what is kept is part of no graph; and while a graph is
    traced nothing is kept, so that it sees what is made of weights.
    Fused optimisers write without a trace; whoever trains calls `forget`.
    """

    def __init__(self) -> None:
        self._made: T | None = None
        self._sources: Sequence[Tensor] = ()
        self._state: tuple[object, ...] = ()

    def get(self, make: Callable[[], tuple[T, Sequence[Tensor]]]) -> T:
        if torch.compiler.is_exporting():
            return make()[0]
        if self._made is None or self._state != self._now():
            with torch.no_grad():
                self._made, self._sources = make()
            self._state = self._now()
        return self._made

    def forget(self) -> None:
        """Make it again at the next call."""
        self._made = None

    def _now(self) -> tuple[object, ...]:
        first = self._sources[:1]
        return (*[(x.device, x.dtype) for x in first], *[source._version for source in self._sources])
