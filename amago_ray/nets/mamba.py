"""Mamba (Gu and Dao 2023, arXiv 2312.00752): a selective state space, over whole sequences or one step at a time.

Parameters carry the names and shapes of `mamba_ssm.Mamba`, so that a state dict moves either way unchanged. Two paths
compute the same function of them: `mamba-ssm`'s CUDA kernels, on a GPU where they are installed, and plain PyTorch
everywhere else. No GPU has run the first one: tests put the package's own reference functions in the kernels' place.

Shape letters: B sequences (or environments), L timesteps, D channels (d_inner), N states per channel (d_state),
R rank of dt, W width of the convolution; the scan's K chunks of T timesteps each.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from amago_ray.nets.feedforward import Normalization
from amago_ray.nets.forgetting import forget_rows
from amago_ray.nets.packed_sequences import Packing
from amago_ray.warned import warn

MAX_CHUNK = 32  # timesteps that are scanned one after the other; chunks are scanned side by side
# Numbers in a buffer of the scan. On a CPU few enough that it stays in the cache, elsewhere many, for wide kernels.
CPU_BUFFER, DEVICE_BUFFER = 2**20, 2**26


def _recur(decay_BKTND: Tensor, value_BKTND: Tensor, reverse: bool = False) -> None:
    """In every chunk, in place: value_t += decay_t value_{t-1}; with `reverse`, value_t += decay_{t+1} value_{t+1}."""
    decays, values = decay_BKTND.unbind(2), value_BKTND.unbind(2)
    if reverse:
        for t in range(len(values) - 2, -1, -1):
            values[t].addcmul_(decays[t + 1], values[t + 1])
    else:
        for t in range(1, len(values)):
            values[t].addcmul_(decays[t], values[t - 1])


def _outer(state_BKTN: Tensor, channel_BKTD: Tensor, out: Tensor) -> Tensor:
    return torch.mul(state_BKTN.unsqueeze(-1), channel_BKTD.unsqueeze(-2), out=out)


def _per_channel(state_BKTN: Tensor, value_BKTND: Tensor) -> Tensor:
    """Sum over N of the product: (B, K, T, D)."""
    return (state_BKTN.unsqueeze(-2) @ value_BKTND).squeeze(-2)


def _per_state(value_BKTND: Tensor, channel_BKTD: Tensor) -> Tensor:
    """Sum over D of the product: (B, K, T, N). Ten times faster on a CPU than with the vector as a column."""
    return (channel_BKTD.unsqueeze(-2) @ value_BKTND.transpose(-1, -2)).squeeze(-2)


class _Chunks:
    """A (B, L, ...) problem cut into K chunks of T <= MAX_CHUNK timesteps, and into tiles that fit a buffer."""

    def __init__(self, x_BLD: Tensor, d_state: int):
        batch, self.length, channels = x_BLD.shape
        self.count = max(1, math.ceil(self.length / MAX_CHUNK))
        self.size = math.ceil(self.length / self.count)
        self.state_shape = (d_state, channels)
        numbers = CPU_BUFFER if x_BLD.device.type == "cpu" else DEVICE_BUFFER
        chunks = max(1, numbers // max(1, self.size * d_state * channels))
        self.time_tile = min(chunks, self.count)
        self.batch_tile = min(max(1, chunks // self.count), max(1, batch))
        self.batch = batch

    def cut(self, x: Tensor) -> Tensor:
        """(B, L, X) -> (B, K, T, X), the missing timesteps at the end zero: there, dt = 0 leaves the state as it is."""
        missing = self.count * self.size - self.length
        return (F.pad(x, (0, 0, 0, missing)) if missing else x).unflatten(1, (self.count, self.size))

    def joined(self, x: Tensor) -> Tensor:
        """(B, K, T, X) -> (B, L, X)"""
        return x.flatten(1, 2)[:, : self.length]

    def buffer(self, like: Tensor) -> Tensor:
        """Room for one tile, to be cut to the tile's own shape by `fitted`."""
        return like.new_empty(self.batch_tile * self.time_tile * self.size * math.prod(self.state_shape))

    def fitted(self, buffer: Tensor, tile_BKTD: Tensor) -> Tensor:
        """The beginning of `buffer` as a contiguous (B, K, T, N, D), for a tile of (B, K, T, D)."""
        shape = (*tile_BKTD.shape[:3], *self.state_shape)
        return buffer[: math.prod(shape)].view(shape)

    def tiles(self, reverse: bool = False) -> Iterator[tuple[slice, slice]]:
        """Rows and chunks of every tile; those of one row in the order of time, or against it."""
        starts = range(0, self.count, self.time_tile)
        for row in range(0, self.batch, self.batch_tile):
            for chunk in reversed(starts) if reverse else starts:
                yield (
                    slice(row, min(row + self.batch_tile, self.batch)),
                    slice(chunk, min(chunk + self.time_tile, self.count)),
                )


def _scan(u_BLD: Tensor, dt_BLD: Tensor, A_ND: Tensor, B_BLN: Tensor, C_BLN: Tensor) -> tuple[Tensor, Tensor]:
    """What `SelectiveScan` computes: y (B, L, D), and the state at the start of every chunk, (B, K, N, D)."""
    chunks = _Chunks(u_BLD, d_state=A_ND.shape[0])
    u, dt, B, C = (chunks.cut(x) for x in (u_BLD, dt_BLD, B_BLN, C_BLN))
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    start_BKND = u_BLD.new_zeros(chunks.batch, chunks.count, *chunks.state_shape)
    decays, states = chunks.buffer(u_BLD), chunks.buffer(u_BLD)
    for rows, span in chunks.tiles():
        start = start_BKND[rows, span]
        tile_u, tile_dt, tile_B, tile_C = (x[rows, span] for x in (u, dt, B, C))
        decay, state = (chunks.fitted(x, tile_dt) for x in (decays, states))
        tile_dtu = tile_dt * tile_u
        torch.mul(tile_dt.unsqueeze(-2), A_ND, out=decay).exp_()
        handing_on = slice(0, min(span.stop, chunks.count - 1) - span.start)  # the last chunk has no one to hand on to
        if handing_on.stop:
            first = state[:, handing_on]
            _outer(tile_B[:, handing_on], tile_dtu[:, handing_on], out=first)
            _recur(decay[:, handing_on], first)
            over_chunk = torch.exp(tile_dt[:, handing_on].sum(dim=2).unsqueeze(-2) * A_ND)
            for k in range(handing_on.stop):
                following = start_BKND[rows, span.start + k + 1]
                torch.addcmul(first[:, k, -1], over_chunk[:, k], start[:, k], out=following)
        _outer(tile_B, tile_dtu, out=state)
        state[:, :, 0].addcmul_(decay[:, :, 0], start)
        _recur(decay, state)
        y[rows, span] = _per_channel(tile_C, state)
    return chunks.joined(y), start_BKND


def _scan_gradients(
    grad_BLD: Tensor, u_BLD: Tensor, dt_BLD: Tensor, A_ND: Tensor, B_BLN: Tensor, C_BLN: Tensor, start_BKND: Tensor
) -> tuple[Tensor, ...]:
    """From the gradient of y those of u, dt, A, B and C, with the states computed anew."""
    chunks = _Chunks(u_BLD, d_state=A_ND.shape[0])
    u, dt, B, C, grad_y = (chunks.cut(x) for x in (u_BLD, dt_BLD, B_BLN, C_BLN, grad_BLD))
    grads = grad_u, grad_dt, grad_B, grad_C = tuple(torch.empty_like(x) for x in (u, dt, B, C))
    grad_A = torch.zeros_like(A_ND)
    decays, states, adjoints = (chunks.buffer(u_BLD) for _ in range(3))
    # What the loss's gradient is at the state that a chunk hands on: zero for the last one.
    end_BKND = torch.zeros_like(start_BKND)
    for rows, span in chunks.tiles(reverse=True):
        start, end = start_BKND[rows, span], end_BKND[rows, span]
        tile_u, tile_dt, tile_B, tile_C, tile_grad = (x[rows, span] for x in (u, dt, B, C, grad_y))
        decay, state, adjoint = (chunks.fitted(x, tile_dt) for x in (decays, states, adjoints))
        tile_dtu = tile_dt * tile_u
        torch.mul(tile_dt.unsqueeze(-2), A_ND, out=decay).exp_()
        _outer(tile_B, tile_dtu, out=state)
        state[:, :, 0].addcmul_(decay[:, :, 0], start)
        _recur(decay, state)
        handing_on = slice(1 if span.start == 0 else 0, len(tile_dt[0]))
        if handing_on.start < handing_on.stop:
            first = adjoint[:, handing_on]
            _outer(tile_C[:, handing_on], tile_grad[:, handing_on], out=first)
            _recur(decay[:, handing_on], first, reverse=True)
            over_chunk = torch.exp(tile_dt.sum(dim=2).unsqueeze(-2) * A_ND)
            for k in range(handing_on.stop - 1, handing_on.start - 1, -1):
                before = end_BKND[rows, span.start + k - 1]
                torch.mul(decay[:, k, 0], adjoint[:, k, 0], out=before).addcmul_(over_chunk[:, k], end[:, k])
        _outer(tile_C, tile_grad, out=adjoint)
        adjoint[:, :, -1].add_(end)
        _recur(decay, adjoint, reverse=True)
        grad_C[rows, span] = _per_state(state, tile_grad)
        grad_B[rows, span] = _per_state(adjoint, tile_dtu)
        grad_dtu = _per_channel(tile_B, adjoint)
        # decay = exp(dt A): its gradient, times itself, is the gradient of dt A.
        decay.mul_(adjoint)
        decay[:, :, 1:].mul_(state[:, :, :-1])
        decay[:, :, 0].mul_(start)
        torch.mul(decay, A_ND, out=state)
        grad_dt[rows, span] = state.sum(dim=-2).addcmul_(grad_dtu, tile_u)
        grad_u[rows, span] = grad_dtu.mul_(tile_dt)
        grad_A += decay.mul_(tile_dt.unsqueeze(-2)).sum(dim=(0, 1, 2))
    grad_u, grad_dt, grad_B, grad_C = (chunks.joined(x) for x in grads)
    return grad_u, grad_dt, grad_A, grad_B, grad_C


class SelectiveScan(torch.autograd.Function):
    """h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t, y_t = C_t h_t, from h = 0 (arXiv 2312.00752, equations 2 and 4).

    Parallel in time at two levels. All chunks of a tile are scanned side by side, each as if it started from zero; one
    short loop over chunks then gives each its true start; a second scan gives the states. That is 2 T + K operations in
    sequence for K T timesteps. Decays are only ever multiplied, never divided by, so that nothing can overflow.

    Memory: between forward and backward, the five inputs and the state at every chunk's start, which is B L D N / T
    numbers (half of one (B, L, D) tensor at N = 16 and T = 32); nothing of size B L D N. While either runs, three
    buffers of max(CPU_BUFFER, T N D) numbers at most, 12 MiB at the default sizes (DEVICE_BUFFER on a GPU, 768 MiB).
    """

    @staticmethod
    def forward(ctx: Any, u_BLD: Tensor, dt_BLD: Tensor, A_ND: Tensor, B_BLN: Tensor, C_BLN: Tensor) -> Tensor:
        with torch.autocast(u_BLD.device.type, enabled=False):
            y_BLD, start_BKND = _scan(u_BLD, dt_BLD, A_ND, B_BLN, C_BLN)
        ctx.save_for_backward(u_BLD, dt_BLD, A_ND, B_BLN, C_BLN, start_BKND)
        return y_BLD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(grad_BLD.device.type, enabled=False):  # who calls backward may have it on
            return _scan_gradients(grad_BLD, *ctx.saved_tensors)


def selective_scan(u_BLD: Tensor, dt_BLD: Tensor, A_DN: Tensor, B_BLN: Tensor, C_BLN: Tensor) -> Tensor:
    """`SelectiveScan` in float32 (or float64), under autocast too: (B, L, D) inputs -> (B, L, D)."""
    inputs = (u_BLD, dt_BLD, A_DN.t().contiguous(), B_BLN, C_BLN)
    return SelectiveScan.apply(*(x.float() if x.dtype.itemsize < 4 else x for x in inputs))


@dataclass(frozen=True)
class Kernels:
    """The two functions of `mamba-ssm` that run on a GPU, or stand-ins with the same signatures."""

    selective_scan: Callable[..., Tensor]
    selective_state_update: Callable[..., Tensor]


@functools.cache
def cuda_kernels() -> Kernels | None:
    """`mamba-ssm`'s kernels, or None, with a warning that says why, where they cannot be imported."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    except ImportError as error:
        warn(f"Mamba runs without mamba-ssm's kernels, which is slower: {error}", stacklevel=2)
        return None
    return Kernels(selective_scan_fn, selective_state_update)


def kernels_for(x: Tensor) -> Kernels | None:
    """The kernels that can take `x`, or None for the plain path."""
    return cuda_kernels() if x.is_cuda else None


class Mamba(nn.Module):
    """x -> out_proj(scan(silu(conv(in_x))) * silu(in_z)), its parameters and their start those of `mamba_ssm.Mamba`.

    d_model: width in and out. d_state: N. d_conv: W. expand: D / d_model.
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2):
        super().__init__()
        self.d_inner = int(expand * d_model)
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high, floor = math.log(1e-3), math.log(1e-1), 1e-4
        dt = torch.exp(torch.rand(self.d_inner) * (high - low) + low).clamp(min=floor)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def _convolution(self, x_BLD: Tensor) -> Tensor:
        """Each channel's own convolution: (B, L, D) -> (B, L - W + 1, D)."""
        weight_WD, y_BLD = self.conv1d.weight[:, 0].t(), self.conv1d.bias
        assert y_BLD is not None
        length = x_BLD.shape[1] - len(weight_WD) + 1
        for w, weight_D in enumerate(weight_WD):
            y_BLD = torch.addcmul(y_BLD, x_BLD[:, w : w + length], weight_D)
        return y_BLD

    def _selection(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the input selects: dt before its bias and softplus (..., D), B and C (..., N)."""
        dt, B, C = self.x_proj(u).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        return F.linear(dt, self.dt_proj.weight), B, C

    def forward(self, x_BLM: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model), or (1, R, d_model) of packed sequences to the same."""
        if packing is not None:
            x_1RD, z_1RD = self.in_proj(x_BLM).chunk(2, dim=-1)
            return self.out_proj(packing.pack(self._mix(packing.pad(x_1RD), packing.pad(z_1RD))))
        return self.out_proj(self._mix(*self.in_proj(x_BLM).chunk(2, dim=-1)))

    def _mix(self, x_BLD: Tensor, z_BLD: Tensor) -> Tensor:
        """Convolution, scan and gate: all between the two projections, (B, L, D)."""
        x_BLD = F.pad(x_BLD, (0, 0, self.conv1d.kernel_size[0] - 1, 0))
        u_BLD = F.silu(self._convolution(x_BLD)).to(z_BLD.dtype)
        dt_BLD, B_BLN, C_BLN = self._selection(u_BLD)
        A_DN, bias_D = -torch.exp(self.A_log.float()), self.dt_proj.bias.float()
        kernels = kernels_for(u_BLD)
        if kernels is not None:
            # The kernel wants time last, one dtype for all sequences, and float32 for the rest.
            u_BDL, dt_BDL, B_BNL, C_BNL, z_BDL = (
                x.transpose(1, 2).contiguous() for x in (u_BLD, dt_BLD, B_BLN, C_BLN, z_BLD)
            )
            y_BDL = kernels.selective_scan(
                u_BDL, dt_BDL, A_DN, B_BNL, C_BNL, self.D.float(), z=z_BDL, delta_bias=bias_D, delta_softplus=True
            )
            return y_BDL.transpose(1, 2)
        y_BLD = selective_scan(u_BLD, F.softplus(dt_BLD + bias_D), A_DN, B_BLN, C_BLN)
        return torch.addcmul(y_BLD, u_BLD, self.D) * F.silu(z_BLD)

    def step(self, x_BM: Tensor, window_BWD: Tensor, state_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, d_model) -> (B, d_model), and the window and state that include it. The kernel writes into `state`."""
        x_BD, z_BD = self.in_proj(x_BM).chunk(2, dim=-1)
        window_BWD = torch.cat((window_BWD[:, 1:], x_BD.unsqueeze(1).to(window_BWD.dtype)), dim=1)
        u_BD = F.silu(self._convolution(window_BWD).squeeze(1)).to(z_BD.dtype)
        dt_BD, B_BN, C_BN = self._selection(u_BD)
        A_DN, bias_D = -torch.exp(self.A_log.float()), self.dt_proj.bias.float()
        kernels = kernels_for(u_BD)
        if kernels is not None and not torch.is_grad_enabled():
            y_BD = kernels.selective_state_update(
                state_BND.transpose(1, 2), u_BD, dt_BD, A_DN, B_BN, C_BN, self.D, z_BD, bias_D, dt_softplus=True
            )
            return self.out_proj(y_BD), window_BWD, state_BND
        dt_BD = F.softplus(dt_BD + bias_D)
        decay_BND = torch.exp(dt_BD.unsqueeze(1) * A_DN.t().contiguous())
        state_BND = torch.addcmul(decay_BND * state_BND, B_BN.unsqueeze(2), (dt_BD * u_BD).unsqueeze(1))
        y_BD = (C_BN.unsqueeze(2) * state_BND).sum(dim=1)
        return self.out_proj(torch.addcmul(y_BD, u_BD, self.D) * F.silu(z_BD)), window_BWD, state_BND


class MambaBlock(nn.Module):
    """x + Mamba(norm(x))."""

    def __init__(self, d_model: int, d_state: int, d_conv: int, expand: int, norm: str):
        super().__init__()
        self.norm = Normalization(norm, d_model)
        self.mamba = Mamba(d_model, d_state, d_conv, expand)

    def forward(self, x_BLM: Tensor, packing: Packing | None = None) -> Tensor:
        return x_BLM + self.mamba(self.norm(x_BLM), packing)

    def step(self, x_BM: Tensor, window_BWD: Tensor, state_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y_BM, window_BWD, state_BND = self.mamba.step(self.norm(x_BM), window_BWD, state_BND)
        return x_BM + y_BM, window_BWD, state_BND


@dataclass(frozen=True)
class MambaMemory:
    """What B environments remember: for every layer the last W inputs of its convolution, and its scan's state."""

    window_BWD: tuple[Tensor, ...]
    state_BND: tuple[Tensor, ...]

    def reset(self, mask_B: np.ndarray) -> MambaMemory:
        """The memory in which the environments of `mask_B` have seen nothing yet; see `forget_rows`."""
        windows, states = (tuple(forget_rows(x, mask_B, 0) for x in kind) for kind in (self.window_BWD, self.state_BND))
        return MambaMemory(windows, states)
