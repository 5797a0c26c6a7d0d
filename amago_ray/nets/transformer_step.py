"""One timestep of a Transformer over its cache: the same numbers as `Transformer.forward`, with nothing but arithmetic.

A step of a small policy costs as much in calls of modules as in products. Here a layer is twelve operations on (B, D),
weights are what their reparametrisation makes of them, kept until they change, and what does not depend on a layer
(which slots are seen, the position embedding) is found once. Only the attention itself grows with the window.

Shape letters: B environments, S cache slots in use, H heads, K head width, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amago_ray.nets.attention import Attention
from amago_ray.nets.columns import by_columns
from amago_ray.nets.feedforward import Normalization
from amago_ray.nets.key_value_cache import CompilableCache, KeyValueCache

if TYPE_CHECKING:
    from amago_ray.nets.transformer import Linear, Transformer, TransformerLayer


class LayerWeights(NamedTuple):
    """A layer as plain weights and functions. The scales of heads are in `out`."""

    qkv: Tensor
    out: Tensor
    out_bias: Tensor | None
    ff1: Tensor
    ff1_bias: Tensor | None
    ff2: Tensor
    ff2_bias: Tensor | None
    norms: tuple[Callable[[Tensor], Tensor], ...]


class SeenSlots(NamedTuple):
    """Which slots a timestep sees.

    bias_N1S: to be added to the logits of N = B H heads; None where the attention does more to logits than that.
    age_BS, index_BS: see `KeyValueCache.advance`.
    """

    bias_N1S: Tensor | None
    age_BS: Tensor
    index_BS: Tensor


@torch.no_grad()
def transformer_step(
    model: Transformer, x_BI: Tensor, time_idx_B: Tensor, cache: KeyValueCache | CompilableCache
) -> Tensor:
    """States (B, D) of one timestep (B, d_inp), which is written into `cache`. Without dropout and without gradient."""
    slot_B, age_BS, index_BS = cache.advance()
    row_B, used = torch.arange(len(slot_B), device=slot_B.device), age_BS.shape[1]
    seen = _seen_slots(model.attention, model.n_heads, age_BS, index_BS, cache.keys[0].dtype)
    x_BD, rope = model.positioned(model.inp(x_BI), time_idx_B)
    width = model.d_model // model.n_heads
    for layer, weights, keys_BHSK, values_BHSK in zip(
        model.layers, model.step_weights(), cache.keys, cache.values, strict=True
    ):
        norm1, norm2, norm3, norm4 = weights.norms
        qkv_B3HK = F.linear(norm1(x_BD), weights.qkv).view(-1, 3, model.n_heads, width)
        q_BHK, k_BHK, v_BHK = qkv_B3HK.unbind(1)
        if rope is not None:
            q_BHK, k_BHK = rope(q_BHK), rope(k_BHK)
        keys_BHSK[row_B, :, slot_B] = k_BHK
        values_BHSK[row_B, :, slot_B] = v_BHK
        heads_BD = _attend(model.attention, q_BHK, keys_BHSK[:, :, :used], values_BHSK[:, :, :used], seen)
        x_BD = x_BD + norm2(F.linear(heads_BD, weights.out, weights.out_bias))
        hidden = norm4(layer.activation(F.linear(norm3(x_BD), weights.ff1, weights.ff1_bias)))  # type: ignore[operator]
        x_BD = x_BD + F.linear(hidden, weights.ff2, weights.ff2_bias)
    return model.norm(x_BD)


def _seen_slots(attention: Attention, n_heads: int, age: Tensor, index: Tensor, dtype: torch.dtype) -> SeenSlots:
    if attention.rescores:
        return SeenSlots(None, age, index)
    visible = attention.visible(age, index)
    hidden_BS = age < 0 if visible is None else (age < 0) | ~visible
    bias_BS = torch.zeros(hidden_BS.shape, dtype=dtype, device=age.device).masked_fill_(hidden_BS, -torch.inf)
    return SeenSlots(bias_BS.repeat_interleave(n_heads, dim=0).unsqueeze(1), age, index)


def _attend(attention: Attention, q_BHK: Tensor, keys: Tensor, values: Tensor, seen: SeenSlots) -> Tensor:
    """The heads' outputs side by side, (B, D). keys, values: (B, H, S, K), the new timestep among them."""
    if seen.bias_N1S is None:
        return attention.cached(q_BHK.unsqueeze(2), keys, values, seen.age_BS, seen.index_BS).flatten(1)
    q_N1K, keys_NSK, values_NSK = q_BHK.flatten(0, 1).unsqueeze(1), keys.flatten(0, 1), values.flatten(0, 1)
    scale = 1.0 / math.sqrt(q_BHK.shape[-1])
    weights = torch.baddbmm(seen.bias_N1S, q_N1K, keys_NSK.transpose(1, 2), alpha=scale).softmax(dim=-1)
    return torch.bmm(weights, values_NSK).view(len(q_BHK), -1)


def layer_weights(layer: TransformerLayer) -> LayerWeights:
    """What a layer computes with now. To be made anew when its weights change."""
    attention = layer.attention_layer
    return LayerWeights(
        by_columns(effective_weight(attention.qkv_projection)),
        by_columns(attention.out_weight()),
        attention.out_projection.bias,
        by_columns(effective_weight(layer.ff1)),
        layer.ff1.bias,
        by_columns(effective_weight(layer.ff2)),
        layer.ff2.bias,
        tuple(plain_norm(norm) for norm in (layer.norm1, layer.norm2, layer.norm3, layer.norm4)),
    )


def effective_weight(linear: Linear) -> Tensor:
    """The matrix (d_out, d_in) that a linear layer multiplies with."""
    return linear.weight if isinstance(linear, nn.Linear) else linear.effective_weight()


def plain_norm(normalization: Normalization) -> Callable[[Tensor], Tensor]:
    """The same function, without the calls of modules around it where it is a LayerNorm."""
    norm = normalization.norm
    if type(norm) is nn.LayerNorm:
        return partial(
            torch.layer_norm,
            normalized_shape=norm.normalized_shape,
            weight=norm.weight,
            bias=norm.bias,
            eps=norm.eps,
        )
    return (lambda x: x) if isinstance(norm, nn.Identity) else norm
