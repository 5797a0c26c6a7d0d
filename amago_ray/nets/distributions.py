"""Action distributions: what an actor's outputs mean in each kind of action space.

A `PolicyOutput` is a family; given an action space it says how many outputs the actor needs, and turns them into an
`ActionDistribution`. To add one, write both:

    @gin.configurable
    class Laplace(PolicyOutput):
        kinds = ("continuous",)

        @property
        def num_params(self) -> int:
            return 2 * self.action_spec.vector_size

        def forward(self, params: Tensor) -> ActionDistribution:
            return LaplaceDistribution(*params.chunk(2, dim=-1))

Actions are always float vectors (..., A): one-hots end to end in categorical spaces, 0 and 1 in multi-binary ones, and
numbers in [-1, 1] in continuous ones. Everything is in closed form, because the networks around it are tiny.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from amago_ray.nets.softmax import softmax

RELAXATION_TEMPERATURE = 0.5  # of the straight-through samples of categorical and binary actions, unless told
TINY = torch.finfo(torch.float32).tiny
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class ActionDistribution(ABC):
    """One distribution over action vectors per leading index. `probs` exists in categorical and binary families."""

    probs: Tensor

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """The expected action vector (..., A), differentiable."""

    @property
    def mode(self) -> Tensor:
        """The deterministic action vector (..., A): an action that the environment accepts. The mean, unless stated."""
        return self.mean

    @abstractmethod
    def sample(self) -> Tensor:
        """An action vector (..., A), without gradient."""

    def rsample(self) -> Tensor:
        """An action vector (..., A) with gradient to the parameters. Raises NotImplementedError if it cannot be had."""
        raise NotImplementedError(f"{type(self).__name__} has no differentiable samples: set Agent.online_coeff to 0")

    def tempered(self, temperature: float) -> ActionDistribution:
        """A sharper (below 1) or flatter (above 1) one to act by, which tends to `mode` as temperature goes to 0.

        Categories and coins have their logits divided by it, Gaussians their standard deviation multiplied.
        Raises NotImplementedError where that is not defined.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be tempered: set Agent.temperature to 1")

    @abstractmethod
    def log_prob_dims(self, action: Tensor) -> Tensor:
        """Log-probability of each independent part of action vectors (..., A), which broadcast to the distribution."""

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability (..., 1) of action vectors: the sum of its independent parts, unless stated."""
        return self.log_prob_dims(action).sum(dim=-1, keepdim=True)

    @abstractmethod
    def entropy(self) -> Tensor:
        """Entropy (..., 1) in nats; from one sample where there is no closed form."""


def _one_hot(index: Tensor, num: int) -> Tensor:
    """index (..., 1) -> (..., num) float32."""
    return torch.zeros((*index.shape[:-1], num), device=index.device).scatter_(-1, index, 1.0)


def _draw(probs: Tensor) -> Tensor:
    """Sampled categories (..., 1) of probabilities (..., n), without the host waiting: an exponential race.

    A probability of 0 never wins, not even by 0 / 0.
    """
    return (probs / torch.empty_like(probs).exponential_().clamp_(min=TINY)).argmax(dim=-1, keepdim=True)


class OneHotDistribution(ActionDistribution):
    """A categorical over one-hot vectors, with probs (..., A). Where they are 0 the logarithm is that of the least
    float, and without gradient, so that an impossible action in the data makes no loss infinite.

    relaxation_temperature: of the softmax that gives `rsample` its gradient.
    """

    def __init__(self, probs: Tensor, relaxation_temperature: float = RELAXATION_TEMPERATURE):
        self.probs = probs
        self.relaxation_temperature = relaxation_temperature

    @property
    def _log_probs(self) -> Tensor:
        return self.probs.clamp(min=TINY).log()

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def mode(self) -> Tensor:
        return _one_hot(self.probs.argmax(dim=-1, keepdim=True), self.probs.shape[-1])

    def sample(self) -> Tensor:
        return _one_hot(_draw(self.probs.detach()), self.probs.shape[-1])

    def rsample(self) -> Tensor:
        """A hard one-hot with the gradient of its relaxation (straight-through Gumbel-softmax, arXiv 1611.01144)."""
        gumbel = -torch.empty_like(self.probs).exponential_().log()
        impossible = self.probs == 0
        scores = ((self._log_probs + gumbel) / self.relaxation_temperature).masked_fill(impossible, -torch.inf)
        soft = softmax(scores)
        hard = _one_hot(soft.argmax(dim=-1, keepdim=True), soft.shape[-1])
        return hard + (soft - soft.detach())

    def tempered(self, temperature: float) -> OneHotDistribution:
        relative = self.probs / self.probs.amax(dim=-1, keepdim=True)  # so that one of the powers is 1
        powers = relative.pow(1.0 / temperature)
        return OneHotDistribution(powers / powers.sum(dim=-1, keepdim=True), self.relaxation_temperature)

    def log_prob_dims(self, action: Tensor) -> Tensor:
        return (self._log_probs * action).sum(dim=-1, keepdim=True)

    def entropy(self) -> Tensor:
        return -(self.probs * self._log_probs).sum(dim=-1, keepdim=True)


class MultiOneHotDistribution(ActionDistribution):
    """Independent categoricals; the action vector is their one-hots end to end."""

    def __init__(self, parts: Sequence[OneHotDistribution]):
        self.parts = parts
        self.sizes = [part.probs.shape[-1] for part in parts]

    @property
    def probs(self) -> Tensor:  # type: ignore[override]
        return torch.cat([part.probs for part in self.parts], dim=-1)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def mode(self) -> Tensor:
        return torch.cat([part.mode for part in self.parts], dim=-1)

    def sample(self) -> Tensor:
        return torch.cat([part.sample() for part in self.parts], dim=-1)

    def rsample(self) -> Tensor:
        return torch.cat([part.rsample() for part in self.parts], dim=-1)

    def tempered(self, temperature: float) -> MultiOneHotDistribution:
        return MultiOneHotDistribution([part.tempered(temperature) for part in self.parts])

    def log_prob_dims(self, action: Tensor) -> Tensor:
        """(..., number of sub-actions)."""
        taken = action.split(self.sizes, dim=-1)
        return torch.cat([part.log_prob_dims(a) for part, a in zip(self.parts, taken)], dim=-1)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(dim=0)


class BernoulliDistribution(ActionDistribution):
    """Independent coins with logits (..., A)."""

    def __init__(self, logits: Tensor):
        self.logits = logits

    @property
    def probs(self) -> Tensor:  # type: ignore[override]
        return torch.sigmoid(self.logits)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def mode(self) -> Tensor:
        return (self.logits > 0).to(self.logits.dtype)

    def sample(self) -> Tensor:
        return torch.bernoulli(self.probs.detach())

    def rsample(self) -> Tensor:
        """Hard zeros and ones with the gradient of the binary concrete relaxation (arXiv 1611.00712)."""
        logistic = (
            torch.empty_like(self.logits).exponential_().log() - torch.empty_like(self.logits).exponential_().log()
        )
        soft = torch.sigmoid((self.logits + logistic) / RELAXATION_TEMPERATURE)
        return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())

    def tempered(self, temperature: float) -> BernoulliDistribution:
        return BernoulliDistribution(self.logits / temperature)

    def log_prob_dims(self, action: Tensor) -> Tensor:
        """(..., A)."""
        return action * self.logits - F.softplus(self.logits)

    def log_prob(self, action: Tensor) -> Tensor:
        """The mean over coins (..., 1), which keeps its scale in the actor loss whatever their number."""
        return self.log_prob_dims(action).mean(dim=-1, keepdim=True)

    def entropy(self) -> Tensor:
        return -self.log_prob_dims(self.probs).sum(dim=-1, keepdim=True)


def _log_slope_of_tanh(x: Tensor) -> Tensor:
    """log(1 - tanh(x)^2), exact where tanh rounds to 1."""
    return 2 * (math.log(2) - x - F.softplus(-2 * x))


class TanhGaussianDistribution(ActionDistribution):
    """tanh of independent Gaussians, loc and std (..., A). `mean` and `mode` are tanh(loc), strictly the median.

    clip_actions: bounds on actions in `log_prob`, where tanh cannot be inverted.
    """

    def __init__(self, loc: Tensor, std: Tensor, clip_actions: tuple[float, float]):
        self.loc = loc
        self.std = std
        self.clip_actions = clip_actions

    @property
    def mean(self) -> Tensor:
        return torch.tanh(self.loc)

    def _gaussian_sample(self) -> Tensor:
        return torch.addcmul(self.loc, self.std, torch.randn_like(self.loc))

    def sample(self) -> Tensor:
        return torch.tanh(self._gaussian_sample()).detach()

    def rsample(self) -> Tensor:
        return torch.tanh(self._gaussian_sample())

    def tempered(self, temperature: float) -> TanhGaussianDistribution:
        return TanhGaussianDistribution(self.loc, self.std * temperature, self.clip_actions)

    def log_prob_dims(self, action: Tensor) -> Tensor:
        """(..., A)."""
        action = action.clamp(*self.clip_actions)
        z = (torch.atanh(action) - self.loc) / self.std
        return -0.5 * z.square() - self.std.log() - HALF_LOG_2PI - torch.log1p(-action.square())

    def entropy(self) -> Tensor:
        """That of the Gaussians, plus the expected log-slope of tanh at one sample."""
        log_slope = _log_slope_of_tanh(self._gaussian_sample())
        return (0.5 + HALF_LOG_2PI + self.std.log() + log_slope).sum(dim=-1, keepdim=True)


class GMMDistribution(ActionDistribution):
    """tanh of a mixture of M diagonal Gaussians: loc and std (..., M, A), logits (..., M).

    `mode` is tanh of the centre of the heaviest component. log_prob_dims has one part, the joint.
    """

    tanh_epsilon = 1e-6  # keeps atanh and its slope finite at the ends of the range

    def __init__(self, loc: Tensor, std: Tensor, logits: Tensor):
        self.loc = loc
        self.std = std
        self.logits = logits

    def _component(self, index: Tensor, of: Tensor) -> Tensor:
        """(..., A) of component index (..., 1), from (..., M, A)."""
        # Not take_along_dim, for which torch.export takes the size of the batch for a constant.
        return of.gather(-2, index.unsqueeze(-1).expand(*of.shape[:-2], 1, of.shape[-1])).squeeze(-2)

    @property
    def mean(self) -> Tensor:
        """The weighted tanh of the components' centres."""
        return (softmax(self.logits).unsqueeze(-1) * torch.tanh(self.loc)).sum(dim=-2)

    @property
    def mode(self) -> Tensor:
        return torch.tanh(self._component(self.logits.argmax(dim=-1, keepdim=True), self.loc))

    def sample(self) -> Tensor:
        return torch.tanh(self._mixture_sample()).detach()

    def _mixture_sample(self) -> Tensor:
        index = _draw(softmax(self.logits.detach()))
        loc, std = self._component(index, self.loc), self._component(index, self.std)
        return torch.addcmul(loc, std, torch.randn_like(loc))

    def tempered(self, temperature: float) -> GMMDistribution:
        """The choice among components is tempered as any other choice is."""
        return GMMDistribution(self.loc, self.std * temperature, self.logits / temperature)

    def log_prob_dims(self, action: Tensor) -> Tensor:
        epsilon = self.tanh_epsilon
        x = 0.5 * torch.log((1 + action).clamp(min=epsilon) / (1 - action).clamp(min=epsilon))
        return self._mixture_log_prob(x) - torch.log(1 - action.square() + epsilon).sum(dim=-1, keepdim=True)

    def _mixture_log_prob(self, x: Tensor) -> Tensor:
        """Log-density (..., 1) of the Gaussians, before tanh."""
        z = (x.unsqueeze(-2) - self.loc) / self.std
        components = (-0.5 * z.square() - self.std.log() - HALF_LOG_2PI).sum(dim=-1)
        return torch.logsumexp(components + self.logits.log_softmax(dim=-1), dim=-1, keepdim=True)

    def entropy(self) -> Tensor:
        """Of one sample before tanh, which float32 cannot invert near the ends of the range."""
        x = self._mixture_sample()
        return _log_slope_of_tanh(x).sum(dim=-1, keepdim=True) - self._mixture_log_prob(x)


class BetaDistribution(ActionDistribution):
    """Independent Betas stretched from [0, 1] to [-1, 1]; alpha and beta (..., A), above 0. `mode` is the mean.

    clip_actions: bounds on actions in `log_prob`, which is infinite at the ends.
    """

    def __init__(self, alpha: Tensor, beta: Tensor, clip_actions: tuple[float, float]):
        self.alpha = alpha
        self.beta = beta
        self.clip_actions = clip_actions

    @property
    def mean(self) -> Tensor:
        return (self.alpha - self.beta) / (self.alpha + self.beta)

    def sample(self) -> Tensor:
        return self.rsample().detach()

    def rsample(self) -> Tensor:
        unit = torch.distributions.Beta(self.alpha, self.beta, validate_args=False).rsample()
        return 2 * unit - 1

    def tempered(self, temperature: float) -> BetaDistribution:
        """The mean stays. The standard deviation grows at most until the density would begin to rise at an end."""
        alpha, beta = self.alpha, self.beta
        total = alpha + beta
        share = alpha / total
        widest = torch.minimum(total, 1.0 / torch.minimum(share, 1.0 - share))
        total = torch.maximum((total + 1.0) / temperature**2 - 1.0, widest)  # the variance is m (1 - m) / (total + 1)
        return BetaDistribution(share * total, (1.0 - share) * total, self.clip_actions)

    # What follows takes large numbers from each other that are nearly equal: in float64.

    @staticmethod
    def _log_normalizer(alpha: Tensor, beta: Tensor) -> Tensor:
        """Of the density on [-1, 1] (..., A)."""
        return torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta) + math.log(2)

    def log_prob_dims(self, action: Tensor) -> Tensor:
        """(..., A)."""
        alpha, beta = self.alpha.double(), self.beta.double()
        unit = 0.5 * (action.clamp(*self.clip_actions).double() + 1)
        dims = (alpha - 1) * unit.log() + (beta - 1) * torch.log1p(-unit) - self._log_normalizer(alpha, beta)
        return dims.to(self.alpha.dtype)

    def entropy(self) -> Tensor:
        alpha, beta = self.alpha.double(), self.beta.double()
        total = alpha + beta
        digammas = (alpha - 1) * alpha.digamma() + (beta - 1) * beta.digamma() - (total - 2) * total.digamma()
        return (self._log_normalizer(alpha, beta) - digammas).sum(dim=-1, keepdim=True).to(self.alpha.dtype)
