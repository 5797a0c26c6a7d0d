"""Sequences of different lengths laid end to end in place of padding.

What treats every timestep alone computes on the packed rows. What mixes timesteps (attention, recurrences, scans) is
handed the same sequences padded, and only it: the rest of a network then does no work for padding.

Shape letters: B sequences, L timesteps of the longest, R rows of all sequences together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def on_device(values: np.ndarray, device: torch.device | str) -> Tensor:
    """An array of the host as a tensor on the device. The host does not wait for the copy.

    On a CPU it is no copy: both share their memory. Raises RuntimeError while a CUDA graph is recorded, which would
    copy the same numbers for ever.
    """
    tensor = torch.from_numpy(values)
    if torch.device(device).type != "cuda":
        return tensor
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("numbers of the host in an update that is recorded as a CUDA graph")
    # Only a copy from page-locked memory is asynchronous.
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Packing:
    """Where the R rows of packed sequences belong in a padded layout (B, L).

    cell_R: (R,) int64, b * L + t of each row. start_N: (N,) int64, the rows that transitions start from: all but the
    last of each sequence. bounds: (B + 1,) int64, the row at which each sequence begins and, last, R. num: B.
    longest: L.
    """

    cell_R: Tensor
    start_N: Tensor
    bounds: Tensor
    num: int
    longest: int

    @staticmethod
    def of(lengths: np.ndarray, device: torch.device | str = "cpu") -> Packing:
        """The packing of sequences of `lengths` (B,) timesteps. The indices are made on the host, without waiting."""
        longest = int(lengths.max())
        cells = np.flatnonzero(np.arange(longest) < lengths[:, None])
        bounds = np.concatenate(([0], np.cumsum(lengths)))
        starts = np.delete(np.arange(len(cells)), bounds[1:] - 1)
        cell_R, start_N, bounds_B = (on_device(x, device) for x in (cells, starts, bounds))
        return Packing(cell_R, start_N, bounds_B, len(lengths), longest)

    def pad(self, x_1R: Tensor) -> Tensor:
        """(1, R, ...) -> (B, L, ...), zeros at the end of sequences."""
        flat = x_1R.new_zeros(self.num * self.longest, *x_1R.shape[2:])
        return flat.index_copy(0, self.cell_R, x_1R.squeeze(0)).unflatten(0, (self.num, self.longest))

    def pack(self, x_BL: Tensor) -> Tensor:
        """The inverse of `pad`: (B, L, ...) -> (1, R, ...)."""
        return x_BL.flatten(0, 1)[self.cell_R].unsqueeze(0)
