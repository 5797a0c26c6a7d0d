"""Returns, lengths and metrics of rollouts, one result for each that ends."""

from __future__ import annotations

from typing import Any

import numpy as np

from amago_ray.envs.makers import Transition
from amago_ray.messages import EpisodeResult
from amago_ray.rollout.statistics import EpisodeStatistics, Frames

NAMES = ["a", "b"]


def add(
    statistics: EpisodeStatistics, rewards: list[float], ended: list[int] = (), stepped: tuple = (1, 1), **infos: Any
) -> list[EpisodeResult]:
    none = np.zeros(2, bool)
    transition = Transition(
        obs={},
        rewards=np.array(rewards, np.float32),
        terminated=np.isin([0, 1], ended),
        truncated=none,
        stepped=np.array(stepped, bool),
        failed=none,
        infos={int(row.removeprefix("row")): metrics for row, metrics in infos.items()},
    )
    finished = statistics.add(transition, transition.terminated, NAMES)
    assert list(finished) == sorted(ended)
    statistics.begin(transition.terminated)
    return list(finished.values())


def test_each_rollout_gives_its_own_sum() -> None:
    statistics = EpisodeStatistics(2)
    assert add(statistics, [1, 10]) == []
    assert add(statistics, [2, 20], ended=[1]) == [EpisodeResult("b", 30.0, 2)]
    assert add(statistics, [3, 30], ended=[0]) == [EpisodeResult("a", 6.0, 3)]
    assert add(statistics, [4, 40], ended=[0, 1]) == [EpisodeResult("a", 4.0, 1), EpisodeResult("b", 70.0, 2)]


def test_the_last_value_of_each_metric_counts_and_none_outlives_its_rollout() -> None:
    statistics = EpisodeStatistics(2)
    add(statistics, [0, 0], row0={"success": 0.0, "keys": 3.0}, row1={"success": 0.5})
    results = add(statistics, [0, 0], ended=[0], row0={"success": 1.0})
    results += add(statistics, [0, 0], ended=[0, 1])
    found = [(result.env_name, result.metrics) for result in results]
    assert found == [("a", {"success": 1.0, "keys": 3.0}), ("a", {}), ("b", {"success": 0.5})]


def test_only_steps_that_were_made_count() -> None:
    statistics = EpisodeStatistics(2)
    add(statistics, [1, 1])
    add(statistics, [1, 0], stepped=(1, 0))
    assert statistics.lengths.tolist() == [2, 1]
    results = add(statistics, [1, 1], ended=[0, 1])
    assert [(result.length, result.total_reward) for result in results] == [(3, 3.0), (2, 2.0)]


def test_a_rollout_that_begins_anew_forgets() -> None:
    statistics = EpisodeStatistics(2)
    add(statistics, [5, 5], row0={"x": 1.0})
    statistics.begin(np.array([True, False]))
    assert add(statistics, [1, 1], ended=[0, 1]) == [EpisodeResult("a", 1.0, 1), EpisodeResult("b", 6.0, 2)]


def test_long_sums_are_exact() -> None:
    statistics = EpisodeStatistics(2)
    add(statistics, [2.0**24, 0])
    for _ in range(10):
        add(statistics, [1, 0])
    assert add(statistics, [1, 0], ended=[0])[0].total_reward == 2.0**24 + 11


def test_frames_count_by_the_name_that_the_environment_had() -> None:
    frames, names, everything = Frames(), ["a", "b"], np.ones(2, bool)
    for _ in range(3):
        frames.add(everything, names)
    names[0] = "c"  # the list itself changes with the rollout
    frames.add(everything, names)
    frames.add(np.array([False, True]), names)
    frames.add(np.zeros(2, bool), names)
    assert frames.by_name() == {"a": 3, "b": 5, "c": 1}
    names[1] = "c"
    frames.add(everything, names)
    assert frames.by_name() == {"a": 3, "b": 5, "c": 3} and frames.by_name().total() == 11
