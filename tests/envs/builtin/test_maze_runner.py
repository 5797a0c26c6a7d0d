"""The rules of MazeRunner, one by one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import amago_ray.envs.builtin  # noqa: F401 - registers the ids
from amago_ray.envs.builtin import grid
from amago_ray.envs.builtin.grid import DOWN, LEFT, NUM_MOVES, RIGHT, STAY, UP
from amago_ray.envs.builtin.maze_runner import MazeRunner, distances, random_maze


def at(env: MazeRunner, x: int, y: int) -> list[float]:
    return [2 * x / (env.size - 1) - 1, 2 * y / (env.size - 1) - 1]


def in_the_open(*goals: int, start: int = 0, **kwargs: Any) -> MazeRunner:
    """A 3 x 3 room without walls, with these goals: cells in reading order."""
    env = MazeRunner(**{"size": 3, "num_goals": 3, "loops": 1.0} | kwargs)
    env.reset(seed=0)
    env._cell, env._goals = start, list(goals)
    return env


def passages(maze: tuple[tuple[int, ...], ...]) -> int:
    return sum(other != cell for cell, ways in enumerate(maze) for other in ways) // 2


def test_goals_count_in_order_only_and_the_last_one_terminates() -> None:
    env = in_the_open(2, 1, 8)
    steps = [env.step(move) for move in (RIGHT, RIGHT, LEFT, DOWN, RIGHT, DOWN)]
    assert [reward for _, reward, *_ in steps] == [0, 1, 1, 0, 0, 1]  # cell 1 was not asked for at first
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * 5 + [True]
    assert all(info == {} for *_, info in steps[:-1])
    assert steps[-1][4] == {"AMAGO_LOG_METRIC Goals Reached": 3.0, "AMAGO_LOG_METRIC Success": 1.0}


def test_the_instruction_is_what_is_still_to_be_reached() -> None:
    env = in_the_open(1, 4)
    seen = [env.step(move)[0]["instruction"].tolist() for move in (STAY, RIGHT, DOWN)]
    first, second, none = [*at(env, 1, 0), 1], [*at(env, 1, 1), 1], [0, 0, 0]
    assert seen == [[first, second, none], [second, none, none], [none, none, none]]


def test_place_and_sight() -> None:
    env = in_the_open(8, start=0)
    observation = env.step(RIGHT)[0]
    assert observation["achieved_goal"].tolist() == at(env, 1, 0)
    assert observation["observation"].tolist() == [*at(env, 1, 0), 0.5, 1, 0.5, 0]  # left, down, right, up


def test_walls_stop() -> None:
    env = MazeRunner(5, loops=0.0, maze_seed=1)
    env.reset(seed=0)
    for cell, ways in enumerate(env._neighbours):
        for move in (LEFT, DOWN, RIGHT, UP):
            env._cell, env._goals, env._reached, env._steps = cell, [-1], 0, 0
            sight = env._observe()["observation"][1 + move]
            env.step(move)
            assert env._cell == ways[move]
            assert (env._cell == cell) == (sight == 0)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_maze_without_loops_is_a_tree_and_with_all_loops_open(size: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        tree, some = random_maze(size, 0.0, rng), random_maze(size, 0.5, rng)
        assert passages(tree) == size**2 - 1
        for maze in (tree, some):
            assert distances(maze, 0).min() == 0  # -1 would be a cell that cannot be reached
            for cell, ways in enumerate(maze):
                assert all(cell in maze[other] for other in ways)
    assert random_maze(size, 1.0, rng) == grid.neighbours(size)


def test_distances_are_those_of_a_room_without_walls() -> None:
    away = distances(grid.neighbours(4), 5)
    assert away.tolist() == [abs(cell % 4 - 1) + abs(cell // 4 - 1) for cell in range(16)]


def test_goals_are_far_enough_apart_along_the_way() -> None:
    env = MazeRunner(6, num_goals=3, min_distance=6, loops=0.1)
    env.reset(seed=0)
    for _ in range(100):
        env.reset()
        for place, goal in zip([env._cell, *env._goals], env._goals):
            away = distances(env._neighbours, place)
            assert away[goal] >= min(6, away.max())


def test_fewer_goals_are_all_equally_likely() -> None:
    env = MazeRunner(3, num_goals=3, fewer_goals=True)
    env.reset(seed=0)
    counts = np.zeros(4)
    for _ in range(900):
        env.reset()
        counts[len(env._goals)] += 1
    assert counts[0] == 0
    assert ((counts[1:] - 300) ** 2 / 300).sum() < 13.8  # chi-square with 2 degrees of freedom, 0.001


def test_a_maze_is_new_at_each_reset_unless_it_has_a_seed() -> None:
    for maze_seed, expected in ((None, 5), (7, 1)):
        env = MazeRunner(6, maze_seed=maze_seed)
        env.reset(seed=0)
        mazes = set()
        for _ in range(5):
            env.reset()
            mazes.add(env._neighbours)
        assert len(mazes) == expected
    assert MazeRunner(6, maze_seed=7)._neighbours == MazeRunner(6, maze_seed=7)._neighbours


def test_truncated_at_the_horizon() -> None:
    env = in_the_open(8, 0, horizon=3)
    steps = [env.step(STAY) for _ in range(3)]
    assert [step[2:4] for step in steps] == [(False, False), (False, False), (False, True)]
    assert steps[-1][4] == {"AMAGO_LOG_METRIC Goals Reached": 0.0, "AMAGO_LOG_METRIC Success": 0.0}
    assert MazeRunner(5, num_goals=2).horizon == 40


def test_same_seed_same_rollout_and_observations_in_the_space() -> None:
    def rollout() -> list[Any]:
        env = MazeRunner(5)
        observation, _ = env.reset(seed=7)
        rows: list[Any] = []
        for step in range(30):
            assert env.observation_space.contains(observation)
            observation, *rest = env.step(step % NUM_MOVES)
            rows.append(({key: value.tolist() for key, value in observation.items()}, *rest))
        return rows

    assert rollout() == rollout()


@pytest.mark.filterwarnings("error")
def test_follows_gymnasium() -> None:
    check_env(gym.make("amago_ray/MazeRunner-v0", render_mode="rgb_array").unwrapped)


def test_picture() -> None:
    assert MazeRunner().render() is None
    env = in_the_open(2, 8, render_mode="rgb_array")
    first = env.render()
    env.step(RIGHT)
    second = env.render()
    assert first is not None and second is not None
    assert first.shape == (60, 60, 3) and (first != second).any()


def test_name() -> None:
    assert MazeRunner(7, 2).env_name == "MazeRunner-7x7-k2"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 1),
        ("num_goals", 0),
        ("fewer_goals", 1),
        ("min_distance", 0),
        ("horizon", 0),
        ("loops", 1.5),
        ("maze_seed", -1),
        ("render_mode", "x"),
    ],
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        MazeRunner(**{name: value})


@pytest.mark.parametrize("action", [-1, 5])
def test_bad_actions(action: int) -> None:
    with pytest.raises(ValueError, match=f"action={action}: must be an integer from 0 to 4"):
        in_the_open(8).step(action)
