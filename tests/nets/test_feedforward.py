"""Normalisations equal the reference's numbers; activations and MLPs do what their names say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from amago_ray.nets.feedforward import ACTIVATIONS, IN_PLACE, MLP, Normalization, activation

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "parts.npz")


@pytest.mark.parametrize("method", ["layer", "rmsnorm", "unitball", "hypersphere", "simnorm"])
def test_normalization_equals_the_reference(method: str) -> None:
    x = torch.from_numpy(GOLDEN["layers/x"])
    expected = torch.from_numpy(GOLDEN[f"layers/norm/{method}"])
    torch.testing.assert_close(Normalization(method, x.shape[-1])(x), expected, rtol=1e-5, atol=1e-7)


def test_normalization_parameters_and_none() -> None:
    assert set(Normalization("layer", 4).state_dict()) == {"norm.weight", "norm.bias"}
    assert set(Normalization("rmsnorm", 4).state_dict()) == {"norm.weight"}
    x = torch.randn(3, 4)
    assert Normalization("none", 4)(x) is x
    assert Normalization("hypersphere", 4)(torch.zeros(4)).isfinite().all()


def test_unknown_names_are_rejected_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="'leakyrelu' is unknown; did you mean 'leaky_relu'"):
        activation("leakyrelu")
    with pytest.raises(ValueError, match="'layernorm' is unknown; did you mean 'layer'"):
        Normalization("layernorm", 8)
    with pytest.raises(ValueError, match="multiple of 8, not 12"):
        Normalization("simnorm", 12)
    with pytest.raises(ValueError, match="n_layers=0"):
        MLP(3, 8, 0, 2)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_leave_their_argument_alone_unless_told_otherwise(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, requires_grad=True)
    expected = getattr(F, name)(x)
    torch.testing.assert_close(activation(name)(x), expected)
    kept = x * 1.0
    in_place = activation(name, in_place=True)(kept)
    torch.testing.assert_close(in_place, expected)
    assert (in_place is kept) == (name in IN_PLACE)
    weights = torch.randn(50)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (in_place, expected)]
    torch.testing.assert_close(*gradients)


def test_mlp_is_its_layers_in_order() -> None:
    torch.manual_seed(0)
    mlp = MLP(3, 8, 3, 2, activation="tanh")
    assert len(mlp.layers) == 2
    x = torch.randn(5, 7, 3)
    hidden = mlp.in_layer(x).tanh()
    for layer in mlp.layers:
        hidden = layer(hidden).tanh()
    torch.testing.assert_close(mlp.hidden(x), hidden)
    torch.testing.assert_close(mlp(x), mlp.out_layer(hidden))


def test_mlp_drops_hidden_units_in_training_only() -> None:
    torch.manual_seed(0)
    mlp = MLP(3, 1000, 1, 2, activation="relu", dropout_p=0.5)
    x = torch.randn(1, 3)
    kept = F.relu(mlp.in_layer(x)) > 0
    assert 0.4 < (mlp.hidden(x)[kept] == 0).float().mean() < 0.6
    assert not (mlp.eval().hidden(x)[kept] == 0).any()
