"""Activations, normalisation layers and the multi-layer perceptron that every encoder and head is built from."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable

import gin
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
SIMNORM_GROUP = 8


def _nearest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def activation(name: str, in_place: bool = False) -> Callable[[Tensor], Tensor]:
    """The elementwise function called `name`. Raises ValueError, with the nearest known name, for any other.

    in_place: it may overwrite its argument, which saves memory. Hand it only what nothing else reads, and no view where
        gradient flows: autograd would copy the gradient of all that is viewed.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is unknown; did you mean {_nearest(name, ACTIVATIONS)!r}?")
    return IN_PLACE.get(name, ACTIVATIONS[name]) if in_place else ACTIVATIONS[name]


_activation = activation  # for constructors whose argument of that name hides the function


def _unitball(x: Tensor) -> Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + 1e-5)


def _hypersphere(x: Tensor) -> Tensor:
    return math.sqrt(x.shape[-1]) * F.normalize(x, dim=-1)


def _simnorm(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, SIMNORM_GROUP)).softmax(dim=-1).flatten(-2)


NORMALIZATIONS: dict[str, Callable[[int], Callable[[Tensor], Tensor]]] = {
    "layer": nn.LayerNorm,
    "rmsnorm": lambda d: nn.RMSNorm(d, eps=1e-5),
    "unitball": lambda d: _unitball,
    "hypersphere": lambda d: _hypersphere,
    "simnorm": lambda d: _simnorm,
    "none": lambda d: nn.Identity(),
}


@gin.configurable
class Normalization(nn.Module):
    """Normalises the last dimension, x (..., d) -> (..., d), by the named method.

    "layer": LayerNorm. "rmsnorm": RMSNorm, x / rms(x) with a learned scale (arXiv 1910.07467). "unitball": x / |x|.
    "hypersphere": sqrt(d) x / |x|. "simnorm": a softmax over every group of 8 features (TD-MPC2, arXiv 2310.16828).
    "none": x itself. Raises ValueError for another method, or for "simnorm" where 8 does not divide d.
    """

    def __init__(self, method: str, d: int):
        super().__init__()
        if method not in NORMALIZATIONS:
            nearest = _nearest(method, NORMALIZATIONS)
            raise ValueError(f"normalization method={method!r} is unknown; did you mean {nearest!r}?")
        if method == "simnorm" and d % SIMNORM_GROUP:
            raise ValueError(f"normalization method='simnorm' needs d to be a multiple of {SIMNORM_GROUP}, not {d}")
        self.norm = NORMALIZATIONS[method](d)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


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
        x = self._activate(self.in_layer(x))
        for layer in self.layers:
            x = self._activate(layer(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(self.hidden(x))

    def _activate(self, x: Tensor) -> Tensor:
        x = self.activation(x)
        return F.dropout(x, self.dropout_p, self.training) if self.dropout_p else x
