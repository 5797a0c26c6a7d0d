"""Outputs of an actor: how many parameters a distribution needs, and how it is made of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gin
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amago_ray.config import nearest
from amago_ray.nets.distributions import (
    RELAXATION_TEMPERATURE,
    ActionDistribution,
    BernoulliDistribution,
    BetaDistribution,
    GMMDistribution,
    MultiOneHotDistribution,
    OneHotDistribution,
    TanhGaussianDistribution,
)
from amago_ray.nets.softmax import softmax
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

    def masked(self, params: Tensor, legal: Tensor) -> ActionDistribution:
        """As `forward`, with probability exactly 0 for whatever is not `legal`, bool (..., A).

        Where nothing is legal (the last state of a rollout, say) everything is, since something has to be done.
        Raises ValueError in families that know no illegal actions.
        """
        raise ValueError(f"{type(self).__name__} cannot leave out illegal actions: set action_mask_key to None")

    def action_from_buffer(self, action: Tensor, legal: Tensor | None = None) -> Tensor:
        """Replayed action vectors (..., A) as critics should see them. legal: see `masked`; None: everything."""
        return action


@gin.configurable
@dataclass(frozen=True)
class DiscreteLikeContinuous:
    """How categories are drawn for critics that take actions as vectors: as one-hots with the gradient of a softmax.

    gumbel_softmax_temperature: of that softmax (straight-through Gumbel-softmax, arXiv 1611.01144).
    """

    gumbel_softmax_temperature: float = RELAXATION_TEMPERATURE

    def __post_init__(self) -> None:
        if not self.gumbel_softmax_temperature > 0:
            raise ValueError(
                f"DiscreteLikeContinuous.gumbel_softmax_temperature={self.gumbel_softmax_temperature}: "
                "it must be above 0"
            )


class _ClippedSoftmax(torch.autograd.Function):
    """Clipped probabilities whose gradient is that of a softmax that has come to them by itself.

    The softmax of the logits is no use for it: with an action at e^-30 its gradient is nothing, and so it remains
    there. None goes to a logit where following it would take its probability farther out of its bounds.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, raw: Tensor, probs: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(probs, raw < low, raw > high)
        return probs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        probs, below, above = ctx.saved_tensors
        to_logits = probs * (gradient - (probs * gradient).sum(dim=-1, keepdim=True))
        outwards = (below & (to_logits > 0)) | (above & (to_logits < 0))
        return to_logits.masked_fill(outwards, 0.0), None, None, None, None


MOST_LIFTED = 0.5  # of probability that lower bounds may give away, summed over the categories
LIFTED = 0.1  # where they would give away more than that


class _Categorical(PolicyOutput):
    """What `Discrete` and `Multidiscrete` share: one output per category, probabilities kept away from 0 and 1."""

    def __init__(
        self,
        action_spec: ActionSpec,
        clip_prob_low: float = 0.001,
        clip_prob_high: float = 0.99,
        inward_gradient: bool = False,
    ):
        super().__init__(action_spec)
        if not 0.0 < clip_prob_low < clip_prob_high <= 1.0:
            raise ValueError(
                f"{type(self).__name__} needs 0 < clip_prob_low < clip_prob_high <= 1, "
                f"not clip_prob_low={clip_prob_low}, clip_prob_high={clip_prob_high}"
            )
        self.clip_prob_low = clip_prob_low
        self.clip_prob_high = clip_prob_high
        self.inward_gradient = inward_gradient
        self.relaxation_temperature = DiscreteLikeContinuous().gumbel_softmax_temperature

    @property
    def num_params(self) -> int:
        return self.action_spec.vector_size

    def _categorical(self, logits: Tensor, legal: Tensor | None = None) -> OneHotDistribution:
        if legal is not None:
            legal = _legal_or_all(legal)
            logits = logits.masked_fill(~legal, -torch.inf)
        raw = softmax(logits)
        probs = self._clip(raw, legal)
        if self.inward_gradient and torch.is_grad_enabled():
            bounds = self._lowest(raw.shape[-1]), self.clip_prob_high
            probs = _ClippedSoftmax.apply(logits, raw.detach(), probs.detach(), *bounds)
        return OneHotDistribution(probs, self.relaxation_temperature)

    def _clip(self, probs: Tensor, legal: Tensor | None = None) -> Tensor:
        """Clipped, 0 where illegal, and summing to one again; the normaliser takes no gradient."""
        bounded = probs.clamp(self._lowest(probs.shape[-1]), self.clip_prob_high)
        if legal is not None:
            bounded = torch.where(legal, bounded, 0.0)
        return bounded / bounded.detach().sum(dim=-1, keepdim=True)

    def _lowest(self, num_categories: int) -> float:
        """`clip_prob_low`, or less where a fresh policy would lie below it, and so take no gradient."""
        if self.clip_prob_low * num_categories <= MOST_LIFTED:
            return self.clip_prob_low
        return LIFTED / num_categories

    def _soften(self, one_hot: Tensor, legal: Tensor | None) -> Tensor:
        """A one-hot that was taken, which makes it legal, clipped as the policy's own probabilities are."""
        return self._clip(one_hot, None if legal is None else _legal_or_all(legal) | (one_hot > 0))


def _legal_or_all(legal: Tensor) -> Tensor:
    return legal | ~legal.any(dim=-1, keepdim=True)


@gin.configurable
class Discrete(_Categorical):
    """One categorical over logits (..., A), clipped to [clip_prob_low, clip_prob_high] and renormalised.

    Where lower bounds would add up to more than half (above 500 categories by default), they are 0.1 / A each: nearly
    all of a policy that has learned nothing yet lies below them else, and takes no gradient.
    inward_gradient: an action whose probability has fallen to `clip_prob_low` takes a gradient that raises it again,
        and one at `clip_prob_high` one that lowers it. Without, as in AMAGO, what is clipped takes none: such an action
        stays where it is in that state, whatever it turns out to be worth.
    """

    kinds = ("discrete",)
    is_discrete = True

    def forward(self, params: Tensor) -> OneHotDistribution:
        return self._categorical(params)

    def masked(self, params: Tensor, legal: Tensor) -> OneHotDistribution:
        return self._categorical(params, legal)

    def action_from_buffer(self, action: Tensor, legal: Tensor | None = None) -> Tensor:
        """The one-hot, clipped and renormalised as the policy's own probabilities are."""
        return self._soften(action, legal)


@gin.configurable
class Multidiscrete(_Categorical):
    """Independent categoricals, each as in `Discrete`, with its settings; their logits lie end to end."""

    kinds = ("multidiscrete",)

    def forward(self, params: Tensor) -> MultiOneHotDistribution:
        return MultiOneHotDistribution([self._categorical(part) for part in self._parts(params)])

    def masked(self, params: Tensor, legal: Tensor) -> MultiOneHotDistribution:
        """Each sub-action has a mask of its own; they lie end to end."""
        parts = zip(self._parts(params), self._parts(legal), strict=True)
        return MultiOneHotDistribution([self._categorical(*part) for part in parts])

    def action_from_buffer(self, action: Tensor, legal: Tensor | None = None) -> Tensor:
        """Every one-hot, clipped and renormalised as the policy's own probabilities are."""
        actions = self._parts(action)
        masks = [None] * len(actions) if legal is None else self._parts(legal)
        return torch.cat([self._soften(*part) for part in zip(actions, masks, strict=True)], dim=-1)

    def _parts(self, x: Tensor) -> list[Tensor]:
        return list(x.split(self.action_spec.nvec, dim=-1))


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
def tanh_bounded_positive(raw: Tensor, low: float, high: float) -> Tensor:
    """From low to high as tanh(raw) goes from -1 to 1, evenly in the logarithm."""
    mid, half = 0.5 * (math.log(high) + math.log(low)), 0.5 * (math.log(high) - math.log(low))
    return torch.exp(mid + half * torch.tanh(raw))


@gin.configurable
def softplus_bounded_positive(raw: Tensor, low: float, high: float | None) -> Tensor:
    """softplus(raw) + low, cut off at `high` unless that is None."""
    positive = F.softplus(raw) + low
    return positive if high is None else positive.clamp(max=high)


StdActivation = Callable[[Tensor, float, float | None], Tensor] | str
STD_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "tanh": tanh_bounded_positive,
    "softplus": softplus_bounded_positive,
    "tanh_bounded_positive": tanh_bounded_positive,
    "softplus_bounded_positive": softplus_bounded_positive,
}


class _Positive:
    """Outputs of an actor to positive numbers between two bounds; raises ValueError for bounds that are none.

    activation: (raw, low, high) -> positive, or the name of one. high: None for no bound, where it can do without.
    name: of the bounded number in settings and messages: owner.name_low, owner.name_high.
    """

    def __init__(self, owner: PolicyOutput, name: str, activation: StdActivation, low: float, high: float | None):
        family = type(owner).__name__
        if isinstance(activation, str):
            if activation not in STD_ACTIVATIONS:
                known = nearest(activation, STD_ACTIVATIONS)
                raise ValueError(f"{family}.std_activation={activation!r} is unknown{known}")
            activation = STD_ACTIVATIONS[activation]
        if not low > 0.0 or (high is not None and not low < high):
            raise ValueError(f"{family} needs 0 < {name}_low < {name}_high, not {name}_low={low}, {name}_high={high}")
        if high is None and activation is tanh_bounded_positive:
            raise ValueError(f"{family}.{name}_high=None: std_activation 'tanh' needs a bound above")
        self._activation, self._low, self._high = activation, low, high

    def __call__(self, raw: Tensor) -> Tensor:
        return self._activation(raw, self._low, self._high)


def _check_clip(owner: PolicyOutput, clip: tuple[float, float]) -> tuple[float, float]:
    low, high = clip
    if not -1.0 < low < high < 1.0:
        raise ValueError(f"{type(owner).__name__} clip_actions_on_log_prob={(low, high)} must lie inside (-1, 1)")
    return low, high


@gin.configurable
class TanhGaussian(PolicyOutput):
    """tanh of a Gaussian: all locs, then all stds, put between `std_low` and `std_high` by `std_activation`.

    std_activation: `tanh_bounded_positive` or `softplus_bounded_positive`, by name or as a function, also "tanh" and
    "softplus"; or a function (raw, low, high) -> std. clip_actions_on_log_prob: see `TanhGaussianDistribution`.
    """

    kinds = ("continuous",)

    def __init__(
        self,
        action_spec: ActionSpec,
        std_low: float = math.exp(-5.0),
        std_high: float | None = math.exp(2.0),
        clip_actions_on_log_prob: tuple[float, float] = (-0.99, 0.99),
        std_activation: StdActivation = tanh_bounded_positive,
    ):
        super().__init__(action_spec)
        self.std = _Positive(self, "std", std_activation, std_low, std_high)
        self.clip_actions = _check_clip(self, clip_actions_on_log_prob)

    @property
    def num_params(self) -> int:
        return 2 * self.action_spec.vector_size

    def forward(self, params: Tensor) -> TanhGaussianDistribution:
        loc, raw = params.chunk(2, dim=-1)
        return TanhGaussianDistribution(loc, self.std(raw), self.clip_actions)


@gin.configurable
class GMM(PolicyOutput):
    """tanh of a mixture of `gmm_modes` Gaussians: the locs mode by mode, then the stds, then the logits.

    std_low, std_high, std_activation: as in `TanhGaussian`.
    """

    kinds = ("continuous",)
    has_rsample = False

    def __init__(
        self,
        action_spec: ActionSpec,
        gmm_modes: int = 5,
        std_low: float = 1e-4,
        std_high: float | None = None,
        std_activation: StdActivation = softplus_bounded_positive,
    ):
        super().__init__(action_spec)
        if gmm_modes < 1:
            raise ValueError(f"GMM gmm_modes={gmm_modes} must be at least 1")
        self.gmm_modes = gmm_modes
        self.std = _Positive(self, "std", std_activation, std_low, std_high)

    @property
    def num_params(self) -> int:
        return self.gmm_modes * (2 * self.action_spec.vector_size + 1)

    def forward(self, params: Tensor) -> GMMDistribution:
        size = self.gmm_modes * self.action_spec.vector_size
        loc, raw, logits = params.split((size, size, self.gmm_modes), dim=-1)
        shape = (self.gmm_modes, self.action_spec.vector_size)
        return GMMDistribution(loc.unflatten(-1, shape), self.std(raw.unflatten(-1, shape)), logits)


@gin.configurable
class Beta(PolicyOutput):
    """Beta distributions on [-1, 1] (Chou et al., ICML 2017): all alphas, then all betas, each within its bounds.

    Bounds above 1 keep the density from rising at the ends. std_activation: as in `TanhGaussian`, of both.
    clip_actions_on_log_prob: see `BetaDistribution`.
    """

    kinds = ("continuous",)

    def __init__(
        self,
        action_spec: ActionSpec,
        clip_actions_on_log_prob: tuple[float, float] = (-0.99, 0.99),
        alpha_low: float = 1.0001,
        alpha_high: float | None = None,
        beta_low: float = 1.0001,
        beta_high: float | None = None,
        std_activation: StdActivation = softplus_bounded_positive,
    ):
        super().__init__(action_spec)
        self.alpha = _Positive(self, "alpha", std_activation, alpha_low, alpha_high)
        self.beta = _Positive(self, "beta", std_activation, beta_low, beta_high)
        self.clip_actions = _check_clip(self, clip_actions_on_log_prob)

    @property
    def num_params(self) -> int:
        return 2 * self.action_spec.vector_size

    def forward(self, params: Tensor) -> BetaDistribution:
        raw_alpha, raw_beta = params.chunk(2, dim=-1)
        return BetaDistribution(self.alpha(raw_alpha), self.beta(raw_beta), self.clip_actions)


def default_policy_output(action_spec: ActionSpec) -> type[PolicyOutput]:
    """The family that an actor uses in an action space unless told otherwise."""
    families: dict[ActionKind, type[PolicyOutput]] = {
        "discrete": Discrete,
        "continuous": TanhGaussian,
        "multibinary": Multibinary,
        "multidiscrete": Multidiscrete,
    }
    return families[action_spec.kind]


def choose_policy_output(
    action_spec: ActionSpec,
    policy_output_type: type[PolicyOutput] | None = None,
    continuous_dist_type: type[PolicyOutput] | None = None,
    discrete_dist_type: type[PolicyOutput] | None = None,
) -> PolicyOutput:
    """The family to use in an action space: the one for spaces of any kind, else the one for its kind, else the
    default. "continuous" stands for multi-binary actions as well. Raises ValueError where it does not fit.
    """
    by_kind: dict[ActionKind, type[PolicyOutput] | None] = {
        "discrete": discrete_dist_type,
        "continuous": continuous_dist_type,
        "multibinary": continuous_dist_type,
    }
    family = policy_output_type or by_kind.get(action_spec.kind) or default_policy_output(action_spec)
    return family(action_spec)
