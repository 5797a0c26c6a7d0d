"""Causal attention of narrow heads on a processor, in C++ that is compiled on the machine that runs it.

PyTorch's kernel hands a BLAS products whose one side is as short as a head is wide. For heads of 16 and 32 the calls
take longer than the arithmetic: `narrow_attention` takes 0.5 to 0.9 of its time, forward and backward, and 0.4 to 0.5
with a window (benchmarks/README.md). For wider heads it has nothing to offer, and is not there.

Shape letters: B sequences, L timesteps, H heads, K head width.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from amago_ray.atomic_files import write_atomically
from amago_ray.nets.compiled_files import LOCKED_S, code_folder, processor

WIDTHS = (16, 32)  # of heads
TYPES = {torch.float32: "float", torch.bfloat16: "BFloat16"}  # and what the C++ calls them
LONGEST = 2**31 - 1  # of windows: all of the past
SOURCE = Path(__file__).with_suffix(".cpp")
OPTIONS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp")


def is_narrow(heads: Tensor) -> bool:
    """Whether there is a kernel for heads (..., K) of this width, dtype and device."""
    return heads.device.type == "cpu" and heads.dtype in TYPES and heads.shape[-1] in WIDTHS


@functools.cache
def compiled() -> ctypes.CDLL:
    """The kernels, compiled now (a few seconds, once on a machine) or earlier on.

    Raises OSError, which says why, where that cannot be done: without a C++ compiler, for one.
    """
    from filelock import FileLock, Timeout

    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise OSError("there is no C++ compiler (g++, or what the environment variable CXX names)")
    made_of = SOURCE.read_bytes(), compiler, OPTIONS, platform.node(), processor()
    library = code_folder() / f"attention-{hashlib.sha256(repr(made_of).encode()).hexdigest()}.so"
    try:
        with FileLock(library.with_suffix(".lock"), timeout=LOCKED_S):
            with suppress(OSError):  # not there, or damaged
                return ctypes.CDLL(str(library))
            write_atomically(library, functools.partial(_compile, compiler))
    except Timeout as error:
        raise OSError(f"another process has compiled it for {LOCKED_S:g} s") from error
    return ctypes.CDLL(str(library))


def _compile(compiler: str, library: Path) -> None:
    command = [compiler, *OPTIONS, str(SOURCE), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(f"{compiler}: {next((line for line in said if 'error' in line), said[-1])}")


def narrow_attention(qkv_BL3HK: Tensor, window: int = LONGEST) -> Tensor:
    """Causal attention of queries, keys and values that lie side by side, to (B, L, H, K), with gradient.

    window: how many timesteps each one sees, itself included. Inputs are such as `is_narrow` agrees to; arithmetic is
    in float32. Raises OSError where `compiled` does.
    """
    return _attention(qkv_BL3HK, min(window, LONGEST))[0]


@torch.library.custom_op("amago_ray::narrow_attention", mutates_args=(), device_types="cpu")
def _attention(qkv: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The result, and the logarithm of the sum of each query's exponentials (B, H, L)."""
    B, L, _, H, K = qkv.shape
    qkv = qkv.contiguous()
    out, log_sum = qkv.new_empty(B, L, H, K), torch.empty(B, H, L)
    _call("forward", K, qkv, out, log_sum, sizes=(B, L, H, window))
    return out, log_sum


@torch.library.custom_op("amago_ray::narrow_attention_backward", mutates_args=(), device_types="cpu")
def _backward(qkv: Tensor, out: Tensor, d_out: Tensor, log_sum: Tensor, window: int) -> Tensor:
    B, L, _, H, K = qkv.shape
    d_qkv = torch.empty(qkv.shape, dtype=qkv.dtype)
    given = (qkv.contiguous(), out, d_out.contiguous(), log_sum, d_qkv)
    _call("backward", K, *given, sizes=(B, L, H, window))
    return d_qkv


def _call(name: str, width: int, *tensors: Tensor, sizes: tuple[int, int, int, int]) -> None:
    """One function of the C++, in as many threads as PyTorch has here: both have OpenMP's one team of them."""
    function = getattr(compiled(), f"{name}_{TYPES[tensors[0].dtype]}_{width}")
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in tensors]
    function(*pointers, *map(ctypes.c_int64, sizes), ctypes.c_int(torch.get_num_threads()))


@_attention.register_fake
def _(qkv: Tensor, window: int) -> tuple[Tensor, Tensor]:
    B, L, _, H, K = qkv.shape
    return qkv.new_empty(B, L, H, K), qkv.new_empty((B, H, L), dtype=torch.float32)


@_backward.register_fake
def _(qkv: Tensor, out: Tensor, d_out: Tensor, log_sum: Tensor, window: int) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0], *output)
    ctx.window = inputs[1]


def _differentiate(ctx, d_out, _):  # type: ignore[no-untyped-def]
    qkv, out, log_sum = ctx.saved_tensors
    return _backward(qkv, out, d_out, log_sum, ctx.window), None


_attention.register_autograd(_differentiate, setup_context=_remember)
