"""A torch random state of one's own."""

from __future__ import annotations

import torch


class TorchRandomStream:
    """A torch random state of one's own: blocks run under it neither disturb other draws nor are disturbed by them.

    device: what draws; on a GPU both its own generator and the host's are this stream's.
    """

    def __init__(self, seed: int, device: str = "cpu"):
        self._generators = [torch.default_generator]
        if torch.device(device).type == "cuda":
            torch.cuda.init()  # its generators are there only then
            self._generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
        self._states = [torch.Generator(g.device).manual_seed(seed).get_state() for g in self._generators]

    def __enter__(self) -> None:
        self._outer = self._exchange(self._states)

    def __exit__(self, *exc: object) -> None:
        self._states = self._exchange(self._outer)

    def _exchange(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """Put `states` in place of those that are there, and return these."""
        before = [generator.get_state() for generator in self._generators]
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)
        return before
