"""Outputs of an actor: how many parameters a distribution needs, and how it is made of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import gin
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amago_ray.nets.distributions import (
    ActionDistribution,
    BernoulliDistribution,
    BetaDistribution,
    GMMDistribution,
    MultiOneHotDistribution,
    OneHotDistribution,
    TanhGaussianDistribution,
)
from amago_ray.specs import ActionKind, ActionSpec


class PolicyOutput(nn.Module, ABC):
    """A family of action distributions, for one action space.

    kinds: the action spaces that it fits; any other raises ValueError.
    is_discrete: an action is one category, so that a critic can list the value of each.
    has_rsample: whether gradients can flow through sampled actions, which an online (DPG) actor loss needs.
    """

    kinds: tuple[ActionKind, ...]
    is_discrete: bool = False
    has_rsample: bool = True

    def __init__(self, action_spec: ActionSpec):
        super().__init__()
        if action_spec.kind not in self.kinds:
            fits = " and ".join(self.kinds)
            raise ValueError(f"{type(self).__name__} fits {fits} actions, but the environment's are {action_spec.kind}")
        self.action_spec = action_spec

    @property
    @abstractmethod
    def num_params(self) -> int:
        """P, the actor's outputs per distribution."""

    @abstractmethod
    def forward(self, params: Tensor) -> ActionDistribution:
        """The distributions that float32 outputs (..., P) stand for."""

    def action_from_buffer(self, action: Tensor) -> Tensor:
        """Replayed action vectors (..., A) as critics should see them."""
        return action


def _clipped(probs: Tensor, low: float, high: float) -> Tensor:
    """Clipped to [low, high] and summing to one again; the normaliser takes no gradient."""
    probs = probs.clamp(low, high)
    return probs / probs.detach().sum(dim=-1, keepdim=True)


class _Categorical(PolicyOutput):
    """What `Discrete` and `Multidiscrete` share: one output per category, probabilities kept away from 0 and 1."""

    def __init__(self, action_spec: ActionSpec, clip_prob_low: float, clip_prob_high: float):
        super().__init__(action_spec)
        if not 0.0 < clip_prob_low < clip_prob_high <= 1.0:
            raise ValueError(
                f"{type(self).__name__} needs 0 < clip_prob_low < clip_prob_high <= 1, "
                f"not clip_prob_low={clip_prob_low}, clip_prob_high={clip_prob_high}"
            )
        self.clip_prob_low = clip_prob_low
        self.clip_prob_high = clip_prob_high

    @property
    def num_params(self) -> int:
        return self.action_spec.vector_size

    def _clip(self, probs: Tensor) -> Tensor:
        return _clipped(probs, self.clip_prob_low, self.clip_prob_high)


@gin.configurable
class Discrete(_Categorical):
    """One categorical over logits (..., A), clipped to [clip_prob_low, clip_prob_high] and renormalised."""

    kinds = ("discrete",)
    is_discrete = True

    def __init__(self, action_spec: ActionSpec, clip_prob_low: float = 0.001, clip_prob_high: float = 0.99):
        super().__init__(action_spec, clip_prob_low, clip_prob_high)

    def forward(self, params: Tensor) -> OneHotDistribution:
        return OneHotDistribution(self._clip(params.softmax(dim=-1)))

    def action_from_buffer(self, action: Tensor) -> Tensor:
        """The one-hot, clipped and renormalised as the policy's own probabilities are."""
        return self._clip(action)


@gin.configurable
class Multidiscrete(_Categorical):
    """Independent categoricals, each as in `Discrete`; their logits lie end to end."""

    kinds = ("multidiscrete",)

    def __init__(self, action_spec: ActionSpec, clip_prob_low: float = 0.001, clip_prob_high: float = 0.99):
        super().__init__(action_spec, clip_prob_low, clip_prob_high)

    def forward(self, params: Tensor) -> MultiOneHotDistribution:
        logits = params.split(self.action_spec.nvec, dim=-1)
        return MultiOneHotDistribution([OneHotDistribution(self._clip(part.softmax(dim=-1))) for part in logits])

    def action_from_buffer(self, action: Tensor) -> Tensor:
        """Every one-hot, clipped and renormalised as the policy's own probabilities are."""
        return torch.cat([self._clip(part) for part in action.split(self.action_spec.nvec, dim=-1)], dim=-1)


@gin.configurable
class Multibinary(PolicyOutput):
    """Independent coins; one logit each."""

    kinds = ("multibinary",)

    @property
    def num_params(self) -> int:
        return self.action_spec.vector_size

    def forward(self, params: Tensor) -> BernoulliDistribution:
        return BernoulliDistribution(params)


@gin.configurable
class TanhGaussian(PolicyOutput):
    """tanh of a Gaussian: all locs, then all log-stds, the latter put between the logs of `std_low` and `std_high`
    by a tanh.

    clip_actions_on_log_prob: see `TanhGaussianDistribution`.
    """

    kinds = ("continuous",)

    def __init__(
        self,
        action_spec: ActionSpec,
        std_low: float = math.exp(-5.0),
        std_high: float = math.exp(2.0),
        clip_actions_on_log_prob: tuple[float, float] = (-0.99, 0.99),
    ):
        super().__init__(action_spec)
        if not 0.0 < std_low < std_high:
            raise ValueError(f"TanhGaussian needs 0 < std_low < std_high, not std_low={std_low}, std_high={std_high}")
        low, high = clip_actions_on_log_prob
        if not -1.0 < low < high < 1.0:
            raise ValueError(f"TanhGaussian clip_actions_on_log_prob={(low, high)} must lie inside (-1, 1)")
        self.log_std_mid = 0.5 * (math.log(std_high) + math.log(std_low))
        self.log_std_half = 0.5 * (math.log(std_high) - math.log(std_low))
        self.clip_actions = (low, high)

    @property
    def num_params(self) -> int:
        return 2 * self.action_spec.vector_size

    def forward(self, params: Tensor) -> TanhGaussianDistribution:
        loc, raw = params.chunk(2, dim=-1)
        log_std = self.log_std_mid + self.log_std_half * torch.tanh(raw)
        return TanhGaussianDistribution(loc, log_std, self.clip_actions)


@gin.configurable
class GMM(PolicyOutput):
    """tanh of a mixture of `gmm_modes` Gaussians: the locs mode by mode, then the stds (softplus), then the logits."""

    kinds = ("continuous",)
    has_rsample = False
    min_std = 1e-4

    def __init__(self, action_spec: ActionSpec, gmm_modes: int = 5):
        super().__init__(action_spec)
        if gmm_modes < 1:
            raise ValueError(f"GMM gmm_modes={gmm_modes} must be at least 1")
        self.gmm_modes = gmm_modes

    @property
    def num_params(self) -> int:
        return self.gmm_modes * (2 * self.action_spec.vector_size + 1)

    def forward(self, params: Tensor) -> GMMDistribution:
        size = self.gmm_modes * self.action_spec.vector_size
        loc, raw, logits = params.split((size, size, self.gmm_modes), dim=-1)
        shape = (self.gmm_modes, self.action_spec.vector_size)
        std = F.softplus(raw.unflatten(-1, shape)) + self.min_std
        return GMMDistribution(loc.unflatten(-1, shape), std, logits)


@gin.configurable
class Beta(PolicyOutput):
    """Beta distributions on [-1, 1] (Chou et al., ICML 2017): all alphas, then all betas, each softplus + 1.0001.

    clip_actions_on_log_prob: see `BetaDistribution`.
    """

    kinds = ("continuous",)
    min_concentration = 1.0001

    def __init__(self, action_spec: ActionSpec, clip_actions_on_log_prob: tuple[float, float] = (-0.99, 0.99)):
        super().__init__(action_spec)
        low, high = clip_actions_on_log_prob
        if not -1.0 < low < high < 1.0:
            raise ValueError(f"Beta clip_actions_on_log_prob={(low, high)} must lie inside (-1, 1)")
        self.clip_actions = (low, high)

    @property
    def num_params(self) -> int:
        return 2 * self.action_spec.vector_size

    def forward(self, params: Tensor) -> BetaDistribution:
        alpha, beta = (F.softplus(params) + self.min_concentration).chunk(2, dim=-1)
        return BetaDistribution(alpha, beta, self.clip_actions)


def default_policy_output(action_spec: ActionSpec) -> type[PolicyOutput]:
    """The family that an actor uses in an action space unless told otherwise."""
    families: dict[ActionKind, type[PolicyOutput]] = {
        "discrete": Discrete,
        "continuous": TanhGaussian,
        "multibinary": Multibinary,
        "multidiscrete": Multidiscrete,
    }
    return families[action_spec.kind]
