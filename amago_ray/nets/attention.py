"""Causal attention over whole sequences and over a cache, full or windowed, without ever holding L x L weights.

Whole sequences (padding, if any, at the end) take one of four ways, all of the same function:

- narrow heads on a processor, everything in the past or a window without sinks, once `compile_narrow` has been called:
  a kernel of this package (`narrow_attention.py`);
- everything in the past is visible: PyTorch's fused causal kernel;
- a sliding window, with or without sinks: the fused kernel over blocks of queries, in time L x window;
- what no fused kernel offers (clipped or biased logits, a user's own `visible`, dropout on CPU): one block of queries
  at a time, its weights computed again in backward.

Shape letters: B sequences (or environments), L timesteps, S cache slots, H heads, K head width, N blocks of C queries
that see J keys each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import gin
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from amago_ray.nets import kernels, narrow_attention
from amago_ray.nets.dropout import dropout
from amago_ray.nets.packed_sequences import Packing

UNLIMITED = 1 << 40  # timesteps of a window that nothing falls out of
WIDE_HEAD = 64  # from which on PyTorch's kernel in half precision is the faster one on CPU, backward included
BLOCK = 128  # queries that share one computation: enough to fill a device, few enough that BLOCK x L weights are small


def has_fused_kernel(q_BHLK: Tensor, dropout_p: float) -> bool:
    """Whether unmasked scaled-dot-product attention has a kernel here that keeps no L x L weights.

    On CPU there is none with dropout; on CUDA none for float64 or for heads whose rows are not aligned.
    """
    if q_BHLK.is_cuda:
        return q_BHLK.dtype != torch.float64 and q_BHLK.shape[-1] % 8 == 0
    return dropout_p == 0.0


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False
) -> Tensor:
    """PyTorch's, but for narrow heads in half precision on CPU: with a gradient, these are computed in float32.

    Forward and backward in bfloat16 take 1.6 to 2.7 times as long there for heads of 16 and 32, 0.8 to 0.9 for 64.
    """
    settings: dict[str, Any] = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal}
    if q.device.type == "cpu" and q.dtype.itemsize < 4 and q.shape[-1] < WIDE_HEAD and q.requires_grad:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **settings).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, **settings)


class Attention(nn.Module, ABC):
    """Which earlier timesteps a timestep may look at, over whole sequences and over a cache.

    A subclass says `visible(age, index)`; everything else follows from it. It may override `rescore` as well.
    logit_clip: bounds logits to (-logit_clip, logit_clip) by a tanh; None leaves them as they are.
    num_sinks: how many of a rollout's first timesteps the cache keeps for good.
    """

    logit_clip: float | None = None
    num_sinks: int = 0
    _narrow = False  # whether the kernel of narrow heads is there to be used

    @abstractmethod
    def visible(self, age: Tensor, index: Tensor) -> Tensor | None:
        """Boolean: may a query see a key that is `age` >= 0 timesteps older and is the `index`-th of its sequence?

        None means that everything in the past is visible. Sequences ask block by block and broadcast the two.
        """

    def rescore(self, logits: Tensor, index: Tensor) -> Tensor:
        """What becomes of scaled logits before the softmax. index: of each key in its sequence; broadcasts to them."""
        return logits if self.logit_clip is None else self.logit_clip * torch.tanh(logits / self.logit_clip)

    @property
    def rescores(self) -> bool:
        """Whether `rescore` changes anything: no fused kernel knows how."""
        return self.logit_clip is not None or type(self).rescore is not Attention.rescore

    def compile_narrow(self) -> None:
        """From here on, narrow heads on a processor go to `narrow_attention`. Raises OSError as `kernels.compiled`."""
        kernels.compiled(narrow_attention.SOURCE)
        self._narrow = True

    @property
    def has_kernel(self) -> bool:
        """Whether `narrow_attention` knows what this one sees."""
        return type(self) in NARROW_WINDOW

    @property
    def uses_kernel(self) -> bool:
        """Whether `projected` goes there, packed sequences and all, unless weights are dropped."""
        return self._narrow and self.has_kernel

    def projected(self, qkv_BL3HK: Tensor, dropout_p: float = 0.0, packing: Packing | None = None) -> Tensor:
        """`sequence` of what one projection gives, queries, keys and values side by side. Returns (B, L, H, K).

        packing: of sequences that lie end to end, (1, R, 3, H, K) to (1, R, H, K).
        """
        if self.uses_kernel and dropout_p == 0.0 and narrow_attention.is_narrow(qkv_BL3HK):
            bounds = None if packing is None else packing.bounds
            return narrow_attention.narrow_attention(qkv_BL3HK, NARROW_WINDOW[type(self)](self), bounds)
        if packing is not None:
            return packing.pack(self.projected(packing.pad(qkv_BL3HK), dropout_p))
        q, k, v = qkv_BL3HK.permute(2, 0, 3, 1, 4)
        return self.sequence(q, k, v, dropout_p).transpose(1, 2)

    def sequence(self, q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, dropout_p: float = 0.0) -> Tensor:
        """Causal attention over whole sequences, (B, H, L, K) -> (B, H, L, K).

        dropout_p: probability of dropping an attention weight.
        """
        first = torch.zeros(1, dtype=torch.long, device=q_BHLK.device)
        if self.visible(first, first) is None:
            return self._everything(q_BHLK, k_BHLK, v_BHLK, dropout_p)
        return self._by_blocks(q_BHLK, k_BHLK, v_BHLK, dropout_p)

    def cached(self, q_BH1K: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, age_BS: Tensor, index_BS: Tensor) -> Tensor:
        """Attention of one new timestep over cache slots; slots with age < 0 are empty. Returns (B, H, 1, K)."""
        age, index = age_BS[:, None, None], index_BS[:, None, None]
        return self._masked(q_BH1K, k_BHSK, v_BHSK, age, index, 0.0)

    def _fused(self, q_BHLK: Tensor, dropout_p: float) -> bool:
        return not self.rescores and has_fused_kernel(q_BHLK, dropout_p)

    def _everything(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        """`sequence` where everything in the past is visible."""
        if self._fused(q, dropout_p):
            return scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)
        return self._by_blocks(q, k, v, dropout_p)

    def _by_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, window: int | None = None, sinks: int = 0
    ) -> Tensor:
        """`sequence` of anything, with the weights of one block of queries in memory at a time.

        window, sinks: a promise that nothing as old as `window` is visible but the first `sinks` timesteps; keys that
        no query of a block can see are then left out. None promises nothing.
        """
        q_blocks, k_blocks, v_blocks = (x.split(BLOCK, dim=2) for x in (q, k, v))
        k_sinks, v_sinks = k[:, :, :sinks], v[:, :, :sinks]
        outputs = []
        for n, q_block in enumerate(q_blocks):
            end = n * BLOCK + q_block.shape[2]
            first = far = 0
            if window is None:
                ks, vs = [k[:, :, :end]], [v[:, :, :end]]
            else:
                # Pieces of one split, whose gradient is one concatenation: that of a slice is as long as the sequence.
                past = max(0, n - math.ceil((window - 1) / BLOCK))
                first = past * BLOCK
                far = min(sinks, first)  # later sinks are among the keys from `first`
                ks = [k_sinks[:, :, :far], *k_blocks[past : n + 1]]
                vs = [v_sinks[:, :, :far], *v_blocks[past : n + 1]]
            arguments = (q_block, ks, vs, far, first, end, dropout_p)
            out = checkpoint(self._block, *arguments, use_reentrant=False, preserve_rng_state=dropout_p > 0.0)
            assert isinstance(out, Tensor)
            outputs.append(out)
        return torch.cat(outputs, dim=2)

    def _block(
        self, q: Tensor, ks: list[Tensor], vs: list[Tensor], far: int, first: int, end: int, dropout_p: float
    ) -> Tensor:
        """The queries before timestep `end`. ks, vs: pieces of timesteps 0 to `far`, then `first` to `end`."""
        query = torch.arange(end - q.shape[2], end, device=q.device).unsqueeze(1)
        key = torch.cat((torch.arange(far, device=q.device), torch.arange(first, end, device=q.device))).unsqueeze(0)
        return self._masked(q, torch.cat(ks, dim=2), torch.cat(vs, dim=2), query - key, key, dropout_p)

    def _masked(self, q: Tensor, k: Tensor, v: Tensor, age: Tensor, index: Tensor, dropout_p: float) -> Tensor:
        """Attention to those keys that are no younger than the query and visible to it."""
        visible = self.visible(age, index)
        mask = age >= 0 if visible is None else (age >= 0) & visible
        if not self.rescores:
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)
        logits = q @ k.transpose(-1, -2)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = self.rescore(logits / math.sqrt(q.shape[-1]), index)
        weights = logits.masked_fill(~mask, -torch.inf).softmax(dim=-1).to(v.dtype)
        return dropout(weights, dropout_p) @ v


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
        in_window = age < self.window_size
        return in_window | (index < self.num_sinks) if self.num_sinks else in_window

    def sequence(self, q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, dropout_p: float = 0.0) -> Tensor:
        if type(self).visible is not SlidingWindowAttention.visible:
            return super().sequence(q_BHLK, k_BHLK, v_BHLK, dropout_p)  # a subclass that need not keep to the window
        if q_BHLK.shape[2] <= self.window_size + self.num_sinks:
            return self._everything(q_BHLK, k_BHLK, v_BHLK, dropout_p)
        if self._fused(q_BHLK, dropout_p):
            return self._banded(q_BHLK, k_BHLK, v_BHLK, dropout_p)
        return self._by_blocks(q_BHLK, k_BHLK, v_BHLK, dropout_p, self.window_size, self.num_sinks)

    def _banded(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        """`sequence` by the fused kernel, for more than `window_size` + `num_sinks` timesteps.

        That many first queries see all of their past: plain causal attention. For every later one the window lies
        wholly past the sinks, so that all blocks of C queries share one mask over the sinks and C + window - 1 keys.
        """
        length, window, sinks = q.shape[2], self.window_size, self.num_sinks
        early = window + sinks
        early_out = scaled_dot_product_attention(
            q[:, :, :early], k[:, :, :early], v[:, :, :early], dropout_p=dropout_p, is_causal=True
        )
        late = length - early
        num_blocks = math.ceil(late / max(window, BLOCK))
        block = math.ceil(late / num_blocks)
        padding = num_blocks * block - late
        q_BHNCK = F.pad(q, (0, 0, -early, padding)).unflatten(2, (num_blocks, block))
        k_BHNJK, v_BHNJK = (
            torch.cat(
                (
                    x[:, :, None, :sinks].expand(-1, -1, num_blocks, -1, -1),
                    F.pad(x, (0, 0, -sinks - 1, padding)).unfold(2, block + window - 1, block).transpose(-1, -2),
                ),
                dim=3,
            )
            for x in (k, v)
        )
        query = torch.arange(window - 1, window - 1 + block, device=q.device).unsqueeze(1)
        age = query - torch.arange(block + window - 1, device=q.device)
        mask_CJ = F.pad((age >= 0) & (age < window), (sinks, 0), value=True)
        late_out = scaled_dot_product_attention(
            q_BHNCK.flatten(1, 2), k_BHNJK.flatten(1, 2), v_BHNJK.flatten(1, 2), attn_mask=mask_CJ, dropout_p=dropout_p
        )
        late_out = late_out.unflatten(1, (-1, num_blocks)).flatten(2, 3)[:, :, :late]
        return torch.cat((early_out, late_out), dim=2)


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


# --- AMAGO's own types: their windows count the keys besides the query itself -----------------------------------------


@gin.configurable
class FlashAttention(SlidingWindowAttention):
    """AMAGO's default: everything in the past, or a window by the convention of the package flash-attn.

    window_size: (left, right) timesteps besides oneself; (W, 0) shows W + 1 keys, and -1 sets no limit. What lies to
    the right is never seen, whatever is said of it.
    """

    def __init__(self, window_size: tuple[int, int] = (-1, -1)):
        if len(window_size) != 2 or min(window_size) < -1:
            raise ValueError(
                f"FlashAttention.window_size={window_size!r}: it is (left, right) timesteps besides oneself, -1 for "
                "no limit"
            )
        left = window_size[0]
        super().__init__(UNLIMITED if left == -1 else left + 1)


@gin.configurable
class SlidingWindowFlexAttention(SlidingWindowAttention):
    """Every timestep sees itself and the `window_size` before it: one key more than by `SlidingWindowAttention`."""

    def __init__(self, window_size: int | None = None):
        if window_size is None or window_size < 0:
            raise ValueError(f"SlidingWindowFlexAttention.window_size={window_size}: it must be 0 or more timesteps")
        super().__init__(window_size + 1)


@gin.configurable
class ClippedSlidingSinkAttention(SlidingWindowAttention):
    """Every timestep sees itself, the `window_size` before it, and the first `sink_size` of the sequence.

    sink_bias: added to the scaled logits of those first ones, in and out of the window. logit_clip: afterwards every
    logit is cut off at +-logit_clip; 0 leaves them as they are. (`SlidingSinkAttention` bends them by a tanh instead,
    whose gradient never vanishes.)
    """

    def __init__(
        self, window_size: int | None = None, logit_clip: float = 0.0, sink_size: int = 0, sink_bias: float = 0.0
    ):
        for name, value in (("window_size", window_size), ("logit_clip", logit_clip), ("sink_size", sink_size)):
            if value is None or value < 0:
                raise ValueError(f"ClippedSlidingSinkAttention.{name}={value}: it must be 0 or more")
        assert window_size is not None
        super().__init__(window_size + 1)
        self.num_sinks = sink_size
        self.cut_off = logit_clip
        self.sink_bias = sink_bias

    def rescore(self, logits: Tensor, index: Tensor) -> Tensor:
        if self.num_sinks and self.sink_bias:
            logits = torch.where(index < self.num_sinks, logits + self.sink_bias, logits)
        return logits.clamp(-self.cut_off, self.cut_off) if self.cut_off else logits

    @property
    def rescores(self) -> bool:
        return bool(self.cut_off or (self.num_sinks and self.sink_bias))


# Timesteps that each one sees, by the kernel of narrow heads. What derives from these may see others.
NARROW_WINDOW: dict[type[Attention], Callable[[Any], int]] = {
    CausalAttention: lambda attention: UNLIMITED,
    SlidingWindowAttention: lambda attention: attention.window_size,
    FlashAttention: lambda attention: attention.window_size,
    SlidingWindowFlexAttention: lambda attention: attention.window_size,
}
