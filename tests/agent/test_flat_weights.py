"""A policy's weights as one buffer, there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ring_cases import counting, tiny_agent
from torch import nn

from amago_ray.agent.flat_weights import flatten_state, load_flat_state


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Random numbers in every parameter and buffer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator))
    return module


def policy(seed: int) -> nn.Module:
    return fill(tiny_agent(counting(5)).build().policy, seed)


def test_a_policy_survives_the_round_trip_bit_for_bit() -> None:
    first, second = policy(0), policy(1)
    assert any(buffer.numel() for buffer in first.buffers())  # running statistics travel too
    buffer = flatten_state(first)
    assert buffer.dtype == np.uint8 and buffer.ndim == 1
    load_flat_state(second, buffer)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    np.testing.assert_array_equal(flatten_state(second), buffer)


def test_parameters_keep_their_place_and_their_gradient() -> None:
    module = nn.Linear(3, 2)
    weight = module.weight
    load_flat_state(module, np.arange(8, dtype=np.float32).view(np.uint8))
    assert module.weight is weight and weight.requires_grad
    assert weight.tolist() == [[0, 1, 2], [3, 4, 5]] and module.bias.tolist() == [6, 7]


def test_the_buffer_is_a_copy_of_its_own() -> None:
    module = nn.Linear(3, 2)
    buffer = flatten_state(module)
    before = buffer.copy()
    fill(module, 0)
    np.testing.assert_array_equal(buffer, before)
    load_flat_state(module, buffer)
    buffer[:] = 0
    np.testing.assert_array_equal(flatten_state(module), before)


def test_a_read_only_buffer_is_good_enough(recwarn: pytest.WarningsRecorder) -> None:
    first, second = policy(0), policy(1)
    buffer = flatten_state(first)
    buffer.flags.writeable = False  # as are arrays that lie in shared memory
    load_flat_state(second, buffer)
    np.testing.assert_array_equal(flatten_state(second), buffer)
    assert not recwarn.list


class Mixed(nn.Module):
    """State of several kinds, such as a rotary position's complex table, in sizes after which others begin anywhere."""

    def __init__(self, turn: float = 0.0, count: int = 0):
        super().__init__()
        self.register_buffer("short", torch.tensor([0.5 + count], dtype=torch.float16))
        self.register_buffer("count", torch.tensor(count))
        self.register_buffer("flags", torch.tensor([count > 0, False, True]))
        self.register_buffer("turns", torch.polar(torch.ones(2, 2), torch.full((2, 2), turn)))
        self.register_buffer("fine", torch.tensor([turn + 1e-12], dtype=torch.float64))
        self.register_buffer("table", torch.full((2,), turn), persistent=False)
        self.scale = nn.Parameter(torch.full((3, 2), turn).t())  # lies in another order than it is read in


def test_numbers_of_every_kind_arrive_as_they_are() -> None:
    first, second = Mixed(1.0, 1_234_567_891), Mixed()
    load_flat_state(second, flatten_state(first))
    for name, value in first.state_dict().items():
        assert second.state_dict()[name].dtype == value.dtype
        assert torch.equal(second.state_dict()[name], value), name
    assert second.turns.imag.abs().min() > 0.8 and second.table.tolist() == [0.0, 0.0]
    assert not second.scale.is_contiguous()


def test_conjugated_and_negated_views_are_what_they_show() -> None:
    first, second = Mixed(1.0), Mixed()
    first.turns = first.turns.conj()
    first.fine = torch.polar(*torch.ones(2, 1, dtype=torch.float64)).conj().imag  # one number, of two that lie there
    assert first.turns.is_conj() and first.fine.is_neg()
    load_flat_state(second, flatten_state(first))
    assert torch.equal(second.turns, first.turns) and torch.equal(second.fine, first.fine)
    assert (second.turns.imag < 0).all()


@pytest.mark.parametrize("size", [0, 31, 33])
def test_another_size_is_refused_and_changes_nothing(size: int) -> None:
    module = nn.Linear(3, 2)
    before = flatten_state(module)
    with pytest.raises(ValueError, match=f"weights of {size} bytes do not fit a module of 32: configurations differ"):
        load_flat_state(module, np.zeros(size, np.uint8))
    np.testing.assert_array_equal(flatten_state(module), before)
