"""Attention of narrow heads by this package's C++, next to PyTorch's in float64."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amago_ray.nets import narrow_attention
from amago_ray.nets.attention import (
    Attention,
    CausalAttention,
    ClippedSlidingSinkAttention,
    FlashAttention,
    SlidingSinkAttention,
    SlidingWindowAttention,
    SlidingWindowFlexAttention,
)
from amago_ray.nets.kernels import use_kernels
from amago_ray.nets.packed_sequences import Packing
from amago_ray.nets.transformer import Transformer

pytestmark = pytest.mark.processes


def attended(qkv_BL3HK: Tensor, window: int) -> Tensor:
    """The same by PyTorch, (B, L, H, K)."""
    q, k, v = qkv_BL3HK.permute(2, 0, 3, 1, 4)
    age = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(age >= 0) & (age < window)).transpose(1, 2)


def differences(qkv: Tensor, window: int) -> tuple[float, float]:
    """Of results and of gradients, from those in float64; the largest entry."""
    ours, exact = qkv.detach().requires_grad_(), qkv.detach().double().requires_grad_()
    y, expected = narrow_attention.narrow_attention(ours, window), attended(exact, window)
    toward = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    y.backward(toward)
    expected.backward(toward.double())
    assert ours.grad is not None and exact.grad is not None
    return (y - expected).abs().max().item(), (ours.grad - exact.grad).abs().max().item()


def test_it_is_attention(register_width: None) -> None:
    """At every length about a multiple of what is taken at a time, and every window."""
    torch.manual_seed(0)
    for width in narrow_attention.WIDTHS:
        for length in (1, 2, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 91, 130):
            for window in (1, 2, 8, 9, 17, 50, narrow_attention.LONGEST, 2**40):
                result, gradient = differences(torch.randn(2, length, 3, 3, width), window)
                assert result < 3e-6 and gradient < 1e-5, (width, length, window)


def test_half_precision_rounds_what_comes_out() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(3, 40, 3, 2, 16).bfloat16()
    y = narrow_attention.narrow_attention(qkv)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, attended(qkv.float(), 1000).bfloat16(), rtol=2**-7, atol=1e-6)
    result, gradient = differences(qkv, 20)
    assert result < 0.01 and gradient < 0.03
    # What is no number stays none, and what is far out is attended to alone.
    qkv[1, 20] = torch.nan
    assert narrow_attention.narrow_attention(qkv)[1, 24:].isnan().all()
    assert narrow_attention.narrow_attention(qkv)[[0, 2]].isfinite().all()
    far = 1e4 * torch.randn(2, 17, 3, 2, 16)
    torch.testing.assert_close(narrow_attention.narrow_attention(far), attended(far.double(), 1000).float())


def test_sequences_end_to_end(register_width: None) -> None:
    """Each is attended to as if it were alone, to the bit, forward and backward."""
    torch.manual_seed(0)
    lengths = (1, 16, 91, 0, 7, 1, 33, 0)
    for dtype in narrow_attention.TYPES:
        packed = torch.randn(1, sum(lengths), 3, 2, 16).to(dtype).requires_grad_()
        toward = torch.randn(1, sum(lengths), 2, 16).to(dtype)
        bounds = torch.tensor((0, *lengths)).cumsum(0)
        for window in (5, narrow_attention.LONGEST):
            y = narrow_attention.narrow_attention(packed, window, bounds)
            (gradient,) = torch.autograd.grad(y, packed, toward)
            for first, last in pairwise(bounds):
                alone = packed[:, first:last].detach().requires_grad_()
                expected = narrow_attention.narrow_attention(alone, window)
                assert torch.equal(y[:, first:last], expected)
                (expected,) = torch.autograd.grad(expected, alone, toward[:, first:last])
                assert torch.equal(gradient[:, first:last], expected)


def test_pytorch_knows_what_it_is() -> None:
    """Shapes, gradient and aliasing, as its compiler and its recomputation in backward rely on; any memory layout."""
    qkv = torch.randn(2, 9, 3, 2, 16, requires_grad=True)
    torch.library.opcheck(narrow_attention._attention, (qkv, 5, None))
    torch.library.opcheck(narrow_attention._attention, (qkv[:1], 5, torch.tensor((0, 4, 9))))
    turned = torch.randn(9, 2, 2, 3, 16).permute(1, 0, 3, 2, 4)
    torch.testing.assert_close(narrow_attention.narrow_attention(turned), attended(turned, 1000))
    result, gradient = differences(turned, 4)
    assert result < 3e-6 and gradient < 1e-5


class EveryOther(SlidingWindowAttention):
    def visible(self, age: Tensor, index: Tensor) -> Tensor:
        return (age < self.window_size) & (age % 2 == 0)


@pytest.mark.parametrize(
    ("attention", "by_kernel"),
    [
        (CausalAttention(), True),
        (SlidingWindowAttention(7), True),
        (FlashAttention(), True),
        (FlashAttention((6, 0)), True),
        (SlidingWindowFlexAttention(6), True),
        (SlidingSinkAttention(7, 2), False),
        (SlidingSinkAttention(7, 0, logit_clip=2.0), False),
        (ClippedSlidingSinkAttention(6, 2.0), False),
        (EveryOther(7), False),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Attention) else "",
)
def test_where_it_computes(attention: Attention, by_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Transformer's results and gradients are what they were; other attention and dropped weights are left alone."""
    called: list[int] = []
    kernel = narrow_attention.narrow_attention
    monkeypatch.setattr(narrow_attention, "narrow_attention", lambda *x: (called.append(1), kernel(*x))[1])
    x, time_idx = torch.randn(2, 19, 5), torch.arange(19).expand(2, -1)
    for dropout_attn, pos_emb in ((0.0, "fixed"), (0.3, "learnable"), (0.0, "rope")):
        torch.manual_seed(0)
        was = Transformer(
            5, 32, 48, 2, 2, attention, pos_emb, dropout_emb=0.0, dropout_ff=0.0, dropout_attn=dropout_attn
        )
        now = copy.deepcopy(was)
        use_kernels(now)
        results = []
        for transformer in (was, now):
            torch.manual_seed(1)
            y = transformer(x, time_idx)
            y.square().mean().backward()
            results.append([y, *(p.grad for p in transformer.parameters() if p.grad is not None)])
        for expected, actual in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        assert len(called) == (2 if by_kernel and not dropout_attn and pos_emb != "rope" else 0)
        called.clear()


def test_packed_sequences_stay_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel computes; a Transformer then never makes padding, and gives what it gives of padded ones."""
    torch.manual_seed(0)
    transformer = Transformer(5, 32, 48, 2, 2, CausalAttention(), dropout_emb=0.0, dropout_ff=0.0)
    packing = Packing.of(np.array((3, 19, 1)))
    x, time_idx = torch.randn(3, 19, 5), torch.arange(19).expand(3, -1)
    expected = packing.pack(transformer.eval()(x, time_idx))
    use_kernels(transformer)
    x, time_idx = packing.pack(x), packing.pack(time_idx)
    monkeypatch.delattr(Packing, "pad")
    torch.testing.assert_close(transformer(x, time_idx, packing=packing), expected, rtol=1e-4, atol=1e-5)
