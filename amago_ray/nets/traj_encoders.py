"""Sequence models: timestep embeddings in, memory-aware state embeddings out.

Every encoder has two modes that agree to float tolerance: `forward` maps whole sequences at once (training), and
`step` maps one timestep of many environments, with a memory that is passed in and returned (acting).

    memory = encoder.initial_memory(num_envs)
    while True:
        state_BD, memory = encoder.step(embedding_BD, time_idx_B, memory)
        ...
        memory = encoder.reset_memory(memory, rollout_ended_B)

Exporting a policy needs the same step as one graph, with the memory as named tensors: `portable_memory` and
`portable_step`.

Shape letters: B sequences (or environments), L timesteps, D embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import gin
import numpy as np
import torch
from torch import Tensor, nn

from amago_ray.nets import kernels, recurrent
from amago_ray.nets.attention import Attention, CausalAttention
from amago_ray.nets.dropout import Dropout
from amago_ray.nets.feedforward import Normalization, activation
from amago_ray.nets.forgetting import forget_rows
from amago_ray.nets.kernels import HasKernel
from amago_ray.nets.key_value_cache import CompilableCache, KeyValueCache, RecordableCache, TracedCache
from amago_ray.nets.mamba import MambaBlock, MambaMemory
from amago_ray.nets.packed_sequences import Packing
from amago_ray.nets.recomputation import recomputed
from amago_ray.nets.recurrent import gru_sequence, gru_step
from amago_ray.nets.transformer import PositionEmbedding, Transformer


class TrajEncoder(nn.Module, ABC):
    """Base class of sequence models. A subclass defines `emb_dim`, `forward`, and, if it has memory, three more.

    tstep_dim: width of the timestep embeddings that come in. max_seq_len: longest training sequence, in transitions.
    max_time_idx: a subclass with a table of that many timesteps, say, sets it to the largest index that it takes, and
        is then for rollouts of as many actions at most; None: any.
    """

    max_time_idx: int | None = None

    def __init__(self, tstep_dim: int, max_seq_len: int):
        super().__init__()
        self.tstep_dim = tstep_dim
        self.max_seq_len = max_seq_len

    @property
    @abstractmethod
    def emb_dim(self) -> int:
        """Width of the state embeddings that go out."""

    @abstractmethod
    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        """Map (B, L, tstep_dim) to (B, L, emb_dim). Causal: output t depends on inputs 0..t only."""

    def forward_packed(self, seq_1RD: Tensor, time_idx_1R: Tensor, packing: Packing) -> Tensor:
        """Map sequences that lie end to end, (1, R, tstep_dim), to (1, R, emb_dim).

        The same as `forward` on padded sequences, which is what it is unless a subclass does better.
        """
        return packing.pack(self.forward(packing.pad(seq_1RD), packing.pad(time_idx_1R)))

    def initial_memory(self, num_envs: int) -> Any:
        """Memory of `num_envs` environments at the start of their rollouts, on the module's device."""
        return None

    def step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Map one timestep (B, tstep_dim) to ((B, emb_dim), memory that includes it). May write into `memory`."""
        return self.forward(seq_BD.unsqueeze(1), time_idx_B.unsqueeze(1)).squeeze(1), memory

    def reset_memory(self, memory: Any, mask_B: np.ndarray) -> Any:
        """Memory in which the environments of `mask_B` (B,) bool are at the start of a rollout. May write into it."""
        return memory

    def recordable_memory(self, num_envs: int) -> Any:
        """`initial_memory` for steps that are recorded as a CUDA graph. Override it where that is not tensors on the
        device, in tuples, mappings or dataclasses: a step reads and writes nothing else that changes.
        """
        return self.initial_memory(num_envs)

    def compilable_memory(self, num_envs: int) -> Any:
        """`initial_memory` for steps that are compiled for a processor: as `recordable_memory`."""
        return self.recordable_memory(num_envs)

    def portable_memory(self, num_envs: int) -> dict[str, Tensor]:
        """`initial_memory` as named tensors, all zeros, with the leading axis B.

        Raises ValueError for an encoder that has memory and defines no `portable_memory` and `portable_step`.
        """
        if type(self).step is not TrajEncoder.step:
            raise ValueError(
                f"{type(self).__name__} cannot be exported: it has memory, and defines no portable_memory and "
                "portable_step"
            )
        return {}

    def portable_step(
        self, seq_BD: Tensor, time_idx_B: Tensor, memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`step` as a function of tensors alone, which PyTorch can trace; writes into nothing that it is given."""
        return self.forward(seq_BD.unsqueeze(1), time_idx_B.unsqueeze(1)).squeeze(1), {}


@gin.configurable
class IdentityTrajEncoder(TrajEncoder):
    """No sequence model: states are the timestep embeddings themselves."""

    @property
    def emb_dim(self) -> int:
        return self.tstep_dim

    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        return seq_BLD

    def forward_packed(self, seq_1RD: Tensor, time_idx_1R: Tensor, packing: Packing) -> Tensor:
        return seq_1RD


class FeedForwardBlock(nn.Module):
    """x + activation(ff2(activation(ff1(x)))), with a hidden layer `d_ff` wide."""

    def __init__(self, d_model: int, d_ff: int, dropout_p: float, activation_name: str):
        super().__init__()
        self.ff1 = nn.Linear(d_model, d_ff)
        self.ff2 = nn.Linear(d_ff, d_model)
        self.dropout = Dropout(dropout_p)
        self.activation = activation(activation_name)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.activation(self.ff2(self.dropout(self.activation(self.ff1(x))))))


@gin.configurable
class FFTrajEncoder(TrajEncoder):
    """No memory: the same residual network at every timestep, as deep as a sequence model.

    d_ff: width of the hidden layers; None for 4 d_model.
    """

    def __init__(
        self,
        tstep_dim: int,
        max_seq_len: int,
        d_model: int = 256,
        d_ff: int | None = None,
        n_layers: int = 1,
        dropout: float = 0.0,
        activation: str = "leaky_relu",
        norm: str = "layer",
    ):
        super().__init__(tstep_dim, max_seq_len)
        self.traj_emb = nn.Linear(tstep_dim, d_model)
        d_ff = 4 * d_model if d_ff is None else d_ff
        self.traj_blocks = nn.ModuleList(FeedForwardBlock(d_model, d_ff, dropout, activation) for _ in range(n_layers))
        self.traj_last = nn.Linear(d_model, d_model)
        self.dropout = Dropout(dropout)
        self.activation = _activation(activation)
        self.out_norm = Normalization(norm, d_model)
        self.d_model = d_model

    @property
    def emb_dim(self) -> int:
        return self.d_model

    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        x = self.dropout(self.activation(self.traj_emb(seq_BLD)))
        for block in self.traj_blocks:
            x = recomputed(block, x)
        return self.out_norm(self.dropout(self.traj_last(x)))

    def forward_packed(self, seq_1RD: Tensor, time_idx_1R: Tensor, packing: Packing) -> Tensor:
        return self.forward(seq_1RD, time_idx_1R)


@gin.configurable
class GRUTrajEncoder(TrajEncoder, HasKernel):
    """A stack of gated recurrent units (Cho et al. 2014), a linear layer and a norm."""

    def __init__(
        self,
        tstep_dim: int,
        max_seq_len: int,
        d_hidden: int = 256,
        n_layers: int = 2,
        d_output: int = 256,
        norm: str = "layer",
    ):
        super().__init__(tstep_dim, max_seq_len)
        self.rnn = nn.GRU(tstep_dim, d_hidden, num_layers=n_layers, batch_first=True)
        self.out = nn.Linear(d_hidden, d_output)
        self.out_norm = Normalization(norm, d_output)
        self._kernel = False

    @property
    def emb_dim(self) -> int:
        return self.out.out_features

    def use_kernel(self) -> None:
        """That of the recurrence; see `HasKernel`."""
        if self.rnn.hidden_size % recurrent.KERNEL_WIDTH == 0:
            kernels.compiled(recurrent.SOURCE)
            self._kernel = True

    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        return self._whole_sequences(seq_BLD, None)

    def forward_packed(self, seq_1RD: Tensor, time_idx_1R: Tensor, packing: Packing) -> Tensor:
        return self._whole_sequences(seq_1RD, packing)

    def _whole_sequences(self, seq: Tensor, packing: Packing | None) -> Tensor:
        return self.out_norm(self.out(recomputed(gru_sequence, self.rnn, seq, packing, self._kernel)))

    def initial_memory(self, num_envs: int) -> Tensor:
        """Hidden states, (layers, B, d_hidden)."""
        return self.out.weight.new_zeros(self.rnn.num_layers, num_envs, self.rnn.hidden_size)

    def step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        out_BD, memory = gru_step(self.rnn, seq_BD, memory)
        return self.out_norm(self.out(out_BD)), memory

    def reset_memory(self, memory: Tensor, mask_B: np.ndarray) -> Tensor:
        return forget_rows(memory, mask_B, 1)

    def portable_memory(self, num_envs: int) -> dict[str, Tensor]:
        return {"hidden": self.initial_memory(num_envs).transpose(0, 1)}

    def portable_step(
        self, seq_BD: Tensor, time_idx_B: Tensor, memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """hidden: (B, layers, d_hidden)."""
        x_BD, hidden = seq_BD, []
        for weights, h_BH in zip(self.rnn.all_weights, memory["hidden"].unbind(1), strict=True):
            x_BD = torch.gru_cell(x_BD, h_BH, *weights)
            hidden.append(x_BD)
        return self.out_norm(self.out(x_BD)), {"hidden": torch.stack(hidden, dim=1)}


@gin.configurable
class TformerTrajEncoder(TrajEncoder):
    """A causal Transformer (see `nets.transformer`); acting attends to the last `max_seq_len` timesteps.

    attention_type: `CausalAttention`, `SlidingWindowAttention` or `SlidingSinkAttention`.
    sigma_reparam: reparametrise the linear layers by their spectral norm (see `SigmaReparam`); else plain ones.
    pos_emb: "fixed" sinusoid of the timestep's index, "learnable" up to `max_time_idx` (later ones share the last), or
        "rope".
    """

    def __init__(
        self,
        tstep_dim: int,
        max_seq_len: int,
        d_model: int = 256,
        n_heads: int = 8,
        d_ff: int = 1024,
        n_layers: int = 3,
        dropout_ff: float = 0.05,
        dropout_emb: float = 0.05,
        dropout_qkv: float = 0.0,
        dropout_attn: float = 0.0,
        activation: str = "leaky_relu",
        norm: str = "layer",
        normformer_norms: bool = True,
        head_scaling: bool = True,
        sigma_reparam: bool = True,
        pos_emb: PositionEmbedding = "fixed",
        max_time_idx: int = 4096,
        attention_type: type[Attention] = CausalAttention,
    ):
        super().__init__(tstep_dim, max_seq_len)
        attention = attention_type()
        if attention.num_sinks >= max_seq_len:
            raise ValueError(
                f"{type(attention).__name__}.sink_size={attention.num_sinks} must be below max_seq_len={max_seq_len}, "
                "the number of timesteps that acting remembers"
            )
        self.tformer = Transformer(
            d_inp=tstep_dim,
            d_model=d_model,
            d_ff=d_ff,
            n_heads=n_heads,
            n_layers=n_layers,
            attention=attention,
            pos_emb=pos_emb,
            max_time_idx=max_time_idx,
            dropout_emb=dropout_emb,
            dropout_ff=dropout_ff,
            dropout_qkv=dropout_qkv,
            dropout_attn=dropout_attn,
            activation_name=activation,
            norm=norm,
            normformer_norms=normformer_norms,
            head_scaling=head_scaling,
            sigma_reparam=sigma_reparam,
        )

    @property
    def emb_dim(self) -> int:
        return self.tformer.d_model

    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        return self.tformer(seq_BLD, time_idx_BL)

    def forward_packed(self, seq_1RD: Tensor, time_idx_1R: Tensor, packing: Packing) -> Tensor:
        return self.tformer(seq_1RD, time_idx_1R, packing=packing)

    def initial_memory(self, num_envs: int) -> KeyValueCache:
        return self.tformer.initial_cache(num_envs, num_slots=self.max_seq_len)

    def step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """memory: a `KeyValueCache` or a `CompilableCache`, which is written in place."""
        return self.tformer(seq_BD.unsqueeze(1), time_idx_B.unsqueeze(1), memory).squeeze(1), memory

    def reset_memory(self, memory: KeyValueCache, mask_B: np.ndarray) -> KeyValueCache:
        memory.reset(mask_B)
        return memory

    def recordable_memory(self, num_envs: int) -> Any:
        cache = self.initial_memory(num_envs)
        if type(cache) is not KeyValueCache:  # of a subclass's own
            return cache
        count = torch.zeros(num_envs, dtype=torch.int64, device=cache.keys.device)
        return RecordableCache(cache.keys, cache.values, count, cache.num_sinks)

    def compilable_memory(self, num_envs: int) -> Any:
        recordable = self.recordable_memory(num_envs)
        return CompilableCache.like(recordable) if type(recordable) is RecordableCache else recordable

    def portable_memory(self, num_envs: int) -> dict[str, Tensor]:
        cache = self.initial_memory(num_envs)
        keys, values = (x.transpose(0, 1) for x in (cache.keys, cache.values))
        return {"keys": keys, "values": values, "count": torch.zeros(num_envs, dtype=torch.int64)}

    def portable_step(
        self, seq_BD: Tensor, time_idx_B: Tensor, memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """keys, values: (B, layers, H, S, K), a ring of the last S = max_seq_len timesteps. count: (B,) int64."""
        keys, values = (list(memory[name].unbind(1)) for name in ("keys", "values"))
        cache = TracedCache(keys, values, memory["count"], self.tformer.attention.num_sinks)
        state_BD = self.tformer(seq_BD.unsqueeze(1), time_idx_B.unsqueeze(1), cache).squeeze(1)
        return state_BD, {
            "keys": torch.stack(cache.keys, dim=1),
            "values": torch.stack(cache.values, dim=1),
            "count": cache.count,
        }


@gin.configurable
class MambaTrajEncoder(TrajEncoder):
    """A stack of Mamba blocks (see `nets.mamba`); memory is of one size however long the rollout."""

    def __init__(
        self,
        tstep_dim: int,
        max_seq_len: int,
        d_model: int = 256,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        n_layers: int = 3,
        norm: str = "layer",
    ):
        super().__init__(tstep_dim, max_seq_len)
        if n_layers < 1:
            raise ValueError(f"MambaTrajEncoder.n_layers={n_layers}: it must be 1 or more")
        self.inp = nn.Linear(tstep_dim, d_model)
        self.mambas = nn.ModuleList(MambaBlock(d_model, d_state, d_conv, expand, norm) for _ in range(n_layers))
        self.out_norm = Normalization(norm, d_model)
        self.d_conv = d_conv
        self.d_state = d_state
        self.d_inner = int(expand * d_model)

    @property
    def emb_dim(self) -> int:
        return self.inp.out_features

    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        return self._forward(seq_BLD, None)

    def forward_packed(self, seq_1RD: Tensor, time_idx_1R: Tensor, packing: Packing) -> Tensor:
        return self._forward(seq_1RD, packing)

    def _forward(self, x: Tensor, packing: Packing | None) -> Tensor:
        x = self.inp(x)
        for block in self.mambas:
            x = recomputed(block, x, packing)
        return self.out_norm(x)

    def initial_memory(self, num_envs: int) -> MambaMemory:
        """Zeros in float32, whatever precision the layers compute in."""
        windows, states = (
            tuple(torch.zeros(num_envs, n, self.d_inner, device=self.inp.weight.device) for _ in self.mambas)
            for n in (self.d_conv, self.d_state)
        )
        return MambaMemory(windows, states)

    def step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: MambaMemory) -> tuple[Tensor, MambaMemory]:
        x, windows, states = self.inp(seq_BD), [], []
        for block, window, state in zip(self.mambas, memory.window_BWD, memory.state_BND, strict=True):
            assert isinstance(block, MambaBlock)
            x, window, state = block.step(x, window, state)
            windows.append(window)
            states.append(state)
        return self.out_norm(x), MambaMemory(tuple(windows), tuple(states))

    def reset_memory(self, memory: MambaMemory, mask_B: np.ndarray) -> MambaMemory:
        return memory.reset(mask_B)

    def portable_memory(self, num_envs: int) -> dict[str, Tensor]:
        return self._as_tensors(self.initial_memory(num_envs))

    def portable_step(
        self, seq_BD: Tensor, time_idx_B: Tensor, memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """window: (B, layers, d_conv, d_inner). state: (B, layers, d_state, d_inner)."""
        before = MambaMemory(memory["window"].unbind(1), memory["state"].unbind(1))
        state_BD, after = self.step(seq_BD, time_idx_B, before)
        return state_BD, self._as_tensors(after)

    @staticmethod
    def _as_tensors(memory: MambaMemory) -> dict[str, Tensor]:
        return {"window": torch.stack(memory.window_BWD, dim=1), "state": torch.stack(memory.state_BND, dim=1)}


_activation = activation  # `activation` is also the name of a setting of the encoders
