"""Memories of environments whose rollouts begin anew, wherever they were made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from amago_ray.nets.forgetting import forget_rows

MAKERS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.ones(2, 3, 4),
    "a part": lambda: torch.ones(2, 5, 8)[:, 1:4, ::2],
    "other axes": lambda: torch.ones(4, 3, 2).transpose(0, 2),
    "bfloat16": lambda: torch.ones(2, 3, 4, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("made_in", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("mask", [(True, False, True), (False, False, False)])
def test_rows_are_zero_and_others_stay(make: Callable[[], Tensor], made_in: type, mask: tuple[bool, ...]) -> None:
    """Also outside the mode that they were made in, and where there was no number."""
    with made_in():
        memory = make()
        memory[:, 2, 1] = torch.nan
    expected = torch.where(torch.tensor(mask)[:, None], torch.zeros(()), memory.float().clone())
    with torch.no_grad():
        assert forget_rows(memory, np.array(mask), dim=1) is memory
    torch.testing.assert_close(memory.float(), expected, equal_nan=True)


def test_gradients_go_through_what_others_remember() -> None:
    """And nothing is written that a graph has kept."""
    memory, mask = torch.ones(2, 3, 4, requires_grad=True), np.array([True, False, True])
    kept = forget_rows(memory, mask, dim=1)
    assert kept is not memory and (memory == 1).all()
    (grad,) = torch.autograd.grad(kept.sum(), memory)
    np.testing.assert_array_equal(grad[0, :, 0], [0, 1, 0])
    detached = memory.detach().clone()
    loss = (memory * detached).sum()
    forget_rows(detached, mask, dim=1)
    (grad,) = torch.autograd.grad(loss, memory)
    assert (grad == 1).all()
