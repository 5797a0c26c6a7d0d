"""Critic ensembles on top of the state embedding s: values per action, critic and discount factor.

Shape letters: K sampled actions, B sequences, L timesteps, N states of a batch, D state width, C critics, S of them
that are asked, G discount factors, A action vector, H hidden width, P parameters of one action distribution, O outputs
of one critic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import gin
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amago_ray.nets.aligned import lacking
from amago_ray.nets.dropout import Dropout
from amago_ray.nets.feedforward import activation as activation_function
from amago_ray.nets.packed_sequences import on_device
from amago_ray.nets.recomputation import recomputed
from amago_ray.nets.scaling import TwoHot, symlog
from amago_ray.nets.sizes import few_digits
from amago_ray.specs import ActionSpec
from amago_ray.warned import warn

# Numbers in a hidden layer of all critics, of which one part of the states is computed at a time without gradient.
CPU_PART, DEVICE_PART = 2**20, 2**27
INIT_BINS, INIT_EDGE = 4, 12  # of a fresh classifier: width of its prediction, and room for it, in bins
MAX_CRITIC_ACTION = 0.999  # bounds the actions that enter a critic, as in AMAGO; beyond it they have no gradient


class EnsembleLinear(nn.Module):
    """C independent linear layers at once: (C, N, d_in) -> (C, N, d_out)."""

    def __init__(self, num: int, d_in: int, d_out: int):
        super().__init__()
        bound = 1.0 / math.sqrt(d_in)
        self.weight = nn.Parameter(torch.empty(num, d_in, d_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num, 1, d_out).uniform_(-bound, bound))

    def forward(self, x_CNI: Tensor, frozen: bool = False) -> Tensor:
        """`frozen`: the parameters take no gradient, the input does."""
        weight, bias = (self.weight.detach(), self.bias.detach()) if frozen else (self.weight, self.bias)
        weight = weight.to(x_CNI.dtype)
        if weight.shape[2] == 1 and not x_CNI.is_cuda:
            # On CPUs a batched product with single columns takes three times as long, forward and backward.
            columns = [x_NI @ weight_I1[:, 0] for x_NI, weight_I1 in zip(x_CNI.unbind(), weight.unbind(), strict=True)]
            out_CN1 = torch.stack(columns).unsqueeze(-1)
            return out_CN1 + bias.to(out_CN1.dtype)
        more = lacking(weight.shape[2], x_CNI)
        if more:
            bias, filled = F.pad(bias.to(x_CNI.dtype), (0, more)), F.pad(weight, (0, more))
            return torch.baddbmm(bias, x_CNI, filled)[..., : weight.shape[2]]
        return torch.baddbmm(bias.to(x_CNI.dtype), x_CNI, weight)


@dataclass(frozen=True)
class AskedRows:
    """Which rows each critic of an ensemble computes, when only some of them are asked about each row.

    A row x = n * G + g is a state and a discount factor. row_CR: the R rows of each critic: those that it is asked
    about and, so that all compute equally many, some others. state_CR: n * C + c of these. answer_NSG: c * R + r of
    the answers.
    """

    row_CR: np.ndarray
    state_CR: np.ndarray
    answer_NSG: np.ndarray

    @staticmethod
    def of(members_NSG: np.ndarray, num_critics: int, few_sizes: bool = False) -> AskedRows:
        """members_NSG: which critics are asked. few_sizes: let few numbers R occur (see `sizes.few_digits`)."""
        N, _, G = members_NSG.shape
        row_N1G = np.arange(N * G).reshape(N, 1, G)
        asked_CX = np.zeros((num_critics, N * G), bool)
        asked_CX[members_NSG, row_N1G] = True
        R = int(asked_CX.sum(axis=1).max())
        R = few_digits(R, N * G) if few_sizes else R
        row_CR = np.argsort(~asked_CX, axis=1, kind="stable")[:, :R]
        place_CX = np.zeros((num_critics, N * G), np.int64)
        np.put_along_axis(place_CX, row_CR, np.arange(R)[None], axis=1)
        return AskedRows(
            row_CR=np.ascontiguousarray(row_CR),
            state_CR=row_CR // G * num_critics + np.arange(num_critics)[:, None],
            answer_NSG=members_NSG * R + place_CX[members_NSG, row_N1G],
        )


class CriticEnsemble(nn.Module):
    """C independent MLP critics that judge any number of actions per state, computing the state's share once.

        prepared = critics.prepare(state)               # once per state
        q        = critics.values(prepared, action)     # for as many actions as wanted

    "discrete" actions: a critic maps s to G x A values and `values` is a dot product with the action vector, so that
    probabilities as "action" give the exact expectation. All others: a critic maps [s, gamma feature, a] to O outputs;
    its first layer is a sum of three products, of which `prepare` computes the part that depends on s.

    n_layers, d_hidden, activation, dropout_p: hidden layers of each MLP. num_outputs: O.
    """

    gamma_feature: Tensor
    lists_discrete_actions = True  # False: they enter as vectors, as all others do

    def __init__(
        self,
        state_dim: int,
        action_spec: ActionSpec,
        gammas: Tensor,
        num_critics: int,
        n_layers: int = 2,
        d_hidden: int = 256,
        activation: str = "leaky_relu",
        dropout_p: float = 0.0,
        num_outputs: int = 1,
    ):
        super().__init__()
        if n_layers < 1:
            raise ValueError(f"{type(self).__name__}.n_layers={n_layers}: it must be 1 or more")
        self.action_input = action_input = not (self.lists_discrete_actions and action_spec.kind == "discrete")
        self.state_dim, self.num_gammas = state_dim, len(gammas)
        self.num_critics, self.num_outputs = num_critics, num_outputs
        d_inp = state_dim + 1 + action_spec.vector_size if action_input else state_dim
        d_out = num_outputs if action_input else len(gammas) * action_spec.vector_size
        self.inp_layer = EnsembleLinear(num_critics, d_inp, d_hidden)
        self.core_layers = nn.ModuleList(EnsembleLinear(num_critics, d_hidden, d_hidden) for _ in range(n_layers - 1))
        self.output_layer = EnsembleLinear(num_critics, d_hidden, d_out)
        self.activation = activation_function(activation, in_place=True)
        self.dropout = Dropout(dropout_p)
        gamma_feature = symlog(1.0 / (1.0 - gammas).clamp(1e-6, 1.0))
        self.register_buffer("gamma_feature", gamma_feature.float(), persistent=False)

    def prepare(self, state_BLD: Tensor) -> Tensor:
        """Discrete: action values (B, L, C, G, A). Otherwise the first layer's state part (B, L, C, H)."""
        B, L, D = state_BLD.shape
        layer, state_ND = self.inp_layer, state_BLD.reshape(B * L, D)
        if self.action_input:
            # One (N, D) x (D, C H) product: the state is the same for every critic.
            weight_DX = layer.weight[:, :D].transpose(0, 1).reshape(D, -1).to(state_ND.dtype)
            first = torch.addmm(layer.bias.flatten().to(state_ND.dtype), state_ND, weight_DX)
            return first.view(B, L, len(layer.weight), -1)
        # Critic by critic from the first layer on: to change the layout of a hidden layer costs more than it saves.
        hidden_CNH = self._activate(layer(state_ND.expand(len(layer.weight), -1, -1)))
        values_CNO = self._later_layers(hidden_CNH, frozen=False).float()
        return values_CNO.transpose(0, 1).reshape(B, L, len(layer.weight), self.num_gammas, -1)

    def values(
        self,
        prepared: Tensor,
        action_KBLGA: Tensor,
        frozen: bool = False,
        read: Callable[[Tensor], Tensor] = lambda outputs: outputs,
    ) -> Tensor:
        """Outputs for K actions per state and gamma, (K, B, L, C, G, O); O is 1 for discrete actions.

        action_KBLGA: action vectors; K and G may be 1 to stand for all.
        frozen: no gradient to the critics' parameters or the state, only to the action.
        read: what is wanted of the outputs, (..., O) -> (..., O'). Where no gradient is, outputs and hidden layers are
            only ever held for a part of the states.
        """
        if frozen:
            prepared = prepared.detach()
        if not self.action_input:
            return read((prepared * action_KBLGA.unsqueeze(-3)).sum(dim=-1, keepdim=True))
        B, L = prepared.shape[:2]
        prepared_NCH, action_KNGA = prepared.flatten(0, 1), action_KBLGA.flatten(1, 2)
        if torch.is_grad_enabled() and (not frozen or action_KBLGA.requires_grad):
            q_KNCGO = recomputed(self._outputs, prepared_NCH, action_KNGA, frozen, read)
        else:
            q_KNCGO = self._outputs_by_parts(prepared_NCH, action_KNGA, read)
        return q_KNCGO.unflatten(1, (B, L))

    @torch.no_grad()
    def values_of(
        self,
        members_BLSG: np.ndarray | Tensor,
        prepared: Tensor,
        action_KBLGA: Tensor,
        read: Callable[[Tensor], Tensor] = lambda outputs: outputs,
    ) -> Tensor:
        """As `values`, of S of the critics for each state and gamma, (K, B, L, S, G, O'), without gradient.

        On a CPU critics with action input compute nothing for states and gammas that they are not asked about, and
        `read` sees their outputs as (C, K, R, O). A GPU is done with all before it would have the rows' numbers.
        members_BLSG: int64, which ones, perhaps some repeatedly: on the host, or on the device, and then all are asked.
        """
        another_network = type(self).values is not CriticEnsemble.values  # then all are asked, by that method
        if isinstance(members_BLSG, Tensor) or not self.action_input or prepared.is_cuda or another_network:
            q_KBLCGO = self.values(prepared, action_KBLGA, frozen=True, read=read)
            there = members_BLSG if isinstance(members_BLSG, Tensor) else on_device(members_BLSG, q_KBLCGO.device)
            return q_KBLCGO.take_along_dim(there[None, ..., None], dim=3)
        B, L = prepared.shape[:2]
        prepared_NCH, action_KNGA = prepared.flatten(0, 1), action_KBLGA.flatten(1, 2)
        members_NSG = members_BLSG.reshape(B * L, *members_BLSG.shape[2:])
        size = self._part_size(prepared_NCH, action_KNGA)
        parts = zip(
            (members_NSG[i : i + size] for i in range(0, B * L, size)),
            prepared_NCH.split(size),
            action_KNGA.split(size, dim=1),
            strict=True,
        )
        return torch.cat([self._outputs_of(m, p, a, read) for m, p, a in parts], dim=1).unflatten(1, (B, L))

    def _outputs_of(
        self, members_NSG: np.ndarray, prepared_NCH: Tensor, action_KNGA: Tensor, read: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """What `read` makes of the outputs of some critics, (K, N, S, G, O')."""
        (_, C, H), K = prepared_NCH.shape, len(action_KNGA)
        asked = AskedRows.of(members_NSG, C, few_sizes=prepared_NCH.dtype.itemsize == 2)
        R = asked.row_CR.shape[1]
        inputs_KXI = self._action_inputs(action_KNGA).flatten(1, 2)
        inputs_CKRI = inputs_KXI[:, torch.from_numpy(asked.row_CR)].transpose(0, 1)
        state_CRH = prepared_NCH.flatten(0, 1)[torch.from_numpy(asked.state_CR)]
        weight_CIH = self.inp_layer.weight[:, self.state_dim :].to(inputs_KXI.dtype)
        first = torch.bmm(inputs_CKRI.flatten(1, 2), weight_CIH).view(C, K, R, H).add_(state_CRH.unsqueeze(1))
        hidden_CNH = self._activate(first).flatten(1, 2)
        out_CKRO = self._later_layers(hidden_CNH, frozen=True).float().view(C, K, R, self.num_outputs)
        read_KXO = read(out_CKRO).transpose(0, 1).flatten(1, 2)
        return read_KXO[:, torch.from_numpy(asked.answer_NSG)]

    def _part_size(self, prepared_NCH: Tensor, action_KNGA: Tensor) -> int:
        """How many states are computed at a time without gradient."""
        numbers = prepared_NCH[:1].numel() * len(action_KNGA) * self.num_gammas
        return max((DEVICE_PART if prepared_NCH.is_cuda else CPU_PART) // max(numbers, 1), 1)

    @torch.no_grad()
    def _outputs_by_parts(self, prepared_NCH: Tensor, action_KNGA: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """What `read` makes of `_outputs`; hidden layers hold PART numbers at a time, which stay in a CPU's cache."""
        size = self._part_size(prepared_NCH, action_KNGA)
        parts = zip(prepared_NCH.split(size), action_KNGA.split(size, dim=1), strict=True)
        return torch.cat([self._outputs(p, a, True, read) for p, a in parts], dim=1)

    def _action_inputs(self, action_KNGA: Tensor) -> Tensor:
        """What enters the first layer beside states: gamma features and bounded actions (K, N, G, 1 + A)."""
        K, N, G = len(action_KNGA), action_KNGA.shape[1], self.num_gammas
        action_KNGA = action_KNGA.clamp(-MAX_CRITIC_ACTION, MAX_CRITIC_ACTION).expand(-1, -1, G, -1)
        gamma_KNG1 = self.gamma_feature.to(action_KNGA.dtype).view(G, 1).expand(K, N, G, 1)
        return torch.cat((gamma_KNG1, action_KNGA), dim=-1)

    def _outputs(
        self, prepared_NCH: Tensor, action_KNGA: Tensor, frozen: bool, read: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """What `read` makes of the outputs for N states, (K, N, C, G, O')."""
        K, N, G = len(action_KNGA), len(prepared_NCH), self.num_gammas
        weight_CIH = self.inp_layer.weight[:, self.state_dim :]
        weight_CIH = weight_CIH.detach() if frozen else weight_CIH
        inputs_RI = self._action_inputs(action_KNGA).flatten(0, 2)
        C, _, H = weight_CIH.shape
        more = lacking(weight_CIH.shape[1], inputs_RI)
        if more:
            inputs_RI, weight_CIH = F.pad(inputs_RI, (0, more)), F.pad(weight_CIH, (0, 0, 0, more))
        first_CRH = torch.bmm(inputs_RI.expand(C, -1, -1), weight_CIH.to(inputs_RI.dtype))
        first = first_CRH.view(C, K, N, G, H)
        state_part = prepared_NCH.transpose(0, 1)[:, None, :, None]
        # In place it needs no second buffer of the size of everything, but where gradient flows this is a view.
        first = first + state_part if torch.is_grad_enabled() else first.add_(state_part)
        out_CRO = self._later_layers(self._activate(first).view(C, K * N * G, H), frozen).float()
        return read(out_CRO.view(C, K, N, G, self.num_outputs)).permute(1, 2, 0, 3, 4)

    def _activate(self, x: Tensor) -> Tensor:
        """What is handed in is overwritten; where gradient flows it must be no view (see `activation`)."""
        return self.dropout(self.activation(x))

    def _later_layers(self, hidden_CNH: Tensor, frozen: bool) -> Tensor:
        """Outputs (C, N, O) from the activations of the first hidden layer."""
        for layer in self.core_layers:
            hidden_CNH = self._activate(layer(hidden_CNH, frozen))
        return self.output_layer(hidden_CNH, frozen)


@gin.configurable(denylist=["num_outputs"])
class NCritics(CriticEnsemble):
    """Critics that output values directly: one head per discrete action, or action-input with one output.

    The settings are those of `CriticEnsemble`.
    """


@gin.configurable
class NCriticsTwoHot(CriticEnsemble):
    """Critics that classify returns into bins (see `scaling.TwoHot`); every action space enters as an action vector.

    min_return, max_return: range of the bins in units of scaled reward; unset it spans -1e5 to 1e5, with a warning.
    label_type: "twohot" or "hlgauss"; sigma: the latter's standard deviation in bin widths.
    init_value: return that fresh critics predict, more or less; None leaves it to chance. Raises ValueError for one
        outside of the bins.
    """

    lists_discrete_actions = False

    def __init__(
        self,
        state_dim: int,
        action_spec: ActionSpec,
        gammas: Tensor,
        num_critics: int,
        n_layers: int = 2,
        d_hidden: int = 256,
        activation: str = "leaky_relu",
        dropout_p: float = 0.0,
        output_bins: int = 128,
        min_return: float | None = None,
        max_return: float | None = None,
        use_symlog: bool = True,
        label_type: Literal["twohot", "hlgauss"] = "twohot",
        sigma: float = 0.75,
        init_value: float | None = None,
    ):
        network = (n_layers, d_hidden, activation, dropout_p)
        super().__init__(state_dim, action_spec, gammas, num_critics, *network, num_outputs=output_bins)
        self.bins = TwoHot(output_bins, min_return, max_return, use_symlog, label_type, sigma)
        if init_value is not None:
            self._start_at(init_value)

    @torch.no_grad()
    def _start_at(self, value: float) -> None:
        """Biases of the last layer that are the logarithm of a Gaussian around `value`, `INIT_BINS` bins wide.

        So wide that the first gradients reach many bins; it should not be cut off at an end of the range.
        """
        centre, distance = self.bins.place(value), INIT_EDGE * self.bins.width
        if not self.bins.low <= centre <= self.bins.high:
            raise ValueError(f"NCriticsTwoHot.init_value={value}: it lies outside of min_return to max_return")
        if min(centre - self.bins.low, self.bins.high - centre) < distance:
            warn(
                f"NCriticsTwoHot.init_value={value} is within {INIT_EDGE} bins of min_return or max_return: fresh "
                "critics predict something between it and the middle; widen the range or use more output_bins",
                stacklevel=2,
            )
        z = (self.bins.bins - centre) / (INIT_BINS * self.bins.width)
        self.output_layer.bias.copy_((-0.5 * z.square()).expand_as(self.output_layer.bias))
