"""Dropout drops as often as it is told, keeps the mean, and passes gradient where it keeps."""

from __future__ import annotations

import pytest
import torch

from amago_ray.nets.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [1e-3, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drops_as_often_as_it_is_told(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out = dropout(torch.ones(4000, 401, dtype=dtype), p).float()
    num = out.numel()
    tolerance = 4 * (p * (1 - p) / num) ** 0.5 + 2**-17
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=tolerance)
    kept = out[out != 0]
    assert kept.unique().tolist() == [pytest.approx(1 / (1 - p), rel=1e-4 if dtype == torch.float32 else 2**-8)]
    # Each of the four entries that one random number decides for, and neighbours apart from each other.
    for lane in range(4):
        assert (out.flatten()[lane::4] == 0).float().mean().item() == pytest.approx(p, abs=2.5 * tolerance)
    both = ((out[:, 1:] == 0) & (out[:, :-1] == 0)).float().mean().item()
    assert both == pytest.approx(p * p, abs=4 * (p * p / num) ** 0.5 + 2**-16)


def test_gradient_passes_where_it_keeps() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5, requires_grad=True)
    out = dropout(x, 0.5)
    out.sum().backward()
    assert 0 < int((out == 0).sum()) < 35
    torch.testing.assert_close(x.grad, torch.where(out == 0, 0.0, 2.0))


def test_seeds_decide_and_evaluation_keeps_everything() -> None:
    x, layer = torch.randn(3, 33), Dropout(0.3)
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(layer(x))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    assert layer.eval()(x) is x or torch.equal(layer(x), x)


@pytest.mark.parametrize(("p", "mean"), [(0.0, 1.0), (1e-9, 1.0), (1.0, 0.0)])
def test_nothing_and_everything(p: float, mean: float) -> None:
    assert dropout(torch.ones(100), p).mean().item() == pytest.approx(mean)
    assert dropout(torch.ones(0, 3), 0.5).shape == (0, 3)
