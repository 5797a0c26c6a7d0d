"""Normalisations equal the reference's numbers; activations and MLPs do what their names say."""

from __future__ import annotations

from pathlib import Path

import gin
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amago_ray.nets.cnn import IMPALACNN, GridworldCNN, IMPALAishCNN
from amago_ray.nets.feedforward import (
    ACTIVATIONS,
    IN_PLACE,
    MLP,
    Normalization,
    SlowAdaptiveRational,
    activation,
)

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
    with pytest.raises(ValueError, match="multiple of SimNorm.dim=8, not 12"):
        Normalization("simnorm", 12)
    with pytest.raises(ValueError, match="'adaptve' is unknown; did you mean 'adaptive'"):
        activation("adaptve")
    with pytest.raises(ValueError, match="activation='adaptive' is for encoders and actors"):
        activation("adaptive", in_place=True)
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


def test_groups_of_simnorm() -> None:
    x = torch.randn(5, 12)
    gin.clear_config()
    gin.parse_config("SimNorm.dim = 3")
    out = Normalization("simnorm", 12)(x)
    gin.clear_config()
    torch.testing.assert_close(out, torch.cat([group.softmax(dim=-1) for group in x.split(3, dim=-1)], dim=-1))


def test_a_detached_unitball_scales_gradients_alone() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    out = Normalization("unitball-detach", 6)(x)
    assert torch.equal(out, Normalization("unitball", 6)(x))
    weights = torch.randn(4, 6)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    torch.testing.assert_close(gradient, weights / (x.detach().norm(dim=-1, keepdim=True) + 1e-5))


def test_the_adaptive_activation_starts_close_to_leaky_relu() -> None:
    x = torch.linspace(-3, 3, 4001)
    error = (SlowAdaptiveRational()(x) - F.leaky_relu(x)).detach()
    assert error.abs().max() < 0.05  # at 0, where leaky ReLU has its corner
    assert error.square().mean().sqrt() < 0.01
    assert SlowAdaptiveRational()(torch.linspace(-1e4, 1e4, 99)).isfinite().all()


def test_the_adaptive_activation_is_the_rational_function_that_its_weights_say() -> None:
    torch.manual_seed(0)
    module, x = SlowAdaptiveRational(), torch.randn(50)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    (a, b), y = (p.detach().double() for p in (module.numerator, module.denominator)), x.double()
    assert (len(a), len(b)) == (6, 4)
    above = sum(a[i] * y**i for i in range(6))
    below = 1 + sum((b[j] * y ** (j + 1)).abs() for j in range(4))
    torch.testing.assert_close(module(x), (above / below).float(), rtol=1e-4, atol=1e-5)
    assert module(x.bfloat16()).dtype == torch.bfloat16


def test_the_adaptive_activation_learns_every_coefficient_unless_told_otherwise() -> None:
    module, x = SlowAdaptiveRational(), torch.linspace(-3, 3, 500)
    optimizer, losses = torch.optim.Adam(module.parameters(), lr=1e-2), []
    for _ in range(200):
        loss = (module(x) - x.sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all((p.grad != 0).all() for p in module.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert not any(p.requires_grad for p in SlowAdaptiveRational(trainable=False).parameters())


def test_adaptive_networks_have_weights_of_their_own() -> None:
    first, second = (MLP(3, 8, 2, 2, activation="adaptive") for _ in range(2))
    assert "activation.numerator" in first.state_dict()
    assert first.activation.numerator is not second.activation.numerator
    for trunk in (GridworldCNN, IMPALAishCNN, IMPALACNN):
        cnn = trunk((20, 20, 3), channels_first=False, activation="adaptive")
        cnn(torch.randn(2, 20, 20, 3)).sin().sum().backward()
        assert [n for n, p in cnn.named_parameters() if p.grad is None] == []


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


def test_a_norm_of_bfloat16_inputs_on_a_cpu_has_gradients_of_float32() -> None:
    torch.manual_seed(0)
    ours, exact = Normalization("layer", 16), nn.LayerNorm(16)
    with torch.no_grad():
        for norm in (ours.norm, exact):
            norm.weight.copy_(torch.linspace(0.5, 1.5, 16) + 1 / 1024)  # that bfloat16 would round
    x, grad = (torch.randn(500, 16).bfloat16() for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(x)
    assert out.dtype == torch.bfloat16
    out.backward(grad)
    expected = exact(x.float())
    expected.backward(grad.float())
    torch.testing.assert_close(out, expected.bfloat16())
    torch.testing.assert_close(ours.norm.weight.grad, exact.weight.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(ours.norm.bias.grad, exact.bias.grad, atol=1e-5, rtol=1e-5)
