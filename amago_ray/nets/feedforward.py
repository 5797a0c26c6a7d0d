"""Activations, normalisation layers and the multi-layer perceptron that every encoder and head is built from."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from functools import cache
from itertools import product

import gin
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amago_ray.nets.aligned import linear
from amago_ray.nets.dropout import dropout
from amago_ray.nets.softmax import softmax

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "relu": F.relu,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}
# Those whose gradient can be told from their result.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu_,
    "leaky_relu": F.leaky_relu_,
    "relu": F.relu_,
    "selu": F.selu_,
}
ADAPTIVE = "adaptive"  # the one that has weights: `SlowAdaptiveRational`


def _nearest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


@cache
def leaky_relu_as_rational() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(a_0 ... a_5), (b_1 ... b_4) >= 0.01 of a P(x) / Q(x) that is close to leaky ReLU on [-3, 3].

    P(x) = sum a_i x^i, Q(x) = 1 + sum b_j |x|^j. Least squares in P - f Q, weighted by 1 / Q of the iteration before,
    which converges to that in P / Q - f (Sanathanan and Koerner, 1963). Which b lie at their bound is tried out. A b of
    0 would be one that never learns: |b x^j| has no gradient there.
    """
    least, x = 0.01, np.linspace(-3.0, 3.0, 2001)
    f = np.where(x > 0, x, 0.01 * x)
    powers, moduli = x[:, None] ** np.arange(6), np.abs(x)[:, None] ** np.arange(1, 5)
    best_error, best = np.inf, (np.zeros(6), np.zeros(4))
    for free in map(np.array, product((False, True), repeat=4)):
        b = np.full(4, least)
        for _ in range(20):
            weight = 1 / (1 + moduli @ b)
            known = f * (1 + moduli[:, ~free].sum(axis=1) * least)
            unknown = np.concatenate((powers, -f[:, None] * moduli[:, free]), axis=1)
            solution = np.linalg.lstsq(unknown * weight[:, None], known * weight, rcond=None)[0]
            b[free] = solution[6:]
            if (b < least).any():
                break
        else:
            error = np.square(powers @ solution[:6] / (1 + moduli @ b) - f).mean()
            if error < best_error:
                best_error, best = error, (solution[:6], b)
    # Rounded, so that every machine starts from the same numbers.
    numerator, denominator = (tuple(np.round(values, 6).tolist()) for values in best)
    return numerator, denominator


@gin.configurable
class SlowAdaptiveRational(nn.Module):
    """A learned activation, elementwise: P(x) / (1 + sum |b_j x^j|) of degrees 5 and 4, at first nearly a leaky ReLU.

    (The safe Pade activation unit of Molina et al. 2020, arXiv 1907.06732.) Its denominator is never below 1. Plain
    PyTorch, hence slow beside the fixed activations. Computed in float32, returned in the dtype of x.

    trainable: learn the ten coefficients; else keep them.
    """

    def __init__(self, trainable: bool = True):
        super().__init__()
        numerator, denominator = leaky_relu_as_rational()
        self.numerator = nn.Parameter(torch.tensor(numerator), requires_grad=trainable)
        self.denominator = nn.Parameter(torch.tensor(denominator), requires_grad=trainable)

    def forward(self, x: Tensor) -> Tensor:
        value = x.float()
        size, (*lower, above) = value.abs(), self.numerator.unbind()
        for coefficient in reversed(lower):
            above = above * value + coefficient
        below = torch.zeros_like(value)
        for coefficient in reversed(self.denominator.abs().unbind()):
            below = (below + coefficient) * size
        return (above / (1 + below)).to(x.dtype)


def activation(name: str, in_place: bool = False) -> Callable[[Tensor], Tensor]:
    """The elementwise function called `name`: a new module, with weights, for "adaptive".

    Raises ValueError, with the nearest known name, for any other.

    in_place: it may overwrite its argument, which saves memory. Hand it only what nothing else reads, and no view where
        gradient flows: autograd would copy the gradient of all that is viewed. "adaptive" is refused then.
    """
    if name == ADAPTIVE:
        if in_place:
            raise ValueError(f"activation={name!r} is for encoders and actors; critics take one without weights")
        return SlowAdaptiveRational()
    if name not in ACTIVATIONS:
        nearest = _nearest(name, [*ACTIVATIONS, ADAPTIVE])
        raise ValueError(f"activation={name!r} is unknown; did you mean {nearest!r}?")
    return IN_PLACE.get(name, ACTIVATIONS[name]) if in_place else ACTIVATIONS[name]


_activation = activation  # for constructors whose argument of that name hides the function


def _unitball(x: Tensor) -> Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + 1e-5)


def _hypersphere(x: Tensor) -> Tensor:
    return math.sqrt(x.shape[-1]) * F.normalize(x, dim=-1)


def _unitball_detach(x: Tensor) -> Tensor:
    return x / (x.norm(dim=-1, keepdim=True).detach() + 1e-5)


@gin.configurable
class SimNorm(nn.Module):
    """A softmax over every group of `dim` features, (..., d) -> (..., d) (TD-MPC2, arXiv 2310.16828).

    Raises ValueError where `dim` does not divide d.
    """

    def __init__(self, d: int, dim: int = 8):
        super().__init__()
        if dim < 1 or d % dim:
            raise ValueError(f"normalization method='simnorm' needs d to be a multiple of SimNorm.dim={dim}, not {d}")
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return softmax(x.unflatten(-1, (-1, self.dim))).flatten(-2)


NORMALIZATIONS: dict[str, Callable[[int], Callable[[Tensor], Tensor]]] = {
    "layer": nn.LayerNorm,
    "rmsnorm": lambda d: nn.RMSNorm(d, eps=1e-5),
    "unitball": lambda d: _unitball,
    "unitball-detach": lambda d: _unitball_detach,
    "hypersphere": lambda d: _hypersphere,
    "simnorm": lambda d: SimNorm(d),
    "none": lambda d: nn.Identity(),
}


@gin.configurable
class Normalization(nn.Module):
    """Normalises the last dimension, x (..., d) -> (..., d), by the named method.

    "layer": LayerNorm. "rmsnorm": RMSNorm, x / rms(x) with a learned scale (arXiv 1910.07467). "unitball": x / |x|;
    "unitball-detach": the same, |x| taking no gradient. "hypersphere": sqrt(d) x / |x|. "simnorm": see `SimNorm`.
    "none": x itself. Raises ValueError for another method, or for "simnorm" where its groups do not divide d.
    """

    def __init__(self, method: str, d: int):
        super().__init__()
        if method not in NORMALIZATIONS:
            nearest = _nearest(method, NORMALIZATIONS)
            raise ValueError(f"normalization method={method!r} is unknown; did you mean {nearest!r}?")
        self.norm = NORMALIZATIONS[method](d)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm) and x.dtype.itemsize < 4:
            return self._in_half_precision(x, self.norm)
        return self.norm(x)

    @staticmethod
    def _in_half_precision(x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """As it comes, where autocast would copy it to float32 and leave it there: half the memory traffic, and results
        of eight bits. Sums are float32 all the same; on CPUs all is, since PyTorch adds up the gradients of scale and
        shift in eight bits there, which makes errors of 2 to 4 %."""
        with torch.autocast(x.device.type, enabled=False):
            if not x.is_cuda:
                return norm(x.float()).to(x.dtype)
            weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
            return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


@gin.configurable
class MLP(nn.Module):
    """`n_layers` hidden layers of `d_hidden`, each followed by activation and dropout, then a linear output.

    x (..., d_inp) -> (..., d_output). Raises ValueError for n_layers below 1 or an unknown activation.
    """

    def __init__(
        self,
        d_inp: int,
        d_hidden: int,
        n_layers: int,
        d_output: int,
        activation: str = "leaky_relu",
        dropout_p: float = 0.0,
    ):
        super().__init__()
        if n_layers < 1:
            raise ValueError(f"MLP n_layers={n_layers} must be at least 1")
        self.in_layer = nn.Linear(d_inp, d_hidden)
        self.layers = nn.ModuleList(nn.Linear(d_hidden, d_hidden) for _ in range(n_layers - 1))
        self.out_layer = nn.Linear(d_hidden, d_output)
        self.activation = _activation(activation)
        self.dropout_p = dropout_p

    def hidden(self, x: Tensor) -> Tensor:
        """The last hidden layer (..., d_hidden): what `out_layer` reads."""
        x = self._activate(linear(self.in_layer, x))
        for layer in self.layers:
            x = self._activate(layer(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.out_layer, self.hidden(x))

    def _activate(self, x: Tensor) -> Tensor:
        x = self.activation(x)
        return dropout(x, self.dropout_p, self.training) if self.dropout_p else x
