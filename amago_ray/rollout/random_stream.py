"""A torch random state of one's own."""

from __future__ import annotations

import threading

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
