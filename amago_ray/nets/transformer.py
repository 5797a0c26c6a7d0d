"""A causal Transformer that trains on whole sequences and acts one step at a time with ring-buffer caches.

Pre-norm blocks with NormFormer's extra norms and per-head scale (Shleifer et al. 2021, arXiv 2110.09456) and
sigma-reparametrised linear layers (see `sigma_reparam`).

Shape letters: B sequences (or environments), L timesteps, S cache slots, H heads, K head width, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amago_ray.nets import narrow_attention
from amago_ray.nets.attention import Attention
from amago_ray.nets.dropout import Dropout
from amago_ray.nets.feedforward import Normalization, activation
from amago_ray.nets.kept import Kept
from amago_ray.nets.kernels import HasKernel
from amago_ray.nets.key_value_cache import CompilableCache, KeyValueCache, TracedCache, TracedCacheStep
from amago_ray.nets.packed_sequences import Packing
from amago_ray.nets.recomputation import recomputed, statistics_are_held
from amago_ray.nets.sigma_reparam import SigmaReparam, power_iterations
from amago_ray.nets.transformer_step import LayerWeights, effective_weight, layer_weights, transformer_step
from amago_ray.warned import warn

PositionEmbedding = Literal["fixed", "learnable", "rope"]


Linear = SigmaReparam | nn.Linear
COMPILED_SHAPES = 64  # that the compiler keeps code for


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


class AttentionLayer(nn.Module):
    """Multi-head self-attention with a learned scale per head."""

    def __init__(
        self,
        attention: Attention,
        d_model: int,
        n_heads: int,
        dropout_qkv: float,
        dropout_attn: float,
        head_scaling: bool,
        linear: type[Linear],
    ):
        super().__init__()
        self.attention = attention
        self.n_heads = n_heads
        self.qkv_projection = linear(d_model, 3 * d_model, bias=False)
        self.out_projection = linear(d_model, d_model)
        self.dropout_qkv = Dropout(dropout_qkv)
        self.dropout_attn = dropout_attn
        self.head_scaler: nn.Parameter | None = nn.Parameter(torch.ones(n_heads, 1, 1), requires_grad=head_scaling)

    def forward(
        self, x_BLD: Tensor, rope: tuple[Tensor, Tensor] | None, cache: TracedCacheStep | None, packing: Packing | None
    ) -> Tensor:
        qkv = self.dropout_qkv(self.qkv_projection(x_BLD))
        qkv_BL3HK = qkv.view(*x_BLD.shape[:2], 3, self.n_heads, x_BLD.shape[2] // self.n_heads)
        dropout_p = self.dropout_attn if self.training else 0.0
        if rope is None and cache is None:
            heads_BLHK = self.attention.projected(qkv_BL3HK, dropout_p, packing)
        else:
            qkv_BL3HK = qkv_BL3HK if packing is None else packing.pad(qkv_BL3HK)
            q, k, v = qkv_BL3HK.permute(2, 0, 3, 1, 4)
            if rope is not None:
                q, k = rotate(q, *rope), rotate(k, *rope)
            if cache is None:
                heads_BHLK = self.attention.sequence(q, k, v, dropout_p)
            else:
                heads_BHLK = self.attention.cached(q, *cache.write(k, v), cache.age_BS, cache.index_BS)
            heads_BLHK = heads_BHLK.transpose(1, 2)
            heads_BLHK = heads_BLHK if packing is None else packing.pack(heads_BLHK)
        return self._project(heads_BLHK.reshape(x_BLD.shape))

    def scale_D(self) -> Tensor | None:
        """The scale of its head for each entry that the heads put side by side; None where matrices have it in them."""
        if self.head_scaler is None:
            return None
        return self.head_scaler.flatten().repeat_interleave(self.out_projection.weight.shape[1] // self.n_heads)

    @torch.no_grad()
    def out_weight(self) -> Tensor:
        """The matrix of the output projection with the scales of heads in it, without gradient."""
        weight, scale_D = effective_weight(self.out_projection), self.scale_D()
        return weight if scale_D is None else weight * scale_D

    def _project(self, heads_BLD: Tensor) -> Tensor:
        """The output projection of scaled heads: the scales go to the small matrix, not to every timestep."""
        out = self.out_projection
        if isinstance(out, SigmaReparam):
            return out(heads_BLD, self.scale_D())
        scale_D = self.scale_D()
        return F.linear(heads_BLD, out.weight if scale_D is None else out.weight * scale_D, out.bias)


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
        linear: type[Linear],
    ):
        super().__init__()
        self.attention_layer = attention_layer
        self.ff1 = linear(d_model, d_ff)
        self.ff2 = linear(d_ff, d_model)
        self.norm1 = Normalization(norm, d_model)
        self.norm2 = Normalization(norm if normformer_norms else "none", d_model)
        self.norm3 = Normalization(norm, d_model)
        self.norm4 = Normalization(norm if normformer_norms else "none", d_ff)
        self.activation = activation(activation_name)
        self.dropout_ff = Dropout(dropout_ff)

    def forward(
        self, x_BLD: Tensor, rope: tuple[Tensor, Tensor] | None, cache: TracedCacheStep | None, packing: Packing | None
    ) -> Tensor:
        x_BLD = x_BLD + self.norm2(self.attention_layer(self.norm1(x_BLD), rope, cache, packing))
        hidden = self.norm4(self.activation(self.ff1(self.norm3(x_BLD))))
        return x_BLD + self.dropout_ff(self.ff2(hidden))


def _whole_sequences(
    layer: nn.Module, x_BLD: Tensor, rope: tuple[Tensor, Tensor] | None, packing: Packing | None
) -> Tensor:
    """What is compiled, once for all layers."""
    return layer(x_BLD, rope, None, packing)


class Transformer(nn.Module, HasKernel):
    """Input projection, position embedding, `n_layers` blocks, final norm: (B, L, d_inp) -> (B, L, d_model).

    Dropout: `dropout_emb` on embeddings, `dropout_ff` in feed-forward blocks, `dropout_qkv` on queries, keys and
    values, `dropout_attn` on attention weights.
    Raises ValueError where a width does not divide over the heads, a position embedding is unknown, or `dropout_attn`
    is no probability below 1.
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
        dropout_attn: float = 0.0,
        activation_name: str = "leaky_relu",
        norm: str = "layer",
        normformer_norms: bool = True,
        head_scaling: bool = True,
        sigma_reparam: bool = True,
    ):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"TformerTrajEncoder.d_model={d_model} must be a multiple of n_heads={n_heads}")
        if n_layers < 1:
            raise ValueError(f"TformerTrajEncoder.n_layers={n_layers}: it must be 1 or more")
        if pos_emb not in ("fixed", "learnable", "rope"):
            raise ValueError(f"TformerTrajEncoder.pos_emb={pos_emb!r}: use 'fixed', 'learnable' or 'rope'")
        if pos_emb == "rope" and (d_model // n_heads) % 2:
            raise ValueError(f"TformerTrajEncoder.pos_emb='rope' needs an even head width, not {d_model // n_heads}")
        if not 0.0 <= dropout_attn < 1.0:
            raise ValueError(f"TformerTrajEncoder.dropout_attn={dropout_attn}: it must be from 0 to below 1")
        self.d_model = d_model
        self.n_heads = n_heads
        self.attention = attention
        self.pos_emb = pos_emb
        self._drops_attention = dropout_attn > 0
        self.inp = nn.Linear(d_inp, d_model)
        self.position = nn.Embedding(max_time_idx, d_model) if pos_emb == "learnable" else None
        self.dropout_emb = Dropout(dropout_emb)
        linear = SigmaReparam if sigma_reparam else nn.Linear
        self.layers = nn.ModuleList(
            TransformerLayer(
                AttentionLayer(attention, d_model, n_heads, dropout_qkv, dropout_attn, head_scaling, linear),
                d_model,
                d_ff,
                dropout_ff,
                activation_name,
                norm,
                normformer_norms,
                linear,
            )
            for _ in range(n_layers)
        )
        self.norm = Normalization(norm, d_model)
        self._step_weights: Kept[list[LayerWeights]] = Kept()
        self._compiled_layer: Callable[..., Tensor] | None = None
        # All at once and ahead of the layers, so that these are functions of their input and nothing else.
        self._reparametrised = [x for x in self.layers.modules() if isinstance(x, SigmaReparam)]
        for reparametrised in self._reparametrised:
            reparametrised.iterates = False

    def initial_cache(self, num_envs: int, num_slots: int) -> KeyValueCache:
        """An empty cache on this module's device, in its dtype. num_slots: more than the attention has sinks."""
        shape = (len(self.layers), num_envs, self.n_heads, num_slots, self.d_model // self.n_heads)
        weight = self.inp.weight
        # Zeros, not empty: a masked NaN would still poison a matrix product.
        keys, values = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        return KeyValueCache(keys, values, np.zeros(num_envs, dtype=np.int64), self.attention.num_sinks)

    def forward(
        self,
        x_BLD: Tensor,
        time_idx_BL: Tensor,
        cache: KeyValueCache | CompilableCache | TracedCache | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Whole sequences without `cache`; with it, L is 1 and the cache is written in place.

        A step over a `KeyValueCache` or `CompilableCache` is that of acting: without dropout and without gradient.
        packing: of sequences that lie end to end, (1, R, d_inp) and (1, R) to (1, R, d_model).
        """
        if isinstance(cache, KeyValueCache | CompilableCache):
            return transformer_step(self, x_BLD.squeeze(1), time_idx_BL.squeeze(1), cache).unsqueeze(1)
        x_BLD = self.inp(x_BLD)
        rope = None
        if self.pos_emb == "fixed":
            x_BLD = x_BLD + sinusoid(time_idx_BL, self.d_model).to(x_BLD.dtype)
        elif self.position is not None:
            x_BLD = x_BLD + self.position(time_idx_BL.clamp(max=self.position.num_embeddings - 1))
        else:
            # Rotations happen where sequences are padded.
            rope = rope_tables(
                time_idx_BL if packing is None else packing.pad(time_idx_BL), self.d_model // self.n_heads
            )
        x_BLD = self.dropout_emb(x_BLD)
        if self.training and not statistics_are_held():
            power_iterations(self._reparametrised)
        steps: Sequence[TracedCacheStep | None] = [None] * len(self.layers) if cache is None else cache.steps()
        compilable = cache is None and (packing is None or self.attends_packed) and torch.is_grad_enabled()
        for layer, step in zip(self.layers, steps, strict=True):
            if compilable and self._compiled_layer is not None:
                x_BLD = recomputed(self._compiled, layer, x_BLD, rope, packing)
            else:
                x_BLD = recomputed(layer, x_BLD, rope, step, packing)
        return self.norm(x_BLD)

    def compile_layers(self) -> None:
        """From here on, put layers through PyTorch's compiler where they see whole sequences with gradient.

        It fuses what lies between matrix products. Each length, precision and number of threads takes it some seconds,
        once for all layers, and packed sequences once for all lengths; where it fails there is one warning, and layers
        are computed as they were. Packed ones are in any case where attention would have to pad them.
        """
        try:
            torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, COMPILED_SHAPES)
            self._compiled_layer = torch.compile(_whole_sequences, dynamic=False)
        except OSError as error:  # it makes a folder for what it compiles
            self._do_not_compile(error)

    def use_kernel(self) -> None:
        """That of narrow heads; see `HasKernel`."""
        if self.has_kernel:
            self.attention.compile_narrow()

    @property
    def has_kernel(self) -> bool:
        """Whether there is one for heads of this width (`use_kernel`)."""
        return self.d_model // self.n_heads in narrow_attention.WIDTHS

    @property
    def attends_packed(self) -> bool:
        """Whether attention to packed sequences is computed as they lie, and not padded first."""
        return self.attention.uses_kernel and self.could_attend_packed

    @property
    def could_attend_packed(self) -> bool:
        """Whether it would be, where kernels can be compiled."""
        whole = self.pos_emb != "rope" and not self._drops_attention
        return whole and self.has_kernel and self.attention.has_kernel

    @property
    def is_compiled(self) -> bool:
        """Whether layers go through the compiler."""
        return self._compiled_layer is not None

    def _do_not_compile(self, error: Exception) -> None:
        warn(f"layers are not compiled: {str(error).strip().splitlines()[0]}", stacklevel=3)
        self._compiled_layer = None

    def _compiled(
        self, layer: nn.Module, x_BLD: Tensor, rope: tuple[Tensor, Tensor] | None, packing: Packing | None
    ) -> Tensor:
        if self._compiled_layer is None:  # by now: this is computed again for the backward pass
            return layer(x_BLD, rope, None, packing)
        if packing is not None:
            torch._dynamo.maybe_mark_dynamic(x_BLD, 1)
        try:
            return self._compiled_layer(layer, x_BLD, rope, packing)
        except (torch._dynamo.exc.TorchDynamoException, OSError) as error:
            self._do_not_compile(error)  # what the compiler met, and not what the layer did
            return layer(x_BLD, rope, None, packing)

    def train(self, mode: bool = True) -> Transformer:
        self._step_weights.forget()
        return super().train(mode)

    def step_weights(self) -> list[LayerWeights]:
        """The layers as `transformer_step` computes them, kept until a weight changes. Without gradient."""
        return self._step_weights.get(self._make_step_weights)

    def _make_step_weights(self) -> tuple[list[LayerWeights], list[Tensor]]:
        layers = [layer for layer in self.layers if isinstance(layer, TransformerLayer)]
        sources: list[Tensor] = []
        for layer in layers:
            attention = layer.attention_layer
            if attention.head_scaler is not None:
                sources.append(attention.head_scaler)
            for linear in (attention.qkv_projection, attention.out_projection, layer.ff1, layer.ff2):
                sources += linear.sources if isinstance(linear, SigmaReparam) else (linear.weight,)
        return [layer_weights(layer) for layer in layers], sources

    def positioned(self, x_BD: Tensor, time_idx_B: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
        """Embeddings (B, D) of single timesteps with their position; or what turns queries and keys by it."""
        if self.pos_emb == "rope":
            cos_BHK, sin_BHK = (
                x.squeeze(2) for x in rope_tables(time_idx_B.unsqueeze(1), self.d_model // self.n_heads)
            )
            return x_BD, lambda x_BHK: rotate(x_BHK, cos_BHK, sin_BHK)
        if self.position is not None:
            return x_BD + self.position(time_idx_B.clamp(max=self.position.num_embeddings - 1)), None
        return x_BD + sinusoid(time_idx_B, self.d_model).to(x_BD.dtype), None
