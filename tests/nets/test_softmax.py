"""`softmax` is PyTorch's, in whatever order it takes the numbers."""

from __future__ import annotations

import pytest
import torch

from amago_ray.nets.softmax import MANY, VECTOR, softmax


@pytest.mark.parametrize("num", [1, 2, 5, VECTOR - 1, VECTOR, 40])
@pytest.mark.parametrize("rows", [3, MANY])
def test_it_is_a_softmax(num: int, rows: int) -> None:
    torch.manual_seed(0)
    x = (5 * torch.randn(rows, 1, num)).requires_grad_()
    with torch.no_grad():
        x[0, 0, 0], x[1] = -torch.inf, 0.0
    toward = torch.randn(rows, 1, num)
    y, expected = softmax(x), x.double().softmax(dim=-1)
    torch.testing.assert_close(y, expected.float(), rtol=1e-6, atol=1e-7, equal_nan=True)
    assert y.is_contiguous()
    (gradient,), (exact,) = (torch.autograd.grad(z, x, toward.to(z.dtype)) for z in (y, expected))
    torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-6, equal_nan=True)
