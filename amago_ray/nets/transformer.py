"""A causal Transformer that trains on whole sequences and acts one step at a time with ring-buffer caches.

Pre-norm blocks with NormFormer's extra norms and per-head scale (Shleifer et al. 2021, arXiv 2110.09456) and
sigma-reparametrised linear layers (Zhai et al. 2023, arXiv 2303.06296).

Shape letters: B sequences (or environments), L timesteps, S cache slots, H heads, K head width, D model width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import gin
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amago_ray.nets.feedforward import Normalization, activation

PositionEmbedding = Literal["fixed", "learnable", "rope"]


class SigmaReparamLinear(nn.Module):
    """y = x (gamma W / sigma(W))^T + b, with sigma(W) = u^T W v the largest singular value of W (arXiv 2303.06296).

    u and v start as the true singular vectors and follow W by one power iteration per training step.
    """

    u: Tensor
    v: Tensor

    def __init__(self, d_in: int, d_out: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None
        self.gamma = nn.Parameter(torch.ones(1))
        nn.init.trunc_normal_(self.weight, std=0.02)
        left, _, right = torch.linalg.svd(self.weight.detach(), full_matrices=False)
        self.register_buffer("u", left[:, 0].contiguous())
        self.register_buffer("v", right[0].contiguous())
        self._folded: tuple[tuple[int, ...], Tensor] | None = None

    def _folded_weight(self) -> Tensor:
        """The effective weight, kept until something writes into what it is made of: acting reuses it at every step."""
        versions = (self.weight._version, self.gamma._version, self.u._version, self.v._version)
        if self._folded is None or self._folded[0] != versions or self._folded[1].device != self.weight.device:
            sigma = torch.dot(self.u, self.weight.float() @ self.v)
            self._folded = (versions, self.weight * (self.gamma / sigma))
        return self._folded[1]

    @torch.no_grad()
    def _power_iteration(self) -> None:
        weight = self.weight.float()
        self.u.copy_(F.normalize(weight @ self.v, dim=0))
        self.v.copy_(F.normalize(self.u @ weight, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and not torch.is_grad_enabled():
            return F.linear(x, self._folded_weight(), self.bias)
        if self.training:
            self._power_iteration()
        # Copies, because the next power iteration writes into the buffers before backward may have read them.
        u, v = (self.u.clone(), self.v.clone()) if self.training else (self.u, self.v)
        with torch.autocast(device_type=x.device.type, enabled=False):
            sigma = torch.dot(u, self.weight.float() @ v)
            weight = self.weight * (self.gamma / sigma)
        return F.linear(x, weight, self.bias)


def sinusoid(time_idx: Tensor, d_model: int) -> Tensor:
    """Interleaved sine and cosine of `time_idx` (...,) -> (..., d_model) (Vaswani et al. 2017, section 3.5)."""
    frequency = torch.exp(
        torch.arange(0, d_model, 2, device=time_idx.device, dtype=torch.float32) * (-math.log(10_000.0) / d_model)
    )
    angle = time_idx.unsqueeze(-1) * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :d_model]


def rope_tables(time_idx: Tensor, d_head: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B, 1, L, d_head) that `rotate` uses: half-split rotary positions (arXiv 2104.09864)."""
    frequency = 10_000.0 ** (-torch.arange(0, d_head, 2, device=time_idx.device, dtype=torch.float32) / d_head)
    angle = (time_idx.unsqueeze(-1) * frequency).unsqueeze(1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_BHLK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + K/2}) by its angle. Computed in float32, returned in the dtype of x."""
    half = x_BHLK.shape[-1] // 2
    swapped = torch.cat((x_BHLK[..., half:], x_BHLK[..., :half]), dim=-1)
    return (x_BHLK * cos + swapped * sin).to(x_BHLK.dtype)


class Attention(nn.Module, ABC):
    """Which earlier timesteps a timestep may look at, over whole sequences and over a cache.

    A subclass says `visible(age, index)`; everything else follows from it. Both attention paths use PyTorch's fused
    scaled-dot-product attention unless logits are clipped, which no fused kernel offers.
    """

    logit_clip: float | None = None
    num_sinks: int = 0

    @abstractmethod
    def visible(self, age: Tensor, index: Tensor) -> Tensor | None:
        """Boolean: may a query see a key that is `age` >= 0 timesteps older and is the `index`-th of its sequence?

        None means that everything in the past is visible.
        """

    def sequence(self, q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, dropout_p: float = 0.0) -> Tensor:
        """Causal attention over whole sequences, (B, H, L, K) -> (B, H, L, K)."""
        length = q_BHLK.shape[2]
        position = torch.arange(length, device=q_BHLK.device)
        age_LL = position.unsqueeze(1) - position.unsqueeze(0)
        visible_LL = self.visible(age_LL, position.unsqueeze(0))
        if visible_LL is None and self.logit_clip is None:
            return F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, dropout_p=dropout_p, is_causal=True)
        causal_LL = age_LL >= 0
        return self._masked(
            q_BHLK, k_BHLK, v_BHLK, causal_LL if visible_LL is None else causal_LL & visible_LL, dropout_p
        )

    def cached(self, q_BH1K: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, age_BS: Tensor, index_BS: Tensor) -> Tensor:
        """Attention of one new timestep over cache slots; slots with age < 0 are empty. Returns (B, H, 1, K)."""
        filled_BS = age_BS >= 0
        visible_BS = self.visible(age_BS, index_BS)
        mask_BS = filled_BS if visible_BS is None else filled_BS & visible_BS
        return self._masked(q_BH1K, k_BHSK, v_BHSK, mask_BS[:, None, None, :], 0.0)

    def _masked(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_p: float) -> Tensor:
        if self.logit_clip is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)
        logits = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
        logits = self.logit_clip * torch.tanh(logits / self.logit_clip)
        weights = logits.masked_fill(~mask, -torch.inf).softmax(dim=-1).to(v.dtype)
        return F.dropout(weights, dropout_p) @ v


@gin.configurable
class CausalAttention(Attention):
    """Every timestep sees all earlier ones."""

    def visible(self, age: Tensor, index: Tensor) -> None:
        return None


@gin.configurable
class SlidingWindowAttention(Attention):
    """Every timestep sees itself and the `window_size` - 1 before it."""

    def __init__(self, window_size: int = 128):
        super().__init__()
        if window_size < 1:
            raise ValueError(f"SlidingWindowAttention.window_size={window_size}: it must be 1 or more timesteps")
        self.window_size = window_size

    def visible(self, age: Tensor, index: Tensor) -> Tensor:
        return age < self.window_size


@gin.configurable
class SlidingSinkAttention(SlidingWindowAttention):
    """A sliding window, plus the first `sink_size` timesteps of the sequence (StreamingLLM, arXiv 2309.17453).

    logit_clip: bounds attention logits to (-logit_clip, logit_clip) by a tanh; None leaves them as they are.
    """

    def __init__(self, window_size: int = 128, sink_size: int = 4, logit_clip: float | None = None):
        super().__init__(window_size)
        if sink_size < 0:
            raise ValueError(f"SlidingSinkAttention.sink_size={sink_size}: it must be 0 or more timesteps")
        if logit_clip is not None and logit_clip <= 0:
            raise ValueError(f"SlidingSinkAttention.logit_clip={logit_clip}: it must be positive, or None for no clip")
        self.num_sinks = sink_size
        self.logit_clip = logit_clip

    def visible(self, age: Tensor, index: Tensor) -> Tensor:
        return super().visible(age, index) | (index < self.num_sinks)


@dataclass
class KeyValueCache:
    """Keys and values of the last timesteps of B environments, written in place as rings.

    keys, values: (layers, B, H, S, K). Slots [0, num_sinks) keep the first timesteps of a rollout for good, the others
    are a ring. count: (B,) timesteps seen since the rollout began; on the host, because resets are decided there.
    """

    keys: Tensor
    values: Tensor
    count: np.ndarray
    num_sinks: int

    def reset(self, mask_B: np.ndarray) -> None:
        """Forget everything about the environments in `mask_B`; stale slots are never attended."""
        self.count[mask_B] = 0

    def advance(self) -> tuple[Tensor, Tensor, Tensor]:
        """Make room for one more timestep of every environment.

        Returns (slot_B to write into, age_BS, index_BS): age 0 is the new timestep, negative an empty slot; index is
        the timestep's number since the rollout began. S is cut to the slots in use.
        """
        new_B = self.count.copy()
        self.count += 1
        num_slots, sinks = self.keys.shape[3], self.num_sinks
        ring = num_slots - sinks
        slot_B = np.where(new_B < num_slots, new_B, sinks + (new_B - sinks) % ring)
        used = int(min(self.count.max(), num_slots))
        slots = np.arange(used)
        # The newest timestep that a ring slot can hold is the largest number <= new_B that falls into this slot.
        newest_BS = new_B[:, None] - (new_B[:, None] - slots) % ring
        index_BS = np.where(slots < sinks, slots, newest_BS)
        age_BS = new_B[:, None] - index_BS
        age_BS[(index_BS < sinks) & (slots >= sinks)] = -1  # a ring slot that nothing was written to yet
        device = self.keys.device
        slot, age, index = (torch.from_numpy(x).to(device, non_blocking=True) for x in (slot_B, age_BS, index_BS))
        return slot, age, index


class AttentionLayer(nn.Module):
    """Multi-head self-attention with a learned scale per head."""

    def __init__(self, attention: Attention, d_model: int, n_heads: int, dropout_qkv: float, head_scaling: bool):
        super().__init__()
        self.attention = attention
        self.n_heads = n_heads
        self.qkv_projection = SigmaReparamLinear(d_model, 3 * d_model, bias=False)
        self.out_projection = SigmaReparamLinear(d_model, d_model)
        self.dropout_qkv = nn.Dropout(dropout_qkv)
        self.head_scaler = nn.Parameter(torch.ones(n_heads, 1, 1), requires_grad=head_scaling)

    def forward(self, x_BLD: Tensor, rope: tuple[Tensor, Tensor] | None, cache: CacheStep | None) -> Tensor:
        B, L, D = x_BLD.shape
        qkv = self.dropout_qkv(self.qkv_projection(x_BLD))
        q, k, v = qkv.view(B, L, 3, self.n_heads, D // self.n_heads).permute(2, 0, 3, 1, 4)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is None:
            heads_BHLK = self.attention.sequence(q, k, v)
        else:
            heads_BHLK = self.attention.cached(q, *cache.write(k, v), cache.age_BS, cache.index_BS)
        heads_BHLK = heads_BHLK * self.head_scaler
        return self.out_projection(heads_BHLK.transpose(1, 2).reshape(B, L, D))


@dataclass
class CacheStep:
    """One layer's view of the cache during one timestep."""

    keys_BHSK: Tensor
    values_BHSK: Tensor
    row_B: Tensor
    slot_B: Tensor
    age_BS: Tensor
    index_BS: Tensor

    def write(self, k_BH1K: Tensor, v_BH1K: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new timestep and return the slots in use, (B, H, S, K) each."""
        used = self.age_BS.shape[1]
        self.keys_BHSK[self.row_B, :, self.slot_B] = k_BH1K[:, :, 0].to(self.keys_BHSK.dtype)
        self.values_BHSK[self.row_B, :, self.slot_B] = v_BH1K[:, :, 0].to(self.values_BHSK.dtype)
        return self.keys_BHSK[:, :, :used].to(k_BH1K.dtype), self.values_BHSK[:, :, :used].to(v_BH1K.dtype)


class TransformerLayer(nn.Module):
    """x + norm2(attention(norm1(x))), then x + ff2(norm4(activation(ff1(norm3(x)))))."""

    def __init__(
        self,
        attention_layer: AttentionLayer,
        d_model: int,
        d_ff: int,
        dropout_ff: float,
        activation_name: str,
        norm: str,
        normformer_norms: bool,
    ):
        super().__init__()
        self.attention_layer = attention_layer
        self.ff1 = SigmaReparamLinear(d_model, d_ff)
        self.ff2 = SigmaReparamLinear(d_ff, d_model)
        self.norm1 = Normalization(norm, d_model)
        self.norm2 = Normalization(norm if normformer_norms else "none", d_model)
        self.norm3 = Normalization(norm, d_model)
        self.norm4 = Normalization(norm if normformer_norms else "none", d_ff)
        self.activation = activation(activation_name)
        self.dropout_ff = nn.Dropout(dropout_ff)

    def forward(self, x_BLD: Tensor, rope: tuple[Tensor, Tensor] | None, cache: CacheStep | None) -> Tensor:
        x_BLD = x_BLD + self.norm2(self.attention_layer(self.norm1(x_BLD), rope, cache))
        hidden = self.norm4(self.activation(self.ff1(self.norm3(x_BLD))))
        return x_BLD + self.dropout_ff(self.ff2(self.dropout_ff(hidden)))


class Transformer(nn.Module):
    """Input projection, position embedding, `n_layers` blocks, final norm: (B, L, d_inp) -> (B, L, d_model).

    Raises ValueError where a width does not divide over the heads or a position embedding is unknown.
    """

    def __init__(
        self,
        d_inp: int,
        d_model: int,
        d_ff: int,
        n_heads: int,
        n_layers: int,
        attention: Attention,
        pos_emb: PositionEmbedding = "fixed",
        max_time_idx: int = 4096,
        dropout_emb: float = 0.05,
        dropout_ff: float = 0.05,
        dropout_qkv: float = 0.0,
        activation_name: str = "leaky_relu",
        norm: str = "layer",
        normformer_norms: bool = True,
        head_scaling: bool = True,
    ):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"TformerTrajEncoder.d_model={d_model} must be a multiple of n_heads={n_heads}")
        if pos_emb not in ("fixed", "learnable", "rope"):
            raise ValueError(f"TformerTrajEncoder.pos_emb={pos_emb!r}: use 'fixed', 'learnable' or 'rope'")
        if pos_emb == "rope" and (d_model // n_heads) % 2:
            raise ValueError(f"TformerTrajEncoder.pos_emb='rope' needs an even head width, not {d_model // n_heads}")
        self.d_model = d_model
        self.n_heads = n_heads
        self.attention = attention
        self.pos_emb = pos_emb
        self.inp = nn.Linear(d_inp, d_model)
        self.position = nn.Embedding(max_time_idx, d_model) if pos_emb == "learnable" else None
        self.dropout_emb = nn.Dropout(dropout_emb)
        self.layers = nn.ModuleList(
            TransformerLayer(
                AttentionLayer(attention, d_model, n_heads, dropout_qkv, head_scaling),
                d_model,
                d_ff,
                dropout_ff,
                activation_name,
                norm,
                normformer_norms,
            )
            for _ in range(n_layers)
        )
        self.norm = Normalization(norm, d_model)

    def initial_cache(self, num_envs: int, num_slots: int) -> KeyValueCache:
        """An empty cache on this module's device, in its dtype. num_slots: more than the attention has sinks."""
        shape = (len(self.layers), num_envs, self.n_heads, num_slots, self.d_model // self.n_heads)
        weight = self.inp.weight
        # Zeros, not empty: a masked NaN would still poison a matrix product.
        keys, values = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        return KeyValueCache(keys, values, np.zeros(num_envs, dtype=np.int64), self.attention.num_sinks)

    def forward(self, x_BLD: Tensor, time_idx_BL: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Whole sequences without `cache`; with it, L is 1 and the cache is written in place."""
        x_BLD = self.inp(x_BLD)
        rope = None
        if self.pos_emb == "fixed":
            x_BLD = x_BLD + sinusoid(time_idx_BL, self.d_model).to(x_BLD.dtype)
        elif self.position is not None:
            x_BLD = x_BLD + self.position(time_idx_BL.clamp(max=self.position.num_embeddings - 1))
        else:
            rope = rope_tables(time_idx_BL, self.d_model // self.n_heads)
        x_BLD = self.dropout_emb(x_BLD)
        steps: list[CacheStep | None] = [None] * len(self.layers)
        if cache is not None:
            slot_B, age_BS, index_BS = cache.advance()
            row_B = torch.arange(len(slot_B), device=slot_B.device)
            steps = [
                CacheStep(k, v, row_B, slot_B, age_BS, index_BS) for k, v in zip(cache.keys, cache.values, strict=True)
            ]
        for layer, step in zip(self.layers, steps, strict=True):
            x_BLD = layer(x_BLD, rope, step)
        return self.norm(x_BLD)
