"""A sum tree holds the sums of its weights, and draws in proportion to them."""

from __future__ import annotations

import numpy as np
import pytest
from ring_cases import assert_drawn_as

from amago_ray.replay.sampling.sum_tree import SumTree


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 100])
@pytest.mark.parametrize("first", [0, 1, 5, 1023, 10**12])
def test_it_holds_what_an_array_holds(size: int, first: int) -> None:
    rng = np.random.default_rng(size)
    tree, weights = SumTree(), rng.random(size)
    tree.rebuild(first, weights)
    numbers = np.arange(first, first + size)
    for _ in range(30):
        np.testing.assert_array_equal(tree.get(numbers), weights)
        np.testing.assert_allclose(tree.total, weights.sum(), rtol=1e-12)
        chosen = rng.integers(size, size=rng.integers(1, 6))  # some of them twice
        weights[chosen] = new = rng.random(len(chosen)) * (rng.random(len(chosen)) < 0.7)
        tree.set(first + chosen, new)


def test_it_follows_a_buffer_that_grows_and_is_evicted_from() -> None:
    rng = np.random.default_rng(0)
    tree, first, weights = SumTree(), 0, np.zeros(0)
    for _ in range(200):
        dropped = int(rng.integers(len(weights) + 1))
        first, weights = first + dropped, np.append(weights[dropped:], rng.random(rng.integers(12)))
        tree.rebuild(first, weights)
        np.testing.assert_allclose(tree.total, weights.sum(), atol=1e-12)
        if weights.sum() > 0:
            drawn = tree.draw(first, 20, rng)
            assert (drawn >= first).all() and (drawn < first + len(weights)).all()
            np.testing.assert_array_equal(tree.get(drawn), weights[drawn - first])


@pytest.mark.parametrize("size", [1, 2, 5, 8, 33])
@pytest.mark.parametrize("first", [0, 6, 1 << 40])
def test_draws_are_in_proportion_to_the_weights(size: int, first: int) -> None:
    rng = np.random.default_rng(size)
    weights = 0.5 + rng.random(size)
    weights[1::3] = 0.0
    tree = SumTree()
    tree.rebuild(first, weights)
    assert_drawn_as(np.bincount(tree.draw(first, 20_000, rng) - first, minlength=size), weights / weights.sum())


def test_a_weight_of_zero_is_never_drawn_whatever_rounding_does() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        weights = rng.random(37) ** 20 * (rng.random(37) < 0.3)
        weights[3] = 1e-300
        tree = SumTree()
        tree.rebuild(11, weights)
        assert (weights[tree.draw(11, 500, rng) - 11] > 0).all()

    class Most:
        def random(self, num: int) -> np.ndarray:
            return np.full(num, np.nextafter(1.0, 0.0))

    weights = np.append(np.full(36, 0.1), np.zeros(4))
    tree = SumTree()
    tree.rebuild(0, weights)
    assert tree.draw(0, 3, Most()).tolist() == [35] * 3  # type: ignore[arg-type]
