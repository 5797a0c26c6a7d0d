"""Sigma-reparametrised layers: the reference's numbers, their gradient, and what acting keeps of them."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import gin
import numpy as np
import pytest
import torch
from torch import Tensor

from amago_ray.agent.flat_weights import flatten_state, load_flat_state
from amago_ray.nets.sigma_reparam import SigmaReparam, power_iterations

PARTS = np.load(Path(__file__).parents[1] / "golden" / "parts.npz")


def part(name: str) -> Tensor:
    return torch.from_numpy(PARTS[f"layers/{name}"])


def sigma_layer() -> SigmaReparam:
    layer = SigmaReparam(16, 6)
    layer.load_state_dict({name: part(f"sigma_reparam/state/{name}") for name in layer.state_dict()})
    return layer


def test_sigma_reparam_equals_the_reference() -> None:
    layer, x = sigma_layer(), part("x")
    out = layer.train()(x)
    torch.testing.assert_close(out, part("sigma_reparam/train_out"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.u, part("sigma_reparam/u_after"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.v, part("sigma_reparam/v_after"), rtol=1e-5, atol=1e-6)
    before = layer.u.clone()
    out = layer.eval()(x)
    torch.testing.assert_close(out, part("sigma_reparam/eval_out"), rtol=1e-5, atol=1e-6)
    assert torch.equal(layer.u, before)


def test_sigma_reparam_starts_with_spectral_norm_gamma_and_follows_the_weight() -> None:
    torch.manual_seed(0)
    layer = SigmaReparam(7, 5)
    with torch.no_grad():
        layer.gamma.fill_(3.0)
        effective = layer.eval()(torch.eye(7)).T
        assert torch.linalg.matrix_norm(effective, 2) == pytest.approx(3.0, rel=1e-4)
        layer.weight.copy_(torch.randn(5, 7))
        for _ in range(200):
            layer.train()(torch.eye(7))
        effective = layer.eval()(torch.eye(7)).T
    assert torch.linalg.matrix_norm(effective, 2) == pytest.approx(3.0, rel=1e-4)


def test_a_fast_start_finds_its_singular_value_in_training() -> None:
    torch.manual_seed(0)
    gin.clear_config()
    gin.parse_config("SigmaReparam.fast_init = True")
    layer = SigmaReparam(64, 40)
    gin.clear_config()
    assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.05)
    assert 0 < layer.bias.abs().max() <= 1 / math.sqrt(64)
    for vector in (layer.u, layer.v):
        assert vector.norm().item() == pytest.approx(1.0, rel=1e-5)
    for _ in range(300):
        layer.train()(torch.eye(64))
    with torch.no_grad():
        effective = layer.eval()(torch.eye(64)) - layer.bias
    assert torch.linalg.matrix_norm(effective, 2) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_layer_is_the_same_plain_one(bias: bool) -> None:
    torch.manual_seed(0)
    layer = SigmaReparam(5, 3, bias=bias).eval()
    with torch.no_grad():
        layer.weight.mul_(3.0)
        layer.gamma.fill_(0.7)
    x, folded = torch.randn(4, 5), layer.folded()
    assert type(folded) is torch.nn.Linear and (folded.bias is not None) == bias
    torch.testing.assert_close(folded(x), layer(x))


def test_sigma_reparam_gradient_survives_a_second_forward_before_backward() -> None:
    torch.manual_seed(0)
    layer, x = sigma_layer(), part("x")
    first = layer.train()(x).square().sum()
    layer(2 * x)
    first.backward()
    reference = sigma_layer()
    reference.train()(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, reference.weight.grad)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("frozen", ["", "weight", "gamma"])
def test_sigma_reparam_has_the_gradient_of_its_formula(frozen: str, scaled: bool) -> None:
    """Of weight, gamma, input and scale, where u and v are no singular vectors."""
    torch.manual_seed(0)
    layer = SigmaReparam(5, 7, fast_init=True).eval()
    with torch.no_grad():
        layer.gamma.fill_(0.7)
    x, scale = torch.randn(4, 5, requires_grad=True), torch.rand(5, requires_grad=True) if scaled else None
    wanted = [x, layer.weight, layer.gamma, *([] if scale is None else [scale])]
    if frozen:
        getattr(layer, frozen).requires_grad_(False)
        wanted = [p for p in wanted if p is not getattr(layer, frozen)]
    with torch.no_grad():
        weights = torch.randn(4, 7)
    out = (layer(x, scale) * weights).sum()
    weight = layer.gamma * layer.weight / (layer.u @ layer.weight @ layer.v)
    expected = ((x if scale is None else x * scale) @ weight.T + layer.bias).mul(weights).sum()
    torch.testing.assert_close(out, expected)
    for actual, reference in zip(torch.autograd.grad(out, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-4, atol=float(reference.abs().max()) * 1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_layers_iterate_together_as_by_themselves(half: bool) -> None:
    """Of several shapes; in float32 also where products are in half precision."""
    torch.manual_seed(0)
    together = [SigmaReparam(*shape, fast_init=True) for shape in ((5, 7), (7, 5), (5, 7), (5, 5), (5, 7))]
    alone = copy.deepcopy(together)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        power_iterations(together)
    for layer, other in zip(together, alone, strict=True):
        u = other.weight @ other.v
        u = u / u.norm()
        v = u @ other.weight
        torch.testing.assert_close(layer.u, u)
        torch.testing.assert_close(layer.v, v / v.norm())
        assert not layer.u.requires_grad


def test_folded_weights_follow_what_they_are_made_of() -> None:
    """Acting keeps the effective weight between steps; new weights and a new gamma must not meet an old one."""
    torch.manual_seed(0)
    layer, other = SigmaReparam(5, 4).eval(), SigmaReparam(5, 4).eval()
    x = torch.randn(3, 5)
    with torch.no_grad():
        before = layer(x)
        load_flat_state(layer, flatten_state(other))
        torch.testing.assert_close(layer(x), other(x))
        assert not torch.allclose(before, layer(x))
        layer.gamma.mul_(2.0)
        torch.testing.assert_close(layer(x) - layer.bias, 2 * (other(x) - other.bias))
    unfolded = layer(x)  # where gradients are wanted nothing is kept
    assert unfolded.requires_grad
    torch.testing.assert_close(unfolded - layer.bias, 2 * (other(x) - other.bias))
