"""The written-out GRU equals PyTorch's, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amago_ray.nets.recurrent import GRURecurrence, gru_sequence, gru_step


@pytest.mark.parametrize("layers, batch, length", [(1, 1, 1), (1, 5, 7), (2, 3, 40)])
def test_equals_pytorch(layers, batch, length):
    torch.manual_seed(0)
    rnn = nn.GRU(6, 11, num_layers=layers, batch_first=True).double()
    x = torch.randn(batch, length, 6, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(batch, length, 11, dtype=torch.float64)
    expected, ours = rnn(x)[0], gru_sequence(rnn, x)
    torch.testing.assert_close(ours, expected)
    inputs = (x, *rnn.parameters())
    wanted = torch.autograd.grad((expected * probe).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((ours * probe).sum(), inputs), wanted)


def test_gradient_by_finite_differences():
    torch.manual_seed(0)
    arguments = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 2, 9), (9, 3), (9,))]
    assert torch.autograd.gradcheck(GRURecurrence.apply, arguments)


def test_recurrence_stays_in_float32_under_autocast():
    rnn = nn.GRU(6, 8, batch_first=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = gru_sequence(rnn, torch.randn(2, 5, 6))
    assert out.dtype == torch.float32


def test_steps_equal_the_sequence() -> None:
    torch.manual_seed(0)
    rnn, x_BLD = nn.GRU(4, 6, num_layers=3, batch_first=True), torch.randn(5, 7, 4)
    with torch.no_grad():
        hidden, outputs = torch.zeros(3, 5, 6), []
        for x_BD in x_BLD.unbind(1):
            before = hidden.clone()
            out_BH, after = gru_step(rnn, x_BD, hidden)
            assert torch.equal(hidden, before), "what was there before is left alone"
            outputs.append(out_BH)
            hidden = after
        expected, last = rnn(x_BLD)
    torch.testing.assert_close(torch.stack(outputs, 1), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(hidden, last, atol=1e-6, rtol=1e-5)
