"""Arrays that several processes see."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from itertools import accumulate

import numpy as np

from amago_ray.specs import ActionSpec, ObsSpec

Fields = Mapping[str, tuple[tuple[int, ...], str]]  # shape and dtype by name

ALIGNMENT = 64  # bytes: a cache line
OBS, START = "obs.", "start."


class SharedArrays:
    """Zeroed numpy arrays by name, in memory without a name that goes when the last process that sees it has ended.

    Memory with a name (`multiprocessing.shared_memory`) outlives processes that are killed, and in containers has
    64 MB. fd: of another process's `SharedArrays` of the same fields, whose memory this is then; it may be closed.
    """

    def __init__(self, fields: Fields, fd: int | None = None) -> None:
        sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in fields.values()]
        ends = list(accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes))
        self.fd = _new_memory(max(ends[-1], 1)) if fd is None else fd
        memory = mmap.mmap(self.fd, max(ends[-1], 1))
        self._arrays = {
            name: np.ndarray(shape, dtype, memory, offset)
            for (name, (shape, dtype)), offset in zip(fields.items(), [0, *ends], strict=False)
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def close(self) -> None:
        """Nobody else can be given this memory from now on. The arrays stay."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def counter_fields(num_envs: int) -> Fields:
    """How far N environments have come (see `plain_pool.Counters`), and whether what was asked for is there already."""
    return {name: ((num_envs,), "int64") for name in ("rollout", "seeds_used", "failures_in_a_row", "stepped")}


def row_fields(obs_spec: ObsSpec, action_spec: ActionSpec, num_envs: int) -> Fields:
    """What N environments are told and answer: a row each.

    "obs.<name>": after a step, of a rollout that ended its last. "start.<name>": the first of a rollout that began.
    """
    arrays = [(name, (num_envs, *spec.shape), spec.dtype) for name, spec in obs_spec.items()]
    return {
        "action": ((num_envs, *action_spec.shape), action_spec.dtype),
        "reward": ((num_envs,), "float64"),
        **{name: ((num_envs,), "bool") for name in ("terminated", "truncated", "failed", "fresh")},
        **{prefix + name: (shape, dtype) for prefix in (OBS, START) for name, shape, dtype in arrays},
    }


def _new_memory(size: int) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("amago_ray_envs")
    else:  # elsewhere than on Linux: a file that no folder lists
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd
