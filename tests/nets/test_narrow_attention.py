"""Attention of narrow heads by this package's C++: next to PyTorch's in float64, and where it cannot be compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from small_agents import small_agent_spec
from torch import Tensor
from torch.nn import functional as F

from amago_ray.agent import AgentSpec
from amago_ray.envs.builtin import Counting
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.nets import compiled_files, narrow_attention
from amago_ray.nets.attention import (
    Attention,
    CausalAttention,
    ClippedSlidingSinkAttention,
    FlashAttention,
    SlidingSinkAttention,
    SlidingWindowAttention,
    SlidingWindowFlexAttention,
)
from amago_ray.nets.traj_encoders import TformerTrajEncoder
from amago_ray.nets.transformer import Transformer

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code that a test has loaded is forgotten with it."""
    yield
    monkeypatch.undo()
    narrow_attention.compiled.cache_clear()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


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


@pytest.mark.parametrize("wide_registers", [False, True])
def test_it_is_attention(wide_registers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every length about a multiple of what is taken at a time, and every window; in both widths of registers,
    whichever this processor has."""
    if wide_registers:
        monkeypatch.setattr(narrow_attention, "OPTIONS", (*narrow_attention.OPTIONS, "-DSIXTEEN_LANES", "-Wno-psabi"))
        narrow_attention.compiled.cache_clear()
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


def test_pytorch_knows_what_it_is() -> None:
    """Shapes, gradient and aliasing, as its compiler and its recomputation in backward rely on; any memory layout."""
    qkv = torch.randn(2, 9, 3, 2, 16, requires_grad=True)
    torch.library.opcheck(narrow_attention._attention, (qkv, 5))
    turned = torch.randn(9, 2, 2, 3, 16).permute(1, 0, 3, 2, 4)
    torch.testing.assert_close(narrow_attention.narrow_attention(turned), attended(turned, 1000))
    result, gradient = differences(turned, 4)
    assert result < 3e-6 and gradient < 1e-5


def spec_of(n_heads: int) -> AgentSpec:
    """Of a Transformer 32 wide."""
    encoder = partial(TformerTrajEncoder, d_model=32, n_heads=n_heads, d_ff=32, n_layers=1)
    return small_agent_spec(Counting, encoder, max_seq_len=8)


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
        now.compile_attention()
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


def test_a_learner_has_it() -> None:
    """Heads of 16; for heads of 8 nothing is compiled."""
    for heads, has in ((2, True), (4, False)):
        spec = spec_of(heads)
        learner = Learner(LearnerConfig(attention_kernel=True), spec, None)  # type: ignore[arg-type]
        (transformer,) = [m for m in learner.agent.modules() if isinstance(m, Transformer)]
        assert transformer.attention._narrow == has
        (plain,) = [m for m in spec.build().modules() if isinstance(m, Transformer)]
        assert not plain.attention._narrow


def test_what_is_compiled_once_is_taken_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    narrow_attention.compiled.cache_clear()
    narrow_attention.compiled()
    (made,) = (tmp_path / compiled_files.FOLDER).glob("*.so")
    monkeypatch.setattr(narrow_attention, "_compile", None)
    narrow_attention.compiled.cache_clear()
    assert narrow_attention.compiled()._name == str(made)


@pytest.mark.parametrize(
    ("compiler", "said"),
    [("no-such-compiler", "there is no C\\+\\+ compiler"), ("false", ".*false: exit status 1$")],
)
def test_without_a_compiler(compiler: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PyTorch's attention is used, which is told where compiling was asked for."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    narrow_attention.compiled.cache_clear()
    spec = spec_of(2)
    with pytest.raises(OSError, match=said):
        narrow_attention.compiled()
    assert not list((tmp_path / compiled_files.FOLDER).glob("*.so"))
    learner = Learner(LearnerConfig(attention_kernel=True), spec, None)  # type: ignore[arg-type]
    (transformer,) = [m for m in learner.agent.modules() if isinstance(m, Transformer)]
    assert transformer(torch.randn(2, 5, transformer.inp.in_features), torch.arange(5).expand(2, -1)).isfinite().all()
    with pytest.warns(UserWarning, match="attention of narrow heads is not compiled: " + said):
        Learner(LearnerConfig(attention_kernel=True, compile=True), spec, None)  # type: ignore[arg-type]
