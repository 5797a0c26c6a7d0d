"""What a specification says of arrays."""

from __future__ import annotations

import numpy as np
import pytest

from amago_ray.specs import ArraySpec, Bounds


def test_bounds_are_kept_where_they_differ_alone() -> None:
    zeros = np.zeros((2, 3, 2))
    assert Bounds.of(zeros, zeros + 1) == Bounds((1, 1, 1), (0.0,), (1.0,))
    assert Bounds.of(zeros, np.broadcast_to([1, np.inf], (2, 3, 2))) == Bounds((1, 1, 2), (0.0, 0.0), (1.0, np.inf))
    high = zeros + np.arange(6).reshape(2, 3, 1)
    assert Bounds.of(zeros, high) == Bounds((2, 3, 1), (0.0,) * 6, (0.0, 1.0, 2.0, 3.0, 4.0, 5.0))
    assert Bounds.of(np.float32(-1), np.float32(1)) == Bounds((), (-1.0,), (1.0,))
    assert Bounds.of(np.zeros((0, 3)), np.ones((0, 3))).shape == (0, 1)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 5, 3)])
def test_bounds_broadcast_to_their_array(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for axes in range(2 ** len(shape)):
        part = [n if axes >> i & 1 else 1 for i, n in enumerate(shape)]
        low, high = np.broadcast_to(rng.normal(size=part), shape), np.broadcast_to(rng.normal(size=part), shape)
        bounds = Bounds.of(low, high)
        assert bounds.shape == tuple(part)
        for flat, expected in ((bounds.low, low), (bounds.high, high)):
            assert np.array_equal(np.broadcast_to(np.reshape(flat, bounds.shape), shape), expected)


def test_arrays_that_differ_in_bounds_alone_are_alike() -> None:
    first, second = (ArraySpec((2,), "float32", bounds=Bounds((1,), (0.0,), (high,))) for high in (1.0, 2.0))
    assert first == second and hash(first) == hash(second)
