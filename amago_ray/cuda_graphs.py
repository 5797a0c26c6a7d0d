"""CUDA graphs: launches that are recorded once and done again by one call, with all tensors where they lay.

For what is many small launches, which take the host longer than the GPU: `learner.graphed` and `rollout.policy_step`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType
from typing import Literal, Protocol, TypeVar

import torch
from torch import nn

CudaGraphs = Literal["auto", "always", "never"]
NEUTRAL = {"builtins.", "typing.", "abc."}
OUTSIDE = ("optimizer_type",)  # what an agent is given and is looked at elsewhere (`learner.graphed.steps_on_device`)
# Whose modules keep nothing in Python that changes from call to call, but for what the call before a recording has made
# of weights (`nets.kept`).
KNOWN = ("amago_ray.", "torch.")

T = TypeVar("T")


class CannotRecord(RuntimeError):
    """Something cannot be recorded: the error that it met."""


class Recorder(Protocol):
    """How launches are recorded."""

    def warm_up(self, function: Callable[[], T]) -> T:
        """Call it where recordings are made, without making one: libraries allocate then what they keep."""

    def record(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """What does again on the device what `function` does, and where its results are then. Nothing is done yet.

        Raises CannotRecord.
        """

    def forget(self) -> None:
        """What was recorded is not done again."""


class CudaRecorder:
    """Records CUDA graphs, whose intermediate results share their memory, until they are forgotten.

    All on one stream: what adds gradients to a parameter runs on the stream of whoever last built a graph of autograd
    over it, as long as anybody holds on to that, and a recording may not touch another stream.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def warm_up(self, function: Callable[[], T]) -> T:
        aside, here = self._stream, torch.cuda.current_stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            result = function()
        here.wait_stream(aside)
        return result

    def record(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Of this thread alone, should another one use the device meanwhile.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                result = function()
        except RuntimeError as error:
            torch.cuda.set_stream(here)
            self._leave()
            raise CannotRecord(error.__context__ or error) from error
        return graph.replay, result

    def forget(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()  # one whose graphs are all gone takes no other

    def _leave(self) -> None:
        """What PyTorch leaves undone where a recording is spoiled: its allocator stays with the recording's memory, and
        its random numbers with the recording's offsets, so that the next one is refused."""
        device = torch.cuda.current_device()
        with suppress(RuntimeError, AttributeError):  # no public name of PyTorch's
            torch._C._cuda_endAllocateToPool(device, self._pool)
        generator = torch.cuda.default_generators[device]
        fresh = torch.Generator(generator.device)
        fresh.set_state(generator.get_state())
        generator.graphsafe_set_state(fresh.graphsafe_get_state())


def is_known(part: object) -> bool:
    """Whether code is of this package or of PyTorch, and the functions that it was given: other code may do something
    in Python each time."""
    if isinstance(part, partial):
        return all(map(is_known, (part.func, *part.args, *part.keywords.values())))
    if isinstance(part, FunctionType | MethodType | type):
        return f"{part.__module__}.".startswith(KNOWN)
    bases = {f"{base.__module__}." for base in type(part).__mro__} - NEUTRAL
    if not any(name.startswith(KNOWN) for name in bases):
        return True  # a number, a name, a function written in C
    given = (
        x for name, x in vars(part).items() if callable(x) and name not in OUTSIDE and not isinstance(x, nn.Module)
    )
    return all(name.startswith(KNOWN) for name in bases) and all(map(is_known, given))
