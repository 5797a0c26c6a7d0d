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

from amago_ray.nets.sizes import few_digits


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
    last of each sequence, with what is filled up (see `sizes.rows_of`). bounds: int64, the row at which each sequence
    begins and, last, R. num: B. longest: L.
    filled_rows: at the end, which only fill up, for whoever wants few sizes; `bounds` knows them as B sequences more.
    """

    cell_R: Tensor
    start_N: Tensor
    bounds: Tensor
    num: int
    longest: int
    filled_rows: int = 0

    @staticmethod
    def of(lengths: np.ndarray, device: torch.device | str = "cpu", fullest: int | None = None) -> Packing:
        """The packing of sequences of `lengths` (B,) timesteps. The indices are made on the host, without waiting.

        fullest: fill up both rows and transitions, so that few numbers of them occur in sequences of so many timesteps
            at most.
        """
        longest = int(lengths.max())
        cells = np.flatnonzero(np.arange(longest) < lengths[:, None])
        bounds = np.concatenate(([0], np.cumsum(lengths)))
        starts = np.delete(np.arange(len(cells)), bounds[1:] - 1)
        filled = 0
        if fullest is not None:
            num, real = len(lengths), len(cells)
            filled = few_digits(real, num * fullest) - real
            # Attention to one sequence of so many rows would cost more than to all of the others.
            bounds = np.append(bounds, real + np.arange(1, num + 1) * filled // num)
            cells = np.append(cells, np.zeros(filled, np.int64))
            starts = np.resize(starts, few_digits(len(starts), num * (fullest - 1)))
        cell_R, start_N, bounds_B = (on_device(x, device) for x in (cells, starts, bounds))
        return Packing(cell_R, start_N, bounds_B, len(lengths), longest, filled)

    def pad(self, x_1R: Tensor) -> Tensor:
        """(1, R, ...) -> (B, L, ...), zeros at the end of sequences."""
        flat, real = x_1R.new_zeros(self.num * self.longest, *x_1R.shape[2:]), len(self.cell_R) - self.filled_rows
        padded = flat.index_copy(0, self.cell_R[:real], x_1R.squeeze(0)[:real])
        return padded.unflatten(0, (self.num, self.longest))

    def pack(self, x_BL: Tensor) -> Tensor:
        """The inverse of `pad`: (B, L, ...) -> (1, R, ...), with some timestep or other in what is filled up."""
        return x_BL.flatten(0, 1).index_select(0, self.cell_R).unsqueeze(0)
