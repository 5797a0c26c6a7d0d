"""The Transformer equals the reference's numbers, and acting step by step equals training on whole sequences."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from amago_ray.nets.attention import (
    Attention,
    CausalAttention,
    ClippedSlidingSinkAttention,
    FlashAttention,
    SlidingSinkAttention,
    SlidingWindowAttention,
)
from amago_ray.nets.packed_sequences import Packing
from amago_ray.nets.recomputation import recomputing
from amago_ray.nets.transformer import Transformer, rope_tables, rotate, sinusoid

PARTS = np.load(Path(__file__).parents[1] / "golden" / "parts.npz")
POSITIONS = ["fixed", "learnable", "rope"]
# Windows shorter and longer than the caches below, which have 3 to 8 slots.
ATTENTIONS: dict[str, Callable[[], Attention]] = {
    "causal": CausalAttention,
    "window3": lambda: SlidingWindowAttention(window_size=3),
    "window100": lambda: SlidingWindowAttention(window_size=100),
    "sink3+2": lambda: SlidingSinkAttention(window_size=3, sink_size=2),
    "sink100+1": lambda: SlidingSinkAttention(window_size=100, sink_size=1),
    "sink100+0_clip": lambda: SlidingSinkAttention(window_size=100, sink_size=0, logit_clip=1.0),
    "sink3+2_clip": lambda: SlidingSinkAttention(window_size=3, sink_size=2, logit_clip=1.0),
    "amago_sink2+2": lambda: ClippedSlidingSinkAttention(window_size=2, logit_clip=1.0, sink_size=2, sink_bias=0.5),
    "amago_flash": FlashAttention,
}
few = settings(derandomize=True, max_examples=5, deadline=None)
torch.set_num_threads(1)


def part(name: str) -> Tensor:
    return torch.from_numpy(PARTS[f"layers/{name}"])


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_rope_equals_the_reference() -> None:
    q, k, v = part("rope/qkv").permute(2, 0, 3, 1, 4)
    tables = rope_tables(part("rope/pos").squeeze(-1), q.shape[-1])
    rotated = torch.stack((rotate(q, *tables), rotate(k, *tables), v))
    torch.testing.assert_close(rotated, part("rope/out").permute(2, 0, 3, 1, 4), rtol=1e-5, atol=1e-6)


def test_rope_logits_depend_on_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8).unbind(0)

    def logit(at_q: int, at_k: int) -> float:
        rotated = [rotate(x, *rope_tables(torch.tensor([[t]]), 8)) for x, t in ((q, at_q), (k, at_k))]
        return (rotated[0] * rotated[1]).sum().item()

    assert logit(17, 12) == pytest.approx(logit(305, 300), abs=1e-4)
    assert logit(17, 12) != pytest.approx(logit(17, 13), abs=1e-2)


def test_fixed_positions_equal_the_reference() -> None:
    expected = part("fixed_pos_emb/out")
    torch.testing.assert_close(sinusoid(part("rope/pos").squeeze(-1), 16), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "attention, visible, clip",
    [
        (CausalAttention(), lambda query, key: True, None),
        (SlidingWindowAttention(3), lambda query, key: query - key < 3, None),
        (SlidingSinkAttention(3, 2), lambda query, key: query - key < 3 or key < 2, None),
        (SlidingSinkAttention(3, 2, 0.5), lambda query, key: query - key < 3 or key < 2, 0.5),
    ],
    ids=["causal", "window", "sink", "sink_clip"],
)
def test_attention_equals_a_plain_loop(
    attention: Attention, visible: Callable[[int, int], bool], clip: float | None
) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 8, 4)
    expected = torch.empty_like(q)
    for b, h, t in np.ndindex(2, 2, 8):
        seen = [j for j in range(t + 1) if visible(t, j)]
        logits = torch.stack([q[b, h, t] @ k[b, h, j] for j in seen]) / math.sqrt(4)
        if clip is not None:
            logits = clip * torch.tanh(logits / clip)
        expected[b, h, t] = logits.softmax(dim=0) @ v[b, h, seen]
    close(attention.sequence(q, k, v), expected)


# --- steps equal sequences -------------------------------------------------------------------------------------------


def build(attention: Attention, pos_emb: str, n_layers: int = 2) -> Transformer:
    """The same weights whatever the attention, and none of them at a neutral value."""
    torch.manual_seed(0)
    model = Transformer(5, 16, 24, 2, n_layers, attention, pos_emb=pos_emb, max_time_idx=64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() != 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
            if name.endswith("qkv_projection.gamma"):
                parameter.mul_(4.0)  # attention far from uniform
    return model.requires_grad_(False)


def remembered(attention: Attention, num_slots: int) -> Attention:
    """The attention over whole rollouts that equals `attention` over a cache of `num_slots`."""
    if isinstance(attention, ClippedSlidingSinkAttention):
        window = min(attention.window_size, num_slots - attention.num_sinks)
        sinks = (attention.num_sinks, attention.sink_bias)
        return ClippedSlidingSinkAttention(window - 1, attention.cut_off, *sinks)
    if isinstance(attention, SlidingSinkAttention):
        window = min(attention.window_size, num_slots - attention.num_sinks)
        return SlidingSinkAttention(window, attention.num_sinks, attention.logit_clip)
    if isinstance(attention, SlidingWindowAttention):
        return SlidingWindowAttention(min(attention.window_size, num_slots))
    return SlidingWindowAttention(num_slots)


def step_through(model: Transformer, x_BTD: Tensor, rollouts: list[list[int]], num_slots: int) -> Tensor:
    """Outputs of cached steps; environment b has consecutive rollouts of lengths `rollouts[b]`."""
    cache, outputs = model.initial_cache(len(x_BTD), num_slots), []
    time_idx_BT = torch.tensor([[t for length in lengths for t in range(length)] for lengths in rollouts])
    for t in range(x_BTD.shape[1]):
        cache.reset((time_idx_BT[:, t] == 0).numpy())
        outputs.append(model(x_BTD[:, t : t + 1], time_idx_BT[:, t : t + 1], cache))
    return torch.cat(outputs, dim=1)


def whole_rollouts(model: Transformer, x_BTD: Tensor, rollouts: list[list[int]]) -> Tensor:
    """Outputs of one `forward` per rollout."""
    outputs = [
        torch.cat([model(piece.unsqueeze(0), torch.arange(len(piece)).unsqueeze(0)) for piece in x.split(lengths)], 1)
        for x, lengths in zip(x_BTD, rollouts)
    ]
    return torch.cat(outputs)


def cut(total: int, random: np.random.Generator, longest: int) -> list[int]:
    """Random lengths from 1 to `longest` that sum to `total`."""
    lengths: list[int] = []
    while total:
        lengths.append(int(random.integers(1, min(longest, total) + 1)))
        total -= lengths[-1]
    return lengths


every_model = pytest.mark.parametrize("pos_emb", POSITIONS)
every_attention = pytest.mark.parametrize("name", ATTENTIONS)


@every_attention
@every_model
@few
@given(num_slots=st.integers(3, 8), num_envs=st.integers(1, 4), seed=st.integers(0, 1000))
def test_steps_equal_whole_rollouts(name: str, pos_emb: str, num_slots: int, num_envs: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    model = build(ATTENTIONS[name](), pos_emb)
    rollouts = [cut(3 * num_slots, random, longest=num_slots) for _ in range(num_envs)]
    x_BTD = torch.from_numpy(random.normal(size=(num_envs, 3 * num_slots, 5)).astype(np.float32))
    close(step_through(model, x_BTD, rollouts, num_slots), whole_rollouts(model, x_BTD, rollouts))


@every_attention
@every_model
@few
@given(num_slots=st.integers(3, 8), seed=st.integers(0, 1000))
def test_steps_of_long_rollouts_equal_a_windowed_forward(name: str, pos_emb: str, num_slots: int, seed: int) -> None:
    """Past `num_slots` timesteps acting attends to the latest ones (and sinks), in every layer."""
    random = np.random.default_rng(seed)
    model = build(ATTENTIONS[name](), pos_emb)
    total = 3 * num_slots
    # One rollout that never ends, one that ends at a random time, and several of any length.
    ends = int(random.integers(1, total))
    rollouts = [[total], [ends, total - ends], cut(total, random, total), cut(total, random, total)]
    x_BTD = torch.from_numpy(random.normal(size=(4, total, 5)).astype(np.float32))
    windowed = build(remembered(model.attention, num_slots), pos_emb)
    close(step_through(model, x_BTD, rollouts, num_slots), whole_rollouts(windowed, x_BTD, rollouts))


@every_model
def test_one_causal_layer_attends_to_the_last_timesteps(pos_emb: str) -> None:
    """The same claim without any windowed attention: a step sees what a `forward` over its last inputs alone sees."""
    model, x_BTD = build(CausalAttention(), pos_emb, n_layers=1), torch.randn(2, 15, 5)
    steps = step_through(model, x_BTD, [[15], [15]], num_slots=5)
    for t in range(15):
        first = max(0, t - 4)
        time_idx = torch.arange(first, t + 1).expand(2, -1)
        close(steps[:, t], model(x_BTD[:, first : t + 1], time_idx)[:, -1])


def test_rope_is_relative_and_the_other_positions_are_not() -> None:
    x_BTD, time_idx = torch.randn(1, 9, 5), torch.arange(9).unsqueeze(0)
    for pos_emb in POSITIONS:
        model = build(CausalAttention(), pos_emb)
        moved = (model(x_BTD, time_idx + 30) - model(x_BTD, time_idx)).abs().max()
        assert moved < 1e-4 if pos_emb == "rope" else moved > 1e-2
        stretched = (model(x_BTD, 2 * time_idx) - model(x_BTD, time_idx)).abs().max()
        assert stretched > 1e-2


def test_window_of_the_tests_matters() -> None:
    """The comparisons above could not pass with another window: one timestep more or less changes outputs visibly."""
    x_BTD, time_idx = torch.randn(1, 12, 5), torch.arange(12).unsqueeze(0)
    outputs = {n: build(SlidingWindowAttention(n), "fixed")(x_BTD, time_idx) for n in (4, 5)}
    assert (outputs[4] - outputs[5])[:, -1].abs().max() > 1e-2


@every_attention
@every_model
def test_output_does_not_depend_on_later_inputs(name: str, pos_emb: str) -> None:
    torch.manual_seed(1)
    model, x_BTD = build(ATTENTIONS[name](), pos_emb), torch.randn(2, 9, 5)
    time_idx = torch.arange(9).expand(2, -1)
    before = model(x_BTD, time_idx)
    for t in range(8):
        changed = x_BTD.clone()
        changed[:, t + 1 :] += 10.0
        after = model(changed, time_idx)
        torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1], rtol=0.0, atol=1e-6)
        assert (after[:, t + 1] - before[:, t + 1]).abs().max() > 1e-2


def test_gradient_reaches_every_visible_input_and_parameter() -> None:
    model = build(SlidingWindowAttention(3), "learnable", n_layers=1).requires_grad_(True).train()
    x_BTD = torch.randn(1, 8, 5, requires_grad=True)
    model(x_BTD, torch.arange(8).unsqueeze(0))[:, 5].sin().sum().backward()
    reached = x_BTD.grad.abs().sum(dim=(0, 2)) > 0
    assert reached.tolist() == [False, False, False, True, True, True, False, False]
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@every_attention
@every_model
def test_stale_slots_are_never_attended(name: str, pos_emb: str) -> None:
    """After a reset an environment's slots hold rubbish; its steps are those of a fresh cache."""
    torch.manual_seed(2)
    model, num_slots = build(ATTENTIONS[name](), pos_emb), 6
    x_BTD, offset = torch.randn(3, 20, 5), 8
    old, fresh = model.initial_cache(3, num_slots), model.initial_cache(3, num_slots)
    for t in range(offset):
        model(x_BTD[:, t : t + 1], torch.full((3, 1), t), old)
    ended = np.array([False, True, False])
    old.reset(ended)
    old.keys[:, ended], old.values[:, ended] = 1e3, 1e5
    for t in range(offset, 20):
        time_idx = torch.tensor([[t], [t - offset], [t]])
        out_old = model(x_BTD[:, t : t + 1], time_idx, old)
        out_fresh = model(x_BTD[:, t : t + 1], time_idx, fresh)
        close(out_old[1], out_fresh[1])


@every_attention
def test_attention_dropout_is_for_training_alone(name: str) -> None:
    torch.manual_seed(0)
    model = Transformer(5, 16, 24, 2, 1, ATTENTIONS[name](), dropout_emb=0.0, dropout_ff=0.0, dropout_attn=0.5)
    x_BTD, time_idx = torch.randn(2, 9, 5), torch.arange(9).expand(2, -1)
    model.eval()
    assert torch.equal(model(x_BTD, time_idx), model(x_BTD, time_idx))
    model.train()
    assert (model(x_BTD, time_idx) - model(x_BTD, time_idx))[:, -1].abs().max() > 1e-2


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_are_checked() -> None:
    for setting, build_it in {
        "d_model=10 must be a multiple of n_heads=4": lambda: Transformer(3, 10, 8, 4, 1, CausalAttention()),
        "pos_emb='sine'": lambda: Transformer(3, 8, 8, 2, 1, CausalAttention(), pos_emb="sine"),
        "even head width, not 3": lambda: Transformer(3, 6, 8, 2, 1, CausalAttention(), pos_emb="rope"),
        "window_size=0": lambda: SlidingWindowAttention(0),
        "sink_size=-1": lambda: SlidingSinkAttention(4, -1),
        "dropout_attn=1.0": lambda: Transformer(3, 8, 8, 2, 1, CausalAttention(), dropout_attn=1.0),
        "logit_clip=0": lambda: SlidingSinkAttention(4, 1, logit_clip=0),
    }.items():
        with pytest.raises(ValueError, match=setting):
            build_it()


@pytest.mark.processes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_layers_compute_what_they_did(dtype: torch.dtype) -> None:
    """Forward, gradient, what is dropped, and the power iterations of their weights, each layer in one piece; acting
    and evaluation are not compiled."""
    torch.manual_seed(0)
    whole = Transformer(12, 32, 48, 2, 2, CausalAttention(), dropout_emb=0.2, dropout_ff=0.3, pos_emb="rope").train()
    compiled = copy.deepcopy(whole)
    compiled.compile_layers()
    x, time_idx = torch.randn(3, 6, 12), torch.arange(6).expand(3, -1)
    results = []
    torch._dynamo.utils.counters.clear()
    for transformer in (whole, compiled):
        torch.manual_seed(1)
        for _ in range(2):
            transformer.zero_grad()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                y = transformer(x, time_idx)
            y.square().mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in transformer.parameters() if p.grad is not None])
        results.append((y.detach().float(), gradient, transformer.layers[1].ff2.u.clone()))
    assert compiled._compiled_layer is not None
    assert not torch._dynamo.utils.counters["graph_break"]
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.02}
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, **tolerance)
    copied = copy.deepcopy(compiled).eval()
    with torch.no_grad():
        torch.testing.assert_close(copied(x, time_idx), compiled.eval()(x, time_idx))


@pytest.mark.processes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_are_compiled_once_for_all_lengths(dtype: torch.dtype) -> None:
    """Where the kernel takes them; results, gradients and what is dropped are those of the same sequences as they were.
    In half precision rows are filled up."""
    torch.manual_seed(0)
    whole = Transformer(12, 32, 48, 2, 2, CausalAttention(), dropout_emb=0.1, dropout_ff=0.2).train()
    whole.use_kernel()
    compiled = copy.deepcopy(whole)
    compiled.compile_layers()
    torch._dynamo.utils.counters.clear()
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for lengths in ((3, 7, 2), (6, 11, 1), (29, 2, 40), (5, 5, 5)):
        packing = Packing.of(np.array(lengths), fullest=None if dtype == torch.float32 else 41)
        x, time_idx = (
            packing.pack(torch.randn(3, max(lengths), 12)),
            packing.pack(torch.arange(max(lengths)).expand(3, -1)),
        )
        results = []
        for transformer in (whole, compiled):
            transformer.zero_grad()
            torch.manual_seed(1)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), recomputing(lengths[0] == 5):
                y = transformer(x, time_idx, packing=packing).float()
            y.square().mean().backward()
            results.append([y.detach(), *(p.grad.clone() for p in transformer.parameters() if p.grad is not None)])
        for expected, actual in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, **tolerance)
    assert compiled.is_compiled
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_no_place_for_what_is_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **settings: Any) -> Any:
        raise PermissionError(13, "Permission denied", "/where/it/lies")

    monkeypatch.setattr(torch, "compile", fails)
    transformer = Transformer(12, 32, 48, 2, 2, CausalAttention()).train()
    with pytest.warns(UserWarning, match="layers are not compiled: .*Permission denied: '/where/it/lies'"):
        transformer.compile_layers()
    assert not transformer.is_compiled
    assert transformer(torch.randn(3, 6, 12), torch.arange(6).expand(3, -1)).isfinite().all()


def test_a_compiler_that_fails_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Tensor:
        raise TorchDynamoException("\nno C++ compiler found\nhere")

    def breaks(*args: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory is left")

    transformer = Transformer(12, 32, 48, 2, 2, CausalAttention(), dropout_emb=0.0, dropout_ff=0.0).train()
    x, time_idx = torch.randn(3, 6, 12), torch.arange(6).expand(3, -1)
    other = copy.deepcopy(transformer)
    transformer.compile_layers()
    transformer._compiled_layer = fails
    with pytest.warns(UserWarning, match="layers are not compiled: no C\\+\\+ compiler found") as told:
        y = transformer(x, time_idx)
        transformer(x, time_idx)
    assert len(told) == 1
    torch.testing.assert_close(y, other(x, time_idx))
    assert not transformer.is_compiled
    other._compiled_layer = breaks
    with pytest.raises(torch.OutOfMemoryError, match="no memory is left"):
        other(x, time_idx)
