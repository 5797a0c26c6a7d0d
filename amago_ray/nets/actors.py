"""Actor heads on top of the state embedding s: one action distribution per timestep and discount factor.

Shape letters: B sequences, L timesteps, D state width, G discount factors, A action vector, P parameters of one action
distribution.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import gin
from torch import Tensor, nn

from amago_ray.nets.distributions import ActionDistribution
from amago_ray.nets.feedforward import MLP, Normalization, activation
from amago_ray.nets.policy_outputs import PolicyOutput, choose_policy_output
from amago_ray.specs import ActionSpec

NO_OBS: Mapping[str, Tensor] = MappingProxyType({})


class ActorHead(nn.Module, ABC):
    """Base class of actors: state embedding to one action distribution per discount factor. Define `params`.

    Beside states, actors see `obs`: the observation arrays that `Agent.pass_obs_keys_to_actor` names, (..., *shape) in
    their own dtype, with the leading dimensions of the states; no array unless some are named.
    With `legal`, bool (..., A), every actor gives illegal actions a probability of exactly 0 (`PolicyOutput.masked`).

    policy_output_type: family of the distribution; by default the one that fits the action space.
    continuous_dist_type, discrete_dist_type: the same for continuous (and multi-binary) and for discrete spaces alone.
    """

    def __init__(
        self,
        state_dim: int,
        action_spec: ActionSpec,
        num_gammas: int,
        policy_output_type: type[PolicyOutput] | None = None,
        continuous_dist_type: type[PolicyOutput] | None = None,
        discrete_dist_type: type[PolicyOutput] | None = None,
    ):
        super().__init__()
        self.state_dim, self.num_gammas = state_dim, num_gammas
        self.policy_output = choose_policy_output(
            action_spec, policy_output_type, continuous_dist_type, discrete_dist_type
        )

    @abstractmethod
    def params(self, state: Tensor, main_gamma_only: bool, obs: Mapping[str, Tensor]) -> Tensor:
        """Distribution parameters (..., G * P) of states (..., D), gamma by gamma; (..., P) for the main one alone."""

    def forward(
        self, state_BLD: Tensor, obs: Mapping[str, Tensor] = NO_OBS, legal_BLA: Tensor | None = None
    ) -> ActionDistribution:
        """Distributions of batch shape (B, L, G); any leading dimensions in place of (B, L)."""
        params = self.params(state_BLD, main_gamma_only=False, obs=obs)
        params = params.unflatten(-1, (self.num_gammas, self.policy_output.num_params))
        return self.distribution(params, None if legal_BLA is None else legal_BLA.unsqueeze(-2))

    def main_gamma(
        self, state_BD: Tensor, obs: Mapping[str, Tensor] = NO_OBS, legal_BA: Tensor | None = None
    ) -> ActionDistribution:
        """The distribution of the last gamma alone, batch shape (B,): all that acting needs."""
        return self.distribution(self.params(state_BD, main_gamma_only=True, obs=obs), legal_BA)

    def distribution(self, params: Tensor, legal: Tensor | None) -> ActionDistribution:
        """Of parameters (..., P). legal: bool (..., A)."""
        params = params.float()
        return self.policy_output(params) if legal is None else self.policy_output.masked(params, legal)


def last_outputs(layer: nn.Linear, x: Tensor, num: int) -> Tensor:
    """The last `num` outputs of a linear layer, without computing the others."""
    return nn.functional.linear(x, layer.weight[-num:], None if layer.bias is None else layer.bias[-num:])


@gin.configurable
class Actor(ActorHead):
    """One MLP for all discount factors."""

    def __init__(
        self,
        state_dim: int,
        action_spec: ActionSpec,
        num_gammas: int,
        n_layers: int = 2,
        d_hidden: int = 256,
        activation: str = "leaky_relu",
        dropout_p: float = 0.0,
        policy_output_type: type[PolicyOutput] | None = None,
        continuous_dist_type: type[PolicyOutput] | None = None,
        discrete_dist_type: type[PolicyOutput] | None = None,
    ):
        super().__init__(
            state_dim, action_spec, num_gammas, policy_output_type, continuous_dist_type, discrete_dist_type
        )
        num_outputs = num_gammas * self.policy_output.num_params
        self.base = MLP(state_dim, d_hidden, n_layers, num_outputs, activation=activation, dropout_p=dropout_p)

    def params(self, state: Tensor, main_gamma_only: bool, obs: Mapping[str, Tensor]) -> Tensor:
        if main_gamma_only:
            return last_outputs(self.base.out_layer, self.base.hidden(state), self.policy_output.num_params)
        return self.base(state)


class ResidualBlock(nn.Module):
    """x + norm2(ff2(activation(norm1(ff1(x))))), (..., d) -> (..., d), with a hidden layer of `d_ff`."""

    def __init__(self, d: int, d_ff: int, activation_name: str, normalization: str):
        super().__init__()
        self.ff1 = nn.Linear(d, d_ff)
        self.norm1 = Normalization(normalization, d_ff)
        self.activation = activation(activation_name)
        self.ff2 = nn.Linear(d_ff, d)
        self.norm2 = Normalization(normalization, d)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.ff2(self.activation(self.norm1(self.ff1(x)))))


@gin.configurable
class ResidualActor(ActorHead):
    """One residual network for all discount factors (AMAGO's form, to the number).

    A two-layer MLP from the state to `feature_dim`, `residual_blocks` blocks with a hidden layer of `residual_ff_dim`
    and a norm after each of their linear layers, then a linear layer. normalization: see `Normalization`.
    activation: of the blocks and after the MLP's first layer. dropout_p: after the latter alone.
    Raises ValueError for residual_blocks below 1, an unknown activation or normalization.
    """

    def __init__(
        self,
        state_dim: int,
        action_spec: ActionSpec,
        num_gammas: int,
        feature_dim: int = 256,
        residual_ff_dim: int = 512,
        residual_blocks: int = 2,
        activation: str = "leaky_relu",
        normalization: str = "layer",
        dropout_p: float = 0.0,
        policy_output_type: type[PolicyOutput] | None = None,
        continuous_dist_type: type[PolicyOutput] | None = None,
        discrete_dist_type: type[PolicyOutput] | None = None,
    ):
        super().__init__(
            state_dim, action_spec, num_gammas, policy_output_type, continuous_dist_type, discrete_dist_type
        )
        if residual_blocks < 1:
            raise ValueError(f"ResidualActor.residual_blocks={residual_blocks}: it must be 1 or more")
        self.inp = MLP(state_dim, feature_dim, 1, feature_dim, activation=activation, dropout_p=dropout_p)
        self.blocks = nn.Sequential(
            *(ResidualBlock(feature_dim, residual_ff_dim, activation, normalization) for _ in range(residual_blocks))
        )
        self.out_layer = nn.Linear(feature_dim, num_gammas * self.policy_output.num_params)

    def params(self, state: Tensor, main_gamma_only: bool, obs: Mapping[str, Tensor]) -> Tensor:
        x = self.blocks(self.inp(state))
        return last_outputs(self.out_layer, x, self.policy_output.num_params) if main_gamma_only else self.out_layer(x)
