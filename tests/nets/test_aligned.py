"""Products whose widths are filled up with zeros are those of the widths as they were, forward and backward."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amago_ray.nets import aligned, critics, feedforward
from amago_ray.nets.critics import EnsembleLinear, NCritics
from amago_ray.nets.feedforward import MLP
from amago_ray.specs import ActionSpec

WIDTHS = [(5, 8), (8, 3), (5, 3), (8, 16)]


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU in half precision."""
    for module in (aligned, critics):
        monkeypatch.setattr(module, "lacking", lambda width, x: -width % aligned.MULTIPLE)


def outputs_and_gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    out = module(x)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])]


def assert_same(module: nn.Module, x: Tensor, request: pytest.FixtureRequest) -> None:
    expected = outputs_and_gradients(module, x)
    request.getfixturevalue("filled")
    for actual, wanted in zip(outputs_and_gradients(module, x), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize(("d_in", "d_out"), WIDTHS)
def test_an_ensemble_s_layer(d_in: int, d_out: int, request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    assert_same(EnsembleLinear(2, d_in, d_out), torch.randn(2, 7, d_in, requires_grad=True), request)


@pytest.mark.parametrize(("d_in", "d_out"), WIDTHS)
def test_an_mlp(d_in: int, d_out: int, request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    assert_same(MLP(d_in, 16, 2, d_out), torch.randn(3, 7, d_in, requires_grad=True), request)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_critics(kind: str, request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    discrete = kind == "discrete"
    spec = (
        ActionSpec("discrete", (), "int64", 5, (5,)) if discrete else ActionSpec("continuous", (3,), "float32", 3, ())
    )
    network = NCritics(9, spec, torch.tensor([0.9, 0.99]), num_critics=3, d_hidden=16)
    state = torch.randn(2, 4, 9, requires_grad=True)
    action = torch.rand(1, 2, 4, 2, spec.vector_size)

    class Judge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network.values(self.network.prepare(x), action)

    assert_same(Judge(), state, request)


def test_only_half_precision_on_a_gpu_cares(monkeypatch: pytest.MonkeyPatch) -> None:
    there: Any = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    assert [aligned.lacking(width, there) for width in (1, 5, 8, 35)] == [7, 3, 0, 5]
    there.dtype = torch.float32
    assert aligned.lacking(5, there) == 0
    monkeypatch.setattr(aligned, "is_autocast_enabled", {"cuda": True}.get)
    assert aligned.lacking(5, there) == 3
    monkeypatch.undo()
    x = torch.zeros(2, 5)
    assert aligned.lacking(5, x) == aligned.lacking(5, x.bfloat16()) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert aligned.lacking(5, x) == 0


def test_a_layer_of_another_kind_is_called() -> None:
    """As one that a user put there."""

    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    layer, x = Twice(3, 3), torch.randn(2, 3)
    torch.testing.assert_close(feedforward.linear(layer, x), 2 * nn.functional.linear(x, layer.weight, layer.bias))
