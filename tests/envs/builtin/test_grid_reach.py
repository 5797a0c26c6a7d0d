"""The rules of GridReach, one by one."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import amago_ray.envs.builtin  # noqa: F401 - registers the ids
from amago_ray.envs.builtin.grid import DOWN, LEFT, RIGHT, STAY, UP
from amago_ray.envs.builtin.grid_reach import GridReach
from amago_ray.rollout.evaluate import random_policy


def cells(env: GridReach, observation: dict[str, np.ndarray]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(x, y) of the agent and of the goal, as the observation tells them."""

    def cell(place: np.ndarray) -> tuple[int, int]:
        x, y = np.rint((place + 1) / 2 * (env.size - 1)).astype(int).tolist()
        return x, y

    np.testing.assert_array_equal(observation["observation"], observation["achieved_goal"])
    return cell(observation["achieved_goal"]), cell(observation["desired_goal"])


def route(env: GridReach, observation: dict[str, np.ndarray]) -> list[int]:
    """The moves of a shortest way to the goal."""
    (x, y), (goal_x, goal_y) = cells(env, observation)
    sideways = [RIGHT if goal_x > x else LEFT] * abs(goal_x - x)
    return sideways + [DOWN if goal_y > y else UP] * abs(goal_y - y)


@pytest.mark.parametrize("size", [2, 5, 21])
def test_arriving_is_all_that_is_rewarded(size: int) -> None:
    env = GridReach(size)
    observation, _ = env.reset(seed=size)
    for _ in range(20):
        moves = route(env, observation)
        assert size <= len(moves) <= env.horizon
        steps = [env.step(move) for move in moves]
        assert [reward for _, reward, *_ in steps] == [0.0] * (len(moves) - 1) + [1.0]
        assert [terminated for _, _, terminated, _, _ in steps] == [False] * (len(moves) - 1) + [True]
        assert not any(truncated for _, _, _, truncated, _ in steps)
        assert steps[-1][4] == {"AMAGO_LOG_METRIC Success": 1.0}
        here, goal = cells(env, steps[-1][0])
        assert here == goal
        observation, _ = env.reset()


def test_truncated_at_the_horizon() -> None:
    env = GridReach(4, horizon=7)
    env.reset(seed=0)
    steps = [env.step(STAY) for _ in range(7)]
    assert [truncated for _, _, _, truncated, _ in steps] == [False] * 6 + [True]
    assert not any(terminated or reward for _, reward, terminated, _, _ in steps)
    assert [info for *_, info in steps] == [{}] * 6 + [{"AMAGO_LOG_METRIC Success": 0.0}]


def test_walls_hold_and_moves_are_as_named() -> None:
    env = GridReach(3)
    env.reset(seed=0)
    env._cell, env._goal = 0, 8
    for move, expected in (
        (LEFT, (0, 0)),
        (UP, (0, 0)),
        (RIGHT, (1, 0)),
        (STAY, (1, 0)),
        (DOWN, (1, 1)),
        (LEFT, (0, 1)),
    ):
        assert cells(env, env.step(move)[0]) == (expected, (2, 2))


def test_all_far_pairs_are_drawn_and_no_near_ones() -> None:
    env = GridReach(3, min_distance=3)
    env.reset(seed=0)
    drawn = {cells(env, env.reset()[0]) for _ in range(500)}
    every = list(itertools.product(range(3), repeat=2))
    assert drawn == {(a, b) for a in every for b in every if abs(a[0] - b[0]) + abs(a[1] - b[1]) >= 3}


def test_compute_reward_agrees_with_the_steps() -> None:
    env = GridReach(3, min_distance=1)
    observation, _ = env.reset(seed=0)
    assert env.compute_reward(observation["achieved_goal"], observation["desired_goal"], {}) == 0.0
    seen, rewards = [], []
    for _ in range(300):
        observation, reward, terminated, truncated, _ = env.step(env.np_random.integers(5))
        seen.append(observation)
        rewards.append(reward)
        if terminated or truncated:
            env.reset()
    achieved, desired = (np.stack([o[name] for o in seen]) for name in ("achieved_goal", "desired_goal"))
    assert env.compute_reward(achieved, desired, {}).tolist() == rewards
    assert 0 < sum(rewards) < 300


def test_random_moves_do_not_arrive() -> None:
    results = random_policy(partial(GridReach, 21), 300)
    assert sum(result.total_reward for result in results) <= 3


@pytest.mark.filterwarnings("error")
def test_follows_gymnasium() -> None:
    check_env(gym.make("amago_ray/GridReach-v0", render_mode="rgb_array").unwrapped)


def test_picture() -> None:
    assert GridReach().render() is None
    env = GridReach(5, render_mode="rgb_array")
    env.reset(seed=0)
    env._cell, env._goal = 0, 24
    before = env.render()
    env.step(RIGHT)
    after = env.render()
    assert before is not None and before.dtype == np.uint8 and before.shape == (5 * 16, 5 * 16, 3)
    assert (before[:16, :32] != after[:16, :32]).any() and (before[16:] == after[16:]).all()


def test_name() -> None:
    assert GridReach(5).env_name == "GridReach-5x5"


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 1), ("min_distance", 0), ("min_distance", 29), ("horizon", 0), ("render_mode", "human")],
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        GridReach(**{name: value})


@pytest.mark.parametrize("action", [-1, 5])
def test_bad_actions(action: int) -> None:
    env = GridReach()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action={action}: must be an integer from 0 to 4"):
        env.step(action)
