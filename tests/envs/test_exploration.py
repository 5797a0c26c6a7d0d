"""Exploration: exact schedules, uniform actions, and states that can be resumed."""

from __future__ import annotations

import json
from typing import Any

import gin
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from amago_ray.envs.exploration import BilevelEpsilonGreedy, EpsilonGreedy, ExplorationWrapper, TMazeExploration
from amago_ray.envs.spaces import action_spec
from amago_ray.messages import CannotGoOn

SPACES = {
    "discrete": spaces.Discrete(5, start=3),
    "continuous": spaces.Box(-2, 2, (3,)),
    "multibinary": spaces.MultiBinary(4),
    "multidiscrete": spaces.MultiDiscrete([2, 5, 3]),
}
DISCRETE = action_spec(SPACES["discrete"])


class Returning(ExplorationWrapper):
    """Explores by whatever a test wants."""

    def __init__(self, spec: Any, change: Any) -> None:
        super().__init__(3, spec, seed=0)
        self.change = change

    def explore(self, actions: np.ndarray, time_idx: np.ndarray) -> Any:
        return self.change(actions)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("discrete", lambda a: a + 7, "Returning.explore returned 7: discrete actions are between 0 and 4 in stored"),
        ("discrete", lambda a: a - 1, "returned -1: discrete actions"),
        ("discrete", lambda a: a + 0.5, "returned an array of dtype float64: discrete actions are of dtype int64"),
        ("discrete", lambda a: None, "returned None: discrete actions are of dtype int64"),
        ("discrete", lambda a: a[:, None], r"returned an array of shape \(3, 1\): these actions have shape \(3,\)"),
        ("discrete", lambda a: [[0], [0, 1]], r"returned \[\[0\], \[0, 1\]\], which is no array"),
        ("multidiscrete", lambda a: a + 2, "returned 2: multidiscrete actions are between 0 and 1"),
        ("multidiscrete", lambda a: a + np.array([0, 0, 3]), "returned 3: multidiscrete actions are between 0 and 2"),
        ("multibinary", lambda a: a - 1, "returned -1: multibinary actions are between 0 and 1"),
        ("continuous", lambda a: a + 1.5, "returned 1.5: continuous actions are between -1 and 1.*numpy.clip"),
        ("continuous", lambda a: a * np.nan, "returned nan: continuous"),
        ("continuous", lambda a: a.astype(str), "returned an array of dtype <U"),
    ],
)
def test_what_is_no_action_is_refused_in_one_line(kind: str, change: Any, message: str) -> None:
    spec = action_spec(SPACES[kind])
    with pytest.raises(CannotGoOn, match=message) as refused:
        Returning(spec, change)(np.zeros((3, *spec.shape), spec.dtype), np.zeros(3))
    assert "\n" not in str(refused.value)


def test_actions_of_another_dtype_or_rounded_beyond_a_bound_are_stored_as_they_should_be() -> None:
    spec = action_spec(SPACES["continuous"])
    found = Returning(spec, lambda a: a.astype(np.float64) + 1 + 1e-7)(np.zeros((3, 3), np.float32), np.zeros(3))
    assert found.dtype == np.float32 and (found == 1).all()
    spec = action_spec(SPACES["multibinary"])
    found = Returning(spec, lambda a: a == 0)(np.zeros((3, 4), np.int8), np.zeros(3))
    assert found.dtype == np.int8 and (found == 1).all()
    assert Returning(DISCRETE, lambda a: a + 4)(np.zeros(3, np.int64), np.zeros(3)).tolist() == [4, 4, 4]


def eps_at(explore: Any, steps: int, time_idx: int = 0) -> float:
    explore.steps[:] = steps
    explore(np.zeros(explore.num_envs, np.int64), np.full(explore.num_envs, time_idx))
    return explore.metrics()["eps"]


def test_epsilon_falls_linearly_over_steps_of_one_environment() -> None:
    explore = EpsilonGreedy(3, DISCRETE, seed=0, steps_anneal=1000, randomize_eps=False)
    for steps, eps in [(0, 1.0), (500, 0.525), (1000, 0.05), (10**9, 0.05)]:
        assert eps_at(explore, steps) == pytest.approx(eps, abs=1e-12)
    assert (explore.steps == 10**9 + 1).all()


def test_defaults() -> None:
    assert eps_at(EpsilonGreedy(1, DISCRETE, seed=0, randomize_eps=False), 1_000_000) == pytest.approx(0.05)
    explore = BilevelEpsilonGreedy(1, DISCRETE, seed=0, rollout_horizon=10, randomize_eps=False)
    assert eps_at(explore, 1_000_000, time_idx=10) == pytest.approx(0.01)


def test_bilevel_epsilon_falls_over_training_and_within_a_rollout() -> None:
    explore = BilevelEpsilonGreedy(2, DISCRETE, seed=0, rollout_horizon=100, steps_anneal=1000, randomize_eps=False)
    table = {
        (0, 0): 1.0,
        (0, 50): 0.9,
        (0, 100): 0.8,
        (0, 500): 0.8,
        (500, 0): 0.525,
        (500, 100): 0.405,
        (1000, 0): 0.05,
        (1000, 25): 0.04,
        (2000, 100): 0.01,
    }
    for (steps, time_idx), eps in table.items():
        assert eps_at(explore, steps, time_idx) == pytest.approx(eps, abs=1e-12)


def test_factors_are_drawn_once_per_rollout() -> None:
    explore = EpsilonGreedy(1000, DISCRETE, seed=0)
    explore.begin(np.ones(1000, bool))
    factors = np.array(explore.state_dict()["factor"])
    assert 0 <= factors.min() < 0.01 and 0.99 < factors.max() < 1
    assert eps_at(explore, 0) == pytest.approx(factors.mean())
    explore.begin(np.arange(1000) < 10)
    again = np.array(explore.state_dict()["factor"])
    assert (again[:10] != factors[:10]).all() and (again[10:] == factors[10:]).all()


@pytest.mark.parametrize("kind", ["discrete", "multibinary", "multidiscrete"])
def test_integer_actions_are_uniform_with_probability_eps(kind: str) -> None:
    spec = action_spec(SPACES[kind])
    num = 20_000
    explore = EpsilonGreedy(num, spec, seed=0, eps_start=0.5, randomize_eps=False)
    given = np.zeros((num, *spec.shape), spec.dtype)
    actions = explore(given, np.zeros(num))
    assert actions.shape == given.shape and actions.dtype == given.dtype and not given.any()
    for entry, n in enumerate(spec.nvec or (2,) * spec.vector_size):
        column = actions.reshape(num, -1)[:, entry]
        wanted = np.full(n, 0.5 / n) + 0.5 * (np.arange(n) == 0)
        np.testing.assert_allclose(np.bincount(column, minlength=n) / num, wanted, atol=0.015)


def test_continuous_actions_get_clipped_noise() -> None:
    spec = action_spec(SPACES["continuous"])
    explore = EpsilonGreedy(20_000, spec, seed=0, eps_start=0.1, randomize_eps=False)
    actions = explore(np.zeros((20_000, 3), np.float32), np.zeros(20_000))
    assert actions.dtype == np.float32 and actions.std() == pytest.approx(0.1, rel=0.02)
    explore = EpsilonGreedy(1000, spec, seed=0, randomize_eps=False)
    assert np.abs(explore(np.ones((1000, 3), np.float32), np.zeros(1000))).max() == 1


@pytest.mark.parametrize("kind", list(SPACES))
def test_no_epsilon_no_change(kind: str) -> None:
    spec = action_spec(SPACES[kind])
    explore = EpsilonGreedy(6, spec, seed=0, eps_start=0.0, eps_end=0.0)
    actions = np.ones((6, *spec.shape), spec.dtype)
    np.testing.assert_array_equal(explore(actions, np.zeros(6)), actions)


@pytest.mark.parametrize("hold_steps", [1.0, 5.0])
@pytest.mark.parametrize("kind", list(SPACES))
def test_a_loaded_state_goes_on_identically(kind: str, hold_steps: float) -> None:
    spec = action_spec(SPACES[kind])

    def run(explore: ExplorationWrapper, num: int) -> list[list]:
        taken = []
        for step in range(num):
            explore.begin(np.arange(4) == step % 9)
            taken.append(explore(np.zeros((4, *spec.shape), spec.dtype), np.full(4, step)).tolist())
        return taken

    settings = {"rollout_horizon": 20, "steps_anneal": 50, "hold_steps": hold_steps}
    first, second = (BilevelEpsilonGreedy(4, spec, seed, **settings) for seed in (0, 1))
    run(first, 7)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.steps.tolist() == [7] * 4
    assert run(first, 9) == run(second, 9)
    with pytest.raises(ValueError, match="4 environments, not 3"):
        EpsilonGreedy(3, spec, seed=0).load_state_dict(first.state_dict())


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("hold_steps", [1.0, 5.0])
def test_a_state_of_another_randomize_eps_goes_on_by_the_setting_of_now(before: bool, hold_steps: float) -> None:
    first = EpsilonGreedy(4, DISCRETE, 0, randomize_eps=before, hold_steps=6.0 - hold_steps)
    second = EpsilonGreedy(4, DISCRETE, 1, randomize_eps=not before, hold_steps=hold_steps, eps_end=1.0)
    policy = np.zeros(4, np.int64)
    first.begin(np.ones(4, bool))
    for step in range(7):
        first(policy, np.full(4, step))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.steps.tolist() == [7] * 4 and second.rng.random() == first.rng.random()
    second.begin(np.ones(4, bool))
    second(policy, np.zeros(4))
    eps = second._eps.tolist()
    assert eps == [1.0] * 4 if before else len(set(eps)) == 4 and max(eps) < 1.0, "no factor stays for good"


def test_a_state_of_another_class_counts_its_steps() -> None:
    first, second = EpsilonGreedy(2, DISCRETE, 0), EpsilonGreedy(2, DISCRETE, 0)
    first.steps[:] = 5
    second.load_state_dict(ExplorationWrapper.state_dict(first))
    assert second.steps.tolist() == [5, 5]


@pytest.mark.parametrize(
    "bad", [{"steps": [1, 2]}, {"rng": {"bit_generator": "of another kind"}}, {"factor_rngs": [1]}]
)
def test_a_state_that_does_not_fit_changes_nothing(bad: dict[str, Any]) -> None:
    first, second = EpsilonGreedy(4, DISCRETE, 0), EpsilonGreedy(4, DISCRETE, 1)
    first(np.zeros(4, np.int64), np.zeros(4))
    before = json.dumps(second.state_dict())
    with pytest.raises((ValueError, TypeError)):
        second.load_state_dict(first.state_dict() | bad)
    assert json.dumps(second.state_dict()) == before


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (EpsilonGreedy, {"eps_start": 1.5}),
        (EpsilonGreedy, {"steps_anneal": 0}),
        (EpsilonGreedy, {"hold_steps": 0.5}),
        (BilevelEpsilonGreedy, {"rollout_horizon": 0}),
        (BilevelEpsilonGreedy, {"rollout_horizon": 5, "eps_end_end": -0.1}),
    ],
)
def test_bad_settings_are_named(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(settings)):
        kind(2, DISCRETE, 0, **settings)


def test_gin_configures_each_under_its_own_name() -> None:
    with gin.unlock_config():
        gin.parse_config("EpsilonGreedy.eps_start = 0.3\nBilevelEpsilonGreedy.rollout_horizon = 12")
    try:
        assert EpsilonGreedy(1, DISCRETE, 0).eps_start == 0.3
        assert BilevelEpsilonGreedy(1, DISCRETE, 0).rollout_horizon == 12
    finally:
        gin.clear_config()


def test_in_the_corridor_of_a_t_maze_hardly_anything_is_explored() -> None:
    explore = TMazeExploration(1, DISCRETE, seed=0, horizon=100, eps_end=0.1, steps_anneal=1000)
    assert [eps_at(explore, 0, time_idx) for time_idx in (0, 1, 96, 97, 100)] == [1.0, 0.005, 0.005, 1.0, 1.0]
    assert eps_at(explore, 500, 0) == pytest.approx(0.55)
    wide = TMazeExploration(1, DISCRETE, seed=0, horizon=10, start_window=2, end_window=1)
    assert [eps_at(wide, 0, time_idx) for time_idx in (2, 3, 8, 9)] == [1.0, 0.05, 0.05, 1.0]
    with pytest.raises(ValueError, match="horizon=0"):
        TMazeExploration(1, DISCRETE, seed=0, horizon=0)


@pytest.mark.parametrize("kind", SPACES)
def test_held_choices_last_as_long_as_asked_and_explore_as_often(kind: str) -> None:
    spec, steps, num_envs, hold = action_spec(SPACES[kind]), 4000, 8, 10.0
    explore = EpsilonGreedy(num_envs, spec, seed=3, eps_start=0.4, eps_end=0.4, randomize_eps=False, hold_steps=hold)
    policy = np.zeros((num_envs, *spec.shape), spec.dtype)
    taken = np.stack([explore(policy, np.full(num_envs, step)) for step in range(steps)])
    flat = taken.reshape(steps, num_envs, -1)
    changes = (flat[1:] != flat[:-1]).any(-1).mean()
    if kind == "continuous":
        assert changes == pytest.approx(1 / hold, rel=0.05)
        assert np.abs(flat).mean() == pytest.approx(0.4 * np.sqrt(2 / np.pi), rel=0.05)  # |0.4 N(0, 1)|
    else:
        drawn = EpsilonGreedy(num_envs, spec, seed=4, eps_start=0.4, eps_end=0.4, randomize_eps=False)
        free = np.stack([drawn(policy, np.full(num_envs, step)) for step in range(steps)]).reshape(steps, num_envs, -1)
        assert (flat != 0).mean() == pytest.approx((free != 0).mean(), rel=0.1)
        assert changes == pytest.approx((free[1:] != free[:-1]).any(-1).mean() / hold, rel=0.1)


def test_nothing_is_held_over_the_end_of_a_rollout() -> None:
    explore = EpsilonGreedy(2, DISCRETE, seed=0, eps_end=1.0, randomize_eps=False, hold_steps=1e9)
    policy, idx = np.zeros(2, np.int64), np.zeros(2, np.int64)
    explore.begin(np.array([True, True]))
    first = explore(policy, idx)
    seen = set()
    for _ in range(50):
        assert explore(policy, idx)[1] == first[1]
        explore.begin(np.array([True, False]))
        seen.add(int(explore(policy, idx)[0]))
    assert len(seen) == 5


def test_far_hill_is_reached_by_noise_that_lasts() -> None:
    """MountainCarContinuous with a policy that does nothing: independent noise never reaches the top."""
    reached = {}
    for hold in (1.0, 30.0):
        envs = gymnasium.make_vec("MountainCarContinuous-v0", num_envs=20, vectorization_mode="sync")
        explore = EpsilonGreedy(20, action_spec(envs.single_action_space), 0, randomize_eps=False, hold_steps=hold)
        envs.reset(seed=0)
        explore.begin(np.ones(20, bool))
        tops = 0
        for step in range(999):
            _, _, terminated, _, _ = envs.step(explore(np.zeros((20, 1), np.float32), np.full(20, step)))
            tops += int(terminated.sum())
        reached[hold] = tops
    assert reached[1.0] == 0 and reached[30.0] >= 5


def test_how_often_one_environment_explores_moves_no_other() -> None:
    """Where none of them explores, too, which is most of the time here."""
    spec = action_spec(spaces.Discrete(7))
    calm, begun = (EpsilonGreedy(3, spec, 5, eps_start=0.3, eps_end=0.3, randomize_eps=True) for _ in range(2))
    policy = np.zeros(3, np.int64)
    for t in range(400):
        begun.begin(np.array([t % 3 == 0, False, False]))  # row 0 alone has another factor by now
        found, others = (explorer(policy, np.full(3, t))[1:] for explorer in (calm, begun))
        np.testing.assert_array_equal(found, others)
