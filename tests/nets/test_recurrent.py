"""The written-out GRU equals PyTorch's, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from amago_ray.nets.packed_sequences import Packing
from amago_ray.nets.recurrent import CompiledGRURecurrence, GRURecurrence, gru_sequence, gru_step


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


def largest_error(L: int, B: int, H: int, size: float = 1.0) -> float:
    """Of the kernel's results and gradients from those in float64, as a part of the largest entry there."""
    torch.manual_seed(L + B + H)
    gates, weight, bias = torch.randn(L, B, 3 * H) * size, torch.randn(3 * H, H) * size / H**0.5, torch.randn(3 * H)
    ours = [x.requires_grad_() for x in (gates, weight, bias)]
    exact = [x.detach().double().requires_grad_() for x in ours]
    toward = torch.randn(L, B, H)
    y, expected = CompiledGRURecurrence.apply(*ours), GRURecurrence.apply(*exact)
    gradients = zip(torch.autograd.grad(y, ours, toward), torch.autograd.grad(expected, exact, toward.double()))
    pairs = [(y, expected), *gradients]
    return max(((a - e).abs().max() / e.abs().max().clamp(min=1e-3)).item() for a, e in pairs)


@pytest.mark.processes
def test_kernel_is_the_recurrence(register_width: None) -> None:
    """At every number of sequences about a multiple of what is taken at a time, shared out to one thread and three."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for batch in (1, 2, 5, 6, 7, 11, 12, 13, 25, 40):
                for length, width in ((1, 32), (2, 96), (9, 64)):
                    assert largest_error(length, batch, width) < 3e-6, (batch, length, width)
            assert largest_error(150, 24, 128) < 1e-5
            assert largest_error(3, 3, 32, size=9.0) < 2e-5  # gates all but open or shut, where rounding grows tenfold
    finally:
        torch.set_num_threads(before)


@pytest.mark.processes
def test_kernel_computes_each_sequence_by_itself() -> None:
    """To the bit, whatever else is in the batch and however many threads there are."""
    torch.manual_seed(0)
    gates, weight, bias = torch.randn(8, 13, 96), torch.randn(96, 32), torch.randn(96)
    h = CompiledGRURecurrence.apply(gates, weight, bias)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            for first, last in ((0, 1), (3, 12), (5, 13)):
                assert torch.equal(CompiledGRURecurrence.apply(gates[:, first:last], weight, bias), h[:, first:last])
    finally:
        torch.set_num_threads(before)


@pytest.mark.processes
def test_kernel_of_extremes() -> None:
    """A gate's value is right to the digit near 0, where tanh has none to lose, and far out; NaN stays with its own."""
    x = torch.tensor([0.0, 1e-30, 1e-8, 1e-4, 0.01, 0.1, 0.2499, 0.2501, 0.5, 1, 3, 8, 20, 80, 100, 1e4, 1e30])
    given = torch.zeros(1, 32, 96)
    given[0, : len(x), 64:] = x.unsqueeze(1)
    given[0, len(x) - 1, 64:] = -1e-3
    given[0, 20:, 32:64] = torch.linspace(-90, 90, 12).unsqueeze(1)  # the update gate keeps a state of 0
    given[0, 20:, 64:] = 1.0
    h = CompiledGRURecurrence.apply(given, torch.zeros(96, 32), torch.zeros(96))[0]
    exact = given[0].double()
    expected = (1 - exact[:, 32:64].sigmoid()) * exact[:, 64:].tanh()
    torch.testing.assert_close(h.double(), expected, rtol=2e-6, atol=1e-7)
    small = expected.abs() < 0.1  # relative errors alone; where the gate is all but shut, 1 - z has lost its digits
    torch.testing.assert_close(h[:20].double()[small[:20]], expected[:20][small[:20]], rtol=2e-6, atol=0.0)
    given[0, 3] = torch.nan
    h = CompiledGRURecurrence.apply(given.expand(2, -1, -1), torch.ones(96, 32), torch.zeros(96))
    assert h[:, 3].isnan().all() and h[:, :3].isfinite().all() and h[:, 4:].isfinite().all()


@pytest.mark.processes
def test_a_gru_with_the_kernel_is_that_gru() -> None:
    """Padded and packed, in bfloat16 too; other widths and types are left to PyTorch."""
    torch.manual_seed(0)
    rnn, x = nn.GRU(20, 64, num_layers=2, batch_first=True), torch.randn(3, 9, 20)
    expected, by_kernel = gru_sequence(rnn, x), gru_sequence(rnn, x, kernel=True)
    torch.testing.assert_close(by_kernel, expected, atol=1e-6, rtol=1e-5)
    assert not torch.equal(by_kernel, expected), "it is another computation"
    wanted = torch.autograd.grad(expected.square().sum(), [*rnn.parameters()])
    given = torch.autograd.grad(by_kernel.square().sum(), [*rnn.parameters()])
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)
    packing = Packing.of(np.array([9, 4, 6]))
    rows = torch.cat([x[0], x[1, :4], x[2, :6]]).unsqueeze(0)
    packed = gru_sequence(rnn, rows, packing, kernel=True)
    torch.testing.assert_close(packed, gru_sequence(rnn, rows, packing), atol=1e-6, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(gru_sequence(rnn, x, kernel=True), gru_sequence(rnn, x), atol=1e-5, rtol=1e-5)
    for other in (nn.GRU(20, 24, batch_first=True), nn.GRU(20, 64, batch_first=True).double()):
        y = x.to(other.weight_hh_l0.dtype)
        assert torch.equal(gru_sequence(other, y, kernel=True), gru_sequence(other, y))
