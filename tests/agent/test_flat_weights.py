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
    assert buffer.dtype == np.float32 and buffer.ndim == 1
    load_flat_state(second, buffer)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    np.testing.assert_array_equal(flatten_state(second), buffer)


def test_parameters_keep_their_place_and_their_gradient() -> None:
    module = nn.Linear(3, 2)
    weight = module.weight
    load_flat_state(module, np.arange(8, dtype=np.float32))
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


def test_other_dtypes_and_scalars_pass() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.tensor(7))
            self.register_buffer("short", torch.tensor([0.5, -2.0], dtype=torch.float16))
            self.register_buffer("table", torch.zeros(2), persistent=False)

    first, second = Mixed(), fill(Mixed(), 0)
    assert flatten_state(first).tolist() == [7, 0.5, -2.0]
    load_flat_state(second, flatten_state(first))
    assert second.count == 7 and second.count.dtype == torch.int64 and torch.equal(second.short, first.short)


@pytest.mark.parametrize("size", [0, 7, 9])
def test_another_size_is_refused_and_changes_nothing(size: int) -> None:
    module = nn.Linear(3, 2)
    before = flatten_state(module)
    with pytest.raises(ValueError, match=f"weights of {size} numbers do not fit a module of 8: configurations differ"):
        load_flat_state(module, np.zeros(size, np.float32))
    np.testing.assert_array_equal(flatten_state(module), before)
