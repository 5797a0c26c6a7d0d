"""Random states of one's own, in place of those that a whole process shares."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import torch

_one_at_a_time = threading.RLock()  # PyTorch draws from one state for all threads, which is the one that is exchanged


class TorchRandomStream:
    """A torch random state of one's own: blocks run under it neither disturb other draws nor are disturbed by them.

    Blocks of several threads wait for each other. A copy, also one in another process, goes on from where this one is.
    device: what draws; on a GPU both its own generator and the host's are this stream's.
    """

    def __init__(self, seed: int, device: str = "cpu"):
        self._on_gpu = torch.device(device).type == "cuda"
        self._states = [torch.Generator(g.device).manual_seed(seed).get_state() for g in self._generators()]

    def __enter__(self) -> None:
        _one_at_a_time.acquire()
        self._outer = self._exchange(self._states)

    def __exit__(self, *exc: object) -> None:
        self._states = self._exchange(self._outer)
        _one_at_a_time.release()

    def _generators(self) -> list[torch.Generator]:
        """Those of this process, which a copy must not hold: PyTorch draws from none but its own."""
        if not self._on_gpu:
            return [torch.default_generator]
        torch.cuda.init()  # its generators are there only then
        return [torch.default_generator, torch.cuda.default_generators[torch.cuda.current_device()]]

    def _exchange(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """Put `states` in place of those that are there, and return these."""
        generators = self._generators()
        before = [generator.get_state() for generator in generators]
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return before


class RandomStream(TorchRandomStream):
    """A `TorchRandomStream` that is also one of Python's `random` and of `np.random`, for environments that draw there.

    Entering and leaving it takes a third of a millisecond.
    """

    def __init__(self, seed: int, device: str = "cpu"):
        super().__init__(seed, device)
        self._host_states: tuple[Any, Any] = random.Random(seed).getstate(), np.random.RandomState(seed).get_state()

    def __enter__(self) -> None:
        super().__enter__()
        self._outer_host = _exchange_host(self._host_states)

    def __exit__(self, *exc: object) -> None:
        self._host_states = _exchange_host(self._outer_host)
        super().__exit__(*exc)


def _exchange_host(states: tuple[Any, Any]) -> tuple[Any, Any]:
    """Put `states` of `random` and `np.random` in place of those that are there, and return these."""
    before = random.getstate(), np.random.get_state()
    random.setstate(states[0])
    np.random.set_state(states[1])
    return before
