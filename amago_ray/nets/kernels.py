"""This package's own C++ for processors, compiled on the machine that runs it.

There is some where PyTorch's operations take longer than the arithmetic: `narrow_attention` and `recurrent`. Learners
let networks compute by it (`use_kernels`) where a compiler is; else these compute as they do everywhere.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from amago_ray.atomic_files import write_atomically
from amago_ray.nets.compiled_files import LOCKED_S, code_folder, processor

FOLDER, HEADER = Path(__file__).parent, "lanes.h"
OPTIONS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp")


class HasKernel(ABC):
    """A module, some of whose work there is a kernel for."""

    @abstractmethod
    def use_kernel(self) -> None:
        """From here on, compute on a processor by the kernel what it can. Raises OSError as `compiled` does."""


def use_kernels(network: nn.Module) -> None:
    """Let all modules of a network compute by the kernels that there are for them, where it lies on a processor.

    Raises OSError, which says why, where these cannot be compiled; modules compute as they did then.
    """
    for module in network.modules():
        if isinstance(module, HasKernel):
            module.use_kernel()


@functools.cache
def compiled(source: str) -> ctypes.CDLL:
    """The kernels in `source`.cpp, compiled now (some seconds, once on a machine) or earlier on.

    Raises OSError, which says why, where that cannot be done: without a C++ compiler, for one.
    """
    from filelock import FileLock, Timeout

    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise OSError("there is no C++ compiler (g++, or what the environment variable CXX names)")
    text = [(FOLDER / file).read_bytes() for file in (f"{source}.cpp", HEADER)]
    made_of = text, compiler, OPTIONS, platform.node(), processor()
    library = code_folder() / f"{source}-{hashlib.sha256(repr(made_of).encode()).hexdigest()}.so"
    try:
        with FileLock(library.with_suffix(".lock"), timeout=LOCKED_S):
            with suppress(OSError):  # not there, or damaged
                return ctypes.CDLL(str(library))
            write_atomically(library, functools.partial(_compile, compiler, source))
    except Timeout as error:
        raise OSError(f"another process has compiled it for {LOCKED_S:g} s") from error
    return ctypes.CDLL(str(library))


def _compile(compiler: str, source: str, library: Path) -> None:
    command = [compiler, *OPTIONS, str(FOLDER / f"{source}.cpp"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(f"{compiler}: {next((line for line in said if 'error' in line), said[-1])}")


def call(source: str, function: str, *tensors: Tensor, sizes: tuple[int, ...]) -> None:
    """One function of `source`.cpp, on tensors whose entries lie one after the other, and numbers.

    It has as many threads as PyTorch has here: both have OpenMP's one team of them.
    """
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in tensors]
    getattr(compiled(source), function)(*pointers, *map(ctypes.c_int64, sizes), ctypes.c_int(torch.get_num_threads()))
