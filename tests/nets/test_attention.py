"""Attention over whole sequences equals dense attention, in memory and work that grow with L and not with L x L."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amago_ray.nets import attention
from amago_ray.nets.attention import (
    BLOCK,
    Attention,
    CausalAttention,
    ClippedSlidingSinkAttention,
    FlashAttention,
    SlidingSinkAttention,
    SlidingWindowAttention,
    SlidingWindowFlexAttention,
)

torch.set_num_threads(1)


class EveryOther(Attention):
    """A user's own: timesteps of the same parity, and the first one."""

    def visible(self, age: Tensor, index: Tensor) -> Tensor:
        return (age % 2 == 0) | (index == 0)


class ClippedEveryOther(EveryOther):
    logit_clip = 1.0


class WindowAndTens(SlidingWindowAttention):
    """A user's own that sees more than the window it inherits."""

    def visible(self, age: Tensor, index: Tensor) -> Tensor:
        return super().visible(age, index) | (index % 10 == 0)


class ClippedCausal(CausalAttention):
    logit_clip = 1.0


def dense(kind: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition: L x L logits, mask and softmax."""
    position = torch.arange(q.shape[2])
    age, index = position.unsqueeze(1) - position, position.unsqueeze(0)
    visible = kind.visible(age, index)
    mask = age >= 0 if visible is None else (age >= 0) & visible
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    if isinstance(kind, ClippedSlidingSinkAttention):
        logits = torch.where(index < kind.num_sinks, logits + kind.sink_bias, logits)
        logits = logits.clamp(-kind.cut_off, kind.cut_off) if kind.cut_off else logits
    elif kind.logit_clip is not None:
        logits = kind.logit_clip * torch.tanh(logits / kind.logit_clip)
    return logits.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v


def random_qkv(
    length: int, dtype: torch.dtype = torch.float64, batch: int = 2, heads: int = 2, width: int = 4
) -> Tensor:
    torch.manual_seed(length)
    return torch.randn(3, batch, heads, length, width, dtype=dtype, requires_grad=True)


def outputs_and_gradients(attend: Callable[..., Tensor], qkv: Tensor) -> tuple[Tensor, Tensor]:
    out = attend(*qkv.unbind(0))
    (gradient,) = torch.autograd.grad(out.float().sin().sum() if out.dtype == torch.bfloat16 else out.sin().sum(), qkv)
    return out, gradient


LENGTHS = [1, 2, 41, BLOCK, BLOCK + 1, 300, 3 * BLOCK + 5]
ALIKE: dict[str, Callable[[], Attention]] = {
    "causal": CausalAttention,
    "causal_clip": ClippedCausal,
    **{f"window{w}": lambda w=w: SlidingWindowAttention(w) for w in (1, 3, 40, BLOCK, BLOCK + 1, 1000)},
    **{
        f"window{w}+{s}{'_clip' if clip else ''}": lambda w=w, s=s, clip=clip: SlidingSinkAttention(w, s, clip)
        for w in (1, 3, 40, BLOCK + 1)
        for s in (0, 2, 60, BLOCK + 30)
        for clip in (None, 1.0)
    },
    "flash": FlashAttention,
    "flash40": lambda: FlashAttention((40, 0)),
    "flex40": lambda: SlidingWindowFlexAttention(40),
    **{
        f"amago{w}+{s}{bias:+}_{clip}": lambda w=w, s=s, bias=bias, clip=clip: ClippedSlidingSinkAttention(
            w, clip, s, bias
        )
        for w in (0, 40)
        for s in (0, 60)
        for bias, clip in ((0.0, 0.0), (0.7, 0.0), (0.0, 0.5), (-0.7, 0.5))
    },
    "every_other": EveryOther,
    "every_other_clip": ClippedEveryOther,
    "window_and_tens": lambda: WindowAndTens(7),
}


@pytest.mark.parametrize("name", ALIKE)
def test_equals_dense_attention_in_value_and_gradient(name: str) -> None:
    kind = ALIKE[name]()
    for length in LENGTHS:
        qkv = random_qkv(length)
        torch.testing.assert_close(
            outputs_and_gradients(kind.sequence, qkv),
            outputs_and_gradients(lambda q, k, v: dense(kind, q, k, v), qkv),
            rtol=1e-9,
            atol=1e-9,
        )


@pytest.mark.parametrize(
    "setting, kind, keys",
    [
        ("FlashAttention.window_size = (3, 0)", "FlashAttention", 4),
        ("FlashAttention.window_size = (-1, -1)", "FlashAttention", 20),
        ("SlidingWindowFlexAttention.window_size = 3", "SlidingWindowFlexAttention", 4),
        ("ClippedSlidingSinkAttention.window_size = 3", "ClippedSlidingSinkAttention", 4),
        ("SlidingWindowAttention.window_size = 3", "SlidingWindowAttention", 3),
    ],
)
def test_how_many_keys_a_window_shows(setting: str, kind: str, keys: int) -> None:
    """The weights of one late query over alike keys, by gin's names: AMAGO's windows do not count the query itself."""
    gin.clear_config()
    gin.parse_config(setting)
    same = torch.zeros(1, 1, 20, 20)
    weights = gin.get_configurable(kind)().sequence(same, same, torch.eye(20)[None, None])[0, 0, -1]
    expected = torch.zeros(20)
    expected[-keys:] = 1 / keys
    torch.testing.assert_close(weights, expected)
    gin.clear_config()


def test_sinks_are_biased_and_then_cut_off() -> None:
    """One query with logits 3, -3, 0.5, 0 over itself and three older keys, of which the oldest is a sink."""
    q, v = torch.ones(1, 1, 4, 1), torch.eye(4)[None, None]
    k = torch.tensor([3.0, -3.0, 0.5, 0.0]).view(1, 1, 4, 1)
    for window, clip, bias, logits in (
        (3, 0.0, 0.0, [3.0, -3.0, 0.5, 0.0]),
        (3, 2.0, -2.5, [0.5, -2.0, 0.5, 0.0]),
        (3, 2.0, 1.0, [2.0, -2.0, 0.5, 0.0]),
        (1, 0.0, 1.0, [4.0, -math.inf, 0.5, 0.0]),
    ):
        kind = ClippedSlidingSinkAttention(window, clip, 1, bias)
        torch.testing.assert_close(kind.sequence(q, k, v)[0, 0, -1], torch.tensor(logits).softmax(dim=0))


def test_amago_settings_are_checked() -> None:
    for setting, build in {
        r"FlashAttention.window_size=\(-2, 0\)": lambda: FlashAttention((-2, 0)),
        "SlidingWindowFlexAttention.window_size=-1": lambda: SlidingWindowFlexAttention(-1),
        "SlidingWindowFlexAttention.window_size=None": SlidingWindowFlexAttention,
        "ClippedSlidingSinkAttention.window_size=None": ClippedSlidingSinkAttention,
        "ClippedSlidingSinkAttention.logit_clip=-1.0": lambda: ClippedSlidingSinkAttention(3, -1.0),
        "ClippedSlidingSinkAttention.sink_size=-1": lambda: ClippedSlidingSinkAttention(3, 1.0, -1),
    }.items():
        with pytest.raises(ValueError, match=setting):
            build()


@pytest.mark.parametrize("name", ["causal", "causal_clip", "window40", "window40+2", "window40+2_clip", "every_other"])
def test_autocast_computes_in_bfloat16(name: str) -> None:
    kind, qkv = ALIKE[name](), random_qkv(300, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, gradient = outputs_and_gradients(kind.sequence, qkv)
    expected, expected_gradient = outputs_and_gradients(lambda q, k, v: dense(kind, q, k, v), qkv)
    assert (out.dtype, gradient.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.03)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(("width", "gradient", "in_float32"), [(16, True, True), (16, False, False), (64, True, False)])
def test_narrow_heads_in_bfloat16_are_computed_in_float32(width: int, gradient: bool, in_float32: bool) -> None:
    """On CPU, where the kernel's backward is slow otherwise; what comes out is bfloat16 all the same."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 50, width, dtype=torch.bfloat16, requires_grad=gradient) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = CausalAttention().sequence(q, k, v)
    exact = functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16()) == in_float32
    torch.testing.assert_close(out.float(), exact, rtol=0.02, atol=0.02)
    if gradient:
        got, expected = (
            torch.autograd.grad(x.float().square().sum(), (q, k, v), retain_graph=True) for x in (out, exact)
        )
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.1)


# --- dropout ---------------------------------------------------------------------------------------------------------

DROPPED = ["causal", "causal_clip", "window40", "window40+2", "window40+2_clip", "every_other"]


@pytest.mark.parametrize("fused", [False, True], ids=["blocks", "fused"])
@pytest.mark.parametrize("name", DROPPED)
def test_dropout_of_weights_is_unbiased_and_independent(
    name: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alike logits, values 1: an output is the share of n keys kept / (1 - p), of mean 1 and variance p / (1 - p) / n.

    fused: the way taken where the fused kernel knows dropout, here on the one device whose fallback can be tested.
    """
    monkeypatch.setattr(attention, "has_fused_kernel", lambda q, dropout_p: fused)
    torch.manual_seed(0)
    kind, length, p = ALIKE[name](), 300, 0.25
    same, ones = torch.zeros(64, 2, length, 4), torch.ones(64, 2, length, 1).expand(-1, -1, -1, 4)
    out = kind.sequence(same, same, ones.contiguous(), p)[..., 0].flatten(0, 1)
    position = torch.arange(length)
    visible = kind.visible(position.unsqueeze(1) - position, position.unsqueeze(0))
    seen = torch.ones(length, length, dtype=torch.bool).tril() & (True if visible is None else visible)
    standard = (out - 1.0) * (seen.sum(dim=1) * (1 - p) / p).sqrt()
    assert standard.mean().abs() < 0.02
    assert standard.square().mean() == pytest.approx(1.0, abs=0.05)
    late = standard[:, 60:]  # enough keys to be all but normal
    assert (late[:, :-BLOCK] * late[:, BLOCK:]).mean().abs() < 0.05  # blocks drop independently of one another


@pytest.mark.parametrize("name", DROPPED)
def test_backward_drops_what_forward_dropped(name: str) -> None:
    """Outputs are linear in the values, so that <v, d loss / d v> is the loss if the loss is linear in the outputs."""
    kind, qkv = ALIKE[name](), random_qkv(300)
    q, k, v = (x.detach().requires_grad_() for x in qkv.unbind(0))
    loss = (kind.sequence(q, k, v, 0.5) * torch.randn_like(q)).sum()
    torch.rand(7)  # the generator moves on between forward and backward
    loss.backward()
    assert (v * v.grad).sum().item() == pytest.approx(loss.item(), rel=1e-9)


# --- memory and work -------------------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Sizes in elements of what operations return: the largest, the sum, and the peak of what is alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.total = self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self._alive = {key: (ref, size) for key, (ref, size) in self._alive.items() if not ref.expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference, size = StorageWeakRef(storage), storage.nbytes() // tensor.element_size()
                if reference.cdata not in self._alive:
                    self._alive[reference.cdata] = (reference, size)
                    self.largest, self.total = max(self.largest, size), self.total + size
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


def allocations(attend: Callable[..., Tensor], length: int) -> Allocations:
    """Of forward and backward of one head, 8 wide."""
    qkv = random_qkv(length, torch.float32, batch=1, heads=1, width=8)
    with Allocations() as made:
        outputs_and_gradients(attend, qkv)
    return made


WINDOWS: dict[str, tuple[Callable[[], Attention], float]] = {
    "window": (lambda: SlidingWindowAttention(128), 0.0),
    "window_dropout": (lambda: SlidingWindowAttention(128), 0.1),
    "sinks": (lambda: SlidingSinkAttention(128, 4), 0.0),
    "sinks_clip": (lambda: SlidingSinkAttention(128, 4, logit_clip=5.0), 0.0),
    "sinks_cut_off": (lambda: ClippedSlidingSinkAttention(128, 5.0, 4, 1.0), 0.0),
    "sinks_clip_dropout": (lambda: SlidingSinkAttention(128, 4, logit_clip=5.0), 0.1),
}
ALL: dict[str, tuple[Callable[[], Attention], float]] = {
    **WINDOWS,
    "causal": (CausalAttention, 0.0),
    "causal_dropout": (CausalAttention, 0.1),
    "causal_clip": (lambda: SlidingSinkAttention(10_000, 0, logit_clip=5.0), 0.0),
    "every_other": (EveryOther, 0.0),
}


@pytest.mark.parametrize("name", ALL)
def test_weights_of_all_pairs_are_never_in_memory(name: str) -> None:
    build, dropout_p = ALL[name]
    length = 8192
    made = allocations(lambda q, k, v: build().sequence(q, k, v, dropout_p), length)
    assert 0 < made.largest < length * length / 8
    assert made.peak < length * length / 4  # nor piece by piece: half of all pairs are visible to a causal attention


@pytest.mark.parametrize("name", WINDOWS)
def test_work_of_a_window_grows_with_the_length(name: str) -> None:
    build, dropout_p = WINDOWS[name]
    made = [allocations(lambda q, k, v: build().sequence(q, k, v, dropout_p), n) for n in (2048, 4096)]
    assert made[1].total < 2.2 * made[0].total
    assert made[1].peak < 2.2 * made[0].peak


def test_the_measure_sees_dense_attention() -> None:
    made = [allocations(lambda q, k, v: dense(CausalAttention(), q, k, v), n) for n in (256, 512)]
    assert made[1].largest >= 512 * 512
    assert made[1].peak > 2 * 512 * 512
    assert made[1].total > 3.5 * made[0].total
