"""What population-based training changes parameters to."""

from __future__ import annotations

from ray import tune

from amago_ray.tune.population import Bounds


def test_parameters_stay_within_their_range() -> None:
    bounds = Bounds({"a": tune.uniform(0.9, 0.99), "n": tune.randint(1, 8), "c": tune.choice([1, 2])})
    assert bounds({"a": 1.188, "n": 9, "c": 1}) == {"a": 0.99, "n": 7, "c": 1}
    assert bounds({"a": 0.1, "n": 0, "c": 2}) == {"a": 0.9, "n": 1, "c": 2}


def test_parameters_stay_on_the_grid_that_they_are_drawn_from() -> None:
    bounds = Bounds({"width": tune.quniform(2, 10, 2), "rate": tune.qloguniform(5, 100, 5)})
    assert bounds({"width": 4.8, "rate": 28.0}) == {"width": 4.0, "rate": 30.0}
    assert bounds({"width": 12.0, "rate": 3.2}) == {"width": 10.0, "rate": 5.0}
