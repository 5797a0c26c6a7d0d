"""Causal attention of narrow heads on a processor, by a kernel of ours (narrow_attention.cpp).

PyTorch's kernel hands a BLAS products whose one side is as short as a head is wide. For heads of 16 and 32 the calls
take longer than the arithmetic: `narrow_attention` takes 0.5 to 0.9 of its time, forward and backward, and 0.4 to 0.5
with a window (benchmarks/README.md). For wider heads it has nothing to offer, and is not there.

Shape letters: B sequences, L timesteps, R of all sequences together, H heads, K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amago_ray.nets.kernels import call

SOURCE = "narrow_attention"
WIDTHS = (16, 32)  # of heads
TYPES = {torch.float32: "float", torch.bfloat16: "BFloat16"}  # and what the C++ calls them
LONGEST = 2**31 - 1  # of windows: all of the past


def is_narrow(heads: Tensor) -> bool:
    """Whether there is a kernel for heads (..., K) of this width, dtype and device."""
    return heads.device.type == "cpu" and heads.dtype in TYPES and heads.shape[-1] in WIDTHS


def narrow_attention(qkv_BL3HK: Tensor, window: int = LONGEST, bounds: Tensor | None = None) -> Tensor:
    """Causal attention of queries, keys and values that lie side by side, to (B, L, H, K), with gradient.

    window: how many timesteps each one sees, itself included. Inputs are such as `is_narrow` agrees to; arithmetic is
    in float32. bounds: of sequences that lie end to end, (1, R, ...), the row at which each begins and, last, R.
    Raises OSError where `kernels.compiled` does.
    """
    return _attention(qkv_BL3HK, min(window, LONGEST), bounds)[0]


@torch.library.custom_op("amago_ray::narrow_attention", mutates_args=(), device_types="cpu")
def _attention(qkv: Tensor, window: int, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result, and the logarithm of the sum of each query's exponentials (B, L, H)."""
    B, L, _, H, K = qkv.shape
    out, log_sum = qkv.new_empty(B, L, H, K), torch.empty(B, L, H)
    _call("forward", qkv.contiguous(), bounds, out, log_sum, window=window)
    return out, log_sum


@torch.library.custom_op("amago_ray::narrow_attention_backward", mutates_args=(), device_types="cpu")
def _backward(qkv: Tensor, d_out: Tensor, log_sum: Tensor, window: int, bounds: Tensor | None) -> Tensor:
    d_qkv = torch.empty(qkv.shape, dtype=qkv.dtype)
    _call("backward", qkv.contiguous(), bounds, d_out.contiguous(), log_sum, d_qkv, window=window)
    return d_qkv


def _call(name: str, qkv: Tensor, bounds: Tensor | None, *tensors: Tensor, window: int) -> None:
    B, L, _, H, K = qkv.shape
    bounds = torch.arange(B + 1) * L if bounds is None else bounds
    assert bounds.dtype == torch.int64 and bounds.is_contiguous() and bounds[-1] == B * L
    call(SOURCE, f"{name}_{TYPES[qkv.dtype]}_{K}", qkv, bounds, *tensors, sizes=(len(bounds) - 1, H, window))


@_attention.register_fake
def _(qkv: Tensor, window: int, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
    B, L, _, H, K = qkv.shape
    return qkv.new_empty(B, L, H, K), qkv.new_empty((B, L, H), dtype=torch.float32)


@_backward.register_fake
def _(qkv: Tensor, d_out: Tensor, log_sum: Tensor, window: int, bounds: Tensor | None) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    qkv, ctx.window, bounds = inputs
    ctx.save_for_backward(qkv, output[1], bounds)


def _differentiate(ctx, d_out, _):  # type: ignore[no-untyped-def]
    qkv, log_sum, bounds = ctx.saved_tensors
    return _backward(qkv, d_out, log_sum, ctx.window, bounds), None, None


_attention.register_autograd(_differentiate, setup_context=_remember)
