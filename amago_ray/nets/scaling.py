"""Scales of values and inputs: symlog, running normalisation, returns as labels over bins.

Shape letters: G discount factors, N bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import gin
import torch
import torch.distributed as dist
from torch import Tensor, nn

from amago_ray.nets.kept import Kept
from amago_ray.nets.recomputation import statistics_are_held
from amago_ray.specs import ArraySpec, Bounds
from amago_ray.warned import warn

LARGEST_BOUND = 1e6
DEFAULT_RETURN_RANGE = (-1e5, 1e5)


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(|x| + 1), elementwise (DreamerV3, arXiv 2301.04104)."""
    return torch.copysign(torch.log1p(x.abs()), x)


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp(|x|) - 1), elementwise: the inverse of `symlog`."""
    return torch.copysign(torch.expm1(x.abs()), x)


class BoundsScale(nn.Module):
    """Brings an array from its own bounds to [-1, 1], entry by entry: (..., *spec.shape) -> the same, as floats.

    Bytes, 0 to 255, become x / 128 - 1, as is usual for images and as AMAGO does; integers of no declared bounds in 8
    bits without a sign are taken for bytes. Every other entry with two finite bounds becomes
    2 (x - low) / (high - low) - 1. Entries without (infinite, or beyond +-1e6, which some environments declare in place
    of infinite) stay as they are: no range could be told.

    bounds: (low, high) of all entries, in place of those of the spec.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: ArraySpec, bounds: tuple[float, float] | None = None):
        super().__init__()
        if bounds is not None:
            found = Bounds((1,) * len(spec.shape), (float(bounds[0]),), (float(bounds[1]),))
        elif spec.bounds is None and spec.dtype == "uint8":
            found = Bounds((1,) * len(spec.shape), (0.0,), (255.0,))
        else:
            found = spec.bounds or Bounds((1,) * len(spec.shape), (-math.inf,), (math.inf,))
        low, high = (torch.tensor(x, dtype=torch.float64).reshape(found.shape) for x in (found.low, found.high))
        known = (low.abs() <= LARGEST_BOUND) & (high.abs() <= LARGEST_BOUND) & (low < high)
        middle, reach = torch.where(known, (high + low) / 2, 0.0), torch.where(known, (high - low) / 2, 1.0)
        is_bytes = (low == 0.0) & (high == 255.0)
        middle, reach = torch.where(is_bytes, 128.0, middle), torch.where(is_bytes, 128.0, reach)
        self.register_buffer("scale", (1.0 / reach).float(), persistent=False)
        self.register_buffer("shift", (-middle / reach).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class RunningMoments(nn.Module):
    """Exponential moving mean `mu` and mean square `nu` whose early steps are larger, so that the start fades fast.

    Step t moves both by beta / (1 - (1 - beta)^t) toward the batch; t starts at 1, the initial values being the first
    batch. float32, and no value ever leaves the device.

    variance: nu - mu^2, but moved by a formula of its own, since that difference loses all digits where the mean is
        much larger than the spread. (Values themselves are float32: what they cannot tell apart has no variance.) Where
        saved statistics lack it, as AMAGO's do, it is taken from the other two.
    """

    mu: Tensor
    nu: Tensor
    variance: Tensor
    t: Tensor

    def __init__(self, shape: Sequence[int], t_shape: Sequence[int], beta: float, init_nu: float):
        super().__init__()
        if not 0.0 < beta <= 1.0:
            raise ValueError(f"{type(self).__name__}.beta={beta}: statistics move by a fraction above 0 and up to 1")
        self.beta = beta
        self.register_buffer("mu", torch.zeros(shape))
        self.register_buffer("nu", torch.full(shape, init_nu))
        self.register_buffer("variance", torch.full(shape, init_nu))
        self.register_buffer("t", torch.ones(t_shape))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        mu, nu = (state_dict.get(prefix + name) for name in ("mu", "nu"))
        if mu is not None and nu is not None and prefix + "variance" not in state_dict:
            state_dict[prefix + "variance"] = (nu.double() - mu.double().square()).clamp(min=0.0).float()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def observe(self, value: Tensor, mask: Tensor | None) -> None:
        """Move toward value (..., *shape), averaged over the leading dimensions where mask is true (None: everywhere).

        mask: bool, broadcasts to value; at least one of its entries, over all ranks, must be true. When
        torch.distributed is initialised every rank must call this, and all come to hold the same statistics.
        Within `held_statistics` they stay as they are.
        """
        if statistics_are_held():
            return
        value = value.detach().double()
        weight = torch.ones_like(value) if mask is None else mask.expand_as(value).double()
        value = value if mask is None else value.masked_fill(~mask, 0.0)
        sums = torch.stack((value, value.square(), weight)).flatten(1, -1 - self.mu.dim()).sum(dim=1)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        mean, mean_square = sums[:2] / sums[2]
        self.t += 1
        step = self.beta / (1 - (1 - self.beta) ** self.t)
        # Of the mixture of what was there, by 1 - step, and the batch, by step: both variances and that of the means.
        of_batch, of_means = mean_square - mean.square(), (mean - self.mu).square() * (1 - step)
        self.variance.lerp_((of_batch + of_means).clamp(min=0.0).float(), step)
        self.mu.lerp_(mean.float(), step)
        self.nu.lerp_(mean_square.float(), step)


@gin.configurable
class PopArt(RunningMoments):
    """Normalises values per discount factor, and rescales its own output so that a statistics update changes no value.

    (van Hasselt et al., arXiv 1602.07714; multi-task form arXiv 1809.04474.) With x a critic's output (..., G, 1):
    `popart(x)` is the normalised value w x + b, `denormalize(x)` the value itself, sigma (w x + b) + mu, and
    `normalize_target(value)` = (value - mu) / sigma. With `enabled=False` each of them is the identity.

    beta: rate of the moving statistics. init_nu: mean square at the start, so sigma starts at its root.
    """

    w: Tensor
    b: Tensor

    def __init__(self, num_gammas: int, beta: float = 5e-4, init_nu: float = 100.0, enabled: bool = True):
        super().__init__((num_gammas, 1), (num_gammas, 1), beta, init_nu)
        self.enabled = enabled
        self.register_buffer("w", torch.ones(num_gammas, 1))
        self.register_buffer("b", torch.zeros(num_gammas, 1))

    @property
    def sigma(self) -> Tensor:
        """(G, 1) standard deviation, held in [0.01, 1e4]."""
        return self.variance.clamp(1e-4, 1e8).sqrt()

    @torch.no_grad()
    def update(self, value: Tensor, mask: Tensor | None = None) -> None:
        """Track denormalised values (..., G, 1) where `mask` (bool, broadcasts to value) is true."""
        if not self.enabled or statistics_are_held():
            return
        old_sigma, old_mu = self.sigma, self.mu.clone()
        self.observe(value, mask)
        sigma = self.sigma
        self.w *= old_sigma / sigma
        self.b.copy_((old_sigma * self.b + old_mu - self.mu) / sigma)

    def normalize_target(self, value: Tensor) -> Tensor:
        return (value - self.mu) / self.sigma if self.enabled else value

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.b, self.w, x) if self.enabled else x

    def denormalize(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.mu, self.sigma, self(x)) if self.enabled else x


@gin.configurable
class InputNorm(RunningMoments):
    """Centres every input feature and divides it by its running standard deviation: (..., dim) -> (..., dim).

    Features whose deviation is under 0.01 are only centred. The caller calls `update` in training, before use.

    beta: rate of the moving statistics. init_nu: mean square at the start. skip: leave inputs as they are; statistics
    are kept all the same, so that weights are alike with and without.
    """

    def __init__(self, dim: int, beta: float = 1e-4, init_nu: float = 1.0, skip: bool = False):
        super().__init__((dim,), (1,), beta, init_nu)
        self.skip = skip
        self._kept_deviation: Kept[Tensor] = Kept()

    def train(self, mode: bool = True) -> InputNorm:
        self._kept_deviation.forget()
        return super().train(mode)

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Track x (..., dim) over the timesteps where mask (...) is true."""
        self.observe(x, mask if mask is None else mask.unsqueeze(-1))

    def forward(self, x: Tensor) -> Tensor:
        if self.skip:
            return x
        acting = not self.training and not torch.is_grad_enabled()
        return (x - self.mu) / (self._kept_deviation.get(self._deviation) if acting else self._deviation()[0])

    def _deviation(self) -> tuple[Tensor, tuple[Tensor]]:
        """What features are divided by, and what it is made of."""
        return nn.functional.threshold(torch.sqrt(self.variance + 1e-5), 0.01, 1.0), (self.variance,)


@gin.configurable
class TwoHot(nn.Module):
    """Scalars as labels over N bins, so that regression becomes classification, and back.

    Bins are evenly spaced from min_return to max_return, on the symlog scale unless `use_symlog` is off.
    label_type "twohot": weight on the two neighbouring bins in inverse proportion to distance; all on the end bin out
    of range (DreamerV3, arXiv 2301.04104). "hlgauss": a Gaussian of `sigma` bin widths integrated over each bin and
    renormalised (arXiv 2403.03950).

    Returns are in units of the scaled reward. Left unset, the range is -1e5 to 1e5, with a warning. Raises ValueError
    for fewer than two bins, an empty range, another label type or a sigma of 0 or less.
    """

    bins: Tensor
    edges: Tensor

    def __init__(
        self,
        num_bins: int = 128,
        min_return: float | None = None,
        max_return: float | None = None,
        use_symlog: bool = True,
        label_type: Literal["twohot", "hlgauss"] = "twohot",
        sigma: float = 0.75,
    ):
        super().__init__()
        if min_return is None or max_return is None:
            low, high = DEFAULT_RETURN_RANGE
            min_return = low if min_return is None else min_return
            max_return = high if max_return is None else max_return
            warn(
                f"return range left unset: bins span min_return={min_return:g} to max_return={max_return:g}; "
                "set both close to the returns of your environment",
                stacklevel=2,
            )
        if num_bins < 2:
            raise ValueError(f"num_bins={num_bins} must be at least 2")
        if min_return >= max_return:
            raise ValueError(f"min_return={min_return} must be below max_return={max_return}")
        if label_type not in ("twohot", "hlgauss"):
            raise ValueError(f"label_type={label_type!r} must be 'twohot' or 'hlgauss'")
        if not sigma > 0.0:
            raise ValueError(f"sigma={sigma} must be above 0: it is a standard deviation, in bin widths")
        self.use_symlog = use_symlog
        self.label_type = label_type
        self.sigma = sigma
        ends = torch.tensor([min_return, max_return], dtype=torch.float64)
        self.low, self.high = (symlog(ends) if use_symlog else ends).tolist()
        self.width = (self.high - self.low) / (num_bins - 1)
        half = self.width / 2
        self.register_buffer("bins", torch.linspace(self.low, self.high, num_bins), persistent=False)
        edges = torch.linspace(self.low - half, self.high + half, num_bins + 1)
        self.register_buffer("edges", edges, persistent=False)

    def place(self, value: float) -> float:
        """Where a scalar lies on the scale on which bins are even."""
        return math.copysign(math.log1p(abs(value)), value) if self.use_symlog else value

    def encode(self, value: Tensor) -> Tensor:
        """Label probabilities (..., N) of scalars (..., 1)."""
        x = symlog(value.float()) if self.use_symlog else value.float()
        return self._two_hot(x) if self.label_type == "twohot" else self._gaussian(x)

    def decode(self, logits: Tensor) -> Tensor:
        """Expected scalars (..., 1) of logits (..., N); log-probabilities serve too."""
        mean = (logits.float().softmax(dim=-1) * self.bins).sum(dim=-1, keepdim=True)
        return symexp(mean) if self.use_symlog else mean

    def _two_hot(self, x: Tensor) -> Tensor:
        distance = (x.clamp(self.low, self.high) - self.bins).abs()
        return (1 - distance / self.width).clamp(min=0.0)

    def _gaussian(self, x: Tensor) -> Tensor:
        # 14/3 standard deviations past the last edge float32 has little mass left; further out it has none at all.
        far = (0.5 + 14 / 3 * self.sigma) * self.width
        x = x.clamp(self.low - far, self.high + far)
        cdf = 1 + torch.erf((self.edges - x) / (self.sigma * math.sqrt(2) * self.width))
        return cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])
