"""Less memory for more work: what a network computes can be thrown away, and computed again in the backward pass.

    with recomputing(enabled):
        loss = agent(batch).loss        # `recomputed(layer, x)` in there keeps x alone
    loss.backward()

(Activation checkpointing: Chen et al. 2016, arXiv 1604.06174.) A part that is computed again must move no running
statistics again: what moves them asks `statistics_are_held`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")

_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)
_held: ContextVar[bool] = ContextVar("held", default=False)


@contextmanager
def _set(variable: ContextVar[bool], value: bool) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def recomputing(enabled: bool = True) -> AbstractContextManager[None]:
    """Within the block, of this thread alone, `recomputed` keeps nothing but arguments."""
    return _set(_recomputing, enabled)


def held_statistics() -> AbstractContextManager[None]:
    """Within the block, of this thread alone, running statistics stay as they are, in training too."""
    return _set(_held, True)


def statistics_are_held() -> bool:
    """Whether this is within `held_statistics`."""
    return _held.get()


def recomputed(function: Callable[..., Result], *args: object) -> Result:
    """`function(*args)`; within `recomputing`, and where gradient is wanted, the backward pass computes it again.

    What it draws at random is drawn again alike.
    """
    if not (_recomputing.get() and torch.is_grad_enabled()):
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), held_statistics()))
