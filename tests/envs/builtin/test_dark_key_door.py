"""The rules of DarkKeyDoor, one by one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import amago_ray.envs.builtin  # noqa: F401 - registers the ids
from amago_ray.envs.builtin.dark_key_door import DarkKeyDoor
from amago_ray.envs.builtin.grid import DOWN, LEFT, RIGHT, STAY, UP

Cell = tuple[int, int]


def cell_of(env: DarkKeyDoor, observation: np.ndarray) -> Cell:
    x, y = np.rint(observation[:2] * env.size).astype(int).tolist()
    return x, y


def walk(start: Cell, goal: Cell, x_first: bool = True) -> list[int]:
    """Moves from one cell to another along an L."""
    dx, dy = goal[0] - start[0], goal[1] - start[1]
    along_x = [RIGHT if dx > 0 else LEFT] * abs(dx)
    along_y = [DOWN if dy > 0 else UP] * abs(dy)
    return along_x + along_y if x_first else along_y + along_x


def play(env: DarkKeyDoor, moves: list[int]) -> list[tuple[Any, ...]]:
    return [env.step(move) for move in moves]


def task(**kwargs: Any) -> tuple[DarkKeyDoor, Cell]:
    """An environment, and its start, whose L-shaped ways start -> key -> door do not cross the door too early."""
    env = DarkKeyDoor(**kwargs)
    start = cell_of(env, env.reset(seed=3)[0])
    while len({start[0], env.key_cell[0], env.door_cell[0], start[1], env.key_cell[1], env.door_cell[1]}) < 6:
        start = cell_of(env, env.reset()[0])
    return env, start


def test_key_then_door_gives_one_each_and_starts_the_same_task_again() -> None:
    env, start = task()
    key, door = env.key_cell, env.door_cell
    way = walk(start, key) + walk(key, door)
    for _ in range(2):
        steps = play(env, way)
        rewards = np.array([reward for _, reward, *_ in steps])
        assert rewards.nonzero()[0].tolist() == [len(walk(start, key)) - 1, len(way) - 1]
        assert rewards.sum() == 2
        assert cell_of(env, steps[-1][0]) == start
        assert [observation[2] for observation, *_ in steps] == [0] * (len(way) - 1) + [1]
        assert (env.key_cell, env.door_cell) == (key, door)
        assert not any(terminated or truncated for _, _, terminated, truncated, _ in steps)


def test_door_without_key_and_key_again_are_worth_nothing() -> None:
    env, start = task()
    steps = play(env, [*walk(start, env.door_cell), STAY])
    assert sum(reward for _, reward, *_ in steps) == 0
    env, start = task()
    steps = play(env, [*walk(start, env.key_cell), STAY, STAY])
    assert sum(reward for _, reward, *_ in steps) == 1


def test_time_out_starts_the_same_task_again_without_the_key() -> None:
    env, start = task(max_episode_steps=40)
    to_key = walk(start, env.key_cell)
    steps = play(env, to_key + [STAY] * (40 - len(to_key)))
    assert [observation[2] for observation, *_ in steps] == [0] * 39 + [1]
    assert cell_of(env, steps[-1][0]) == start
    assert play(env, to_key)[-1][1] == 1


def test_rollout_lasts_horizon_steps_and_logs_counts() -> None:
    env, start = task(horizon=100)
    way = walk(start, env.key_cell) + walk(env.key_cell, env.door_cell)
    successes = 100 // len(way)
    steps = play(env, (way * (successes + 1))[:100])
    assert [truncated for _, _, _, truncated, _ in steps] == [False] * 99 + [True]
    assert not any(terminated for _, _, terminated, _, _ in steps)
    assert all(info == {} for *_, info in steps[:-1])
    keys = sum(reward for _, reward, *_ in steps) - successes
    assert steps[-1][4] == {"AMAGO_LOG_METRIC Successes": successes, "AMAGO_LOG_METRIC Keys Found": keys}


def test_reset_draws_three_different_cells_from_everywhere() -> None:
    env = DarkKeyDoor(2)
    env.reset(seed=0)
    seen = set()
    for _ in range(300):
        start = cell_of(env, env.reset()[0])
        assert len({start, env.key_cell, env.door_cell}) == 3
        seen.add((start, env.key_cell, env.door_cell))
    assert len(seen) == 24


def test_dark_shows_only_the_position() -> None:
    env = DarkKeyDoor()
    observation, _ = env.reset(seed=0)
    assert observation.shape == (3,) and observation[2] == 1


def test_light_shows_key_and_door() -> None:
    env, start = task(dark=False)
    steps = play(env, [*walk(start, env.key_cell), STAY])
    for observation, *_ in steps:
        assert env.observation_space.contains(observation)
        np.testing.assert_allclose(observation[3:7] * 9, [*env.key_cell, *env.door_cell], rtol=1e-6)
    assert [observation[7] for observation, *_ in steps] == [0] * (len(steps) - 2) + [1, 1]


def test_light_and_dark_are_the_same_task() -> None:
    dark, light = DarkKeyDoor(), DarkKeyDoor(dark=False)
    np.testing.assert_array_equal(dark.reset(seed=5)[0], light.reset(seed=5)[0][:3])
    assert (dark.key_cell, dark.door_cell) == (light.key_cell, light.door_cell)


def test_moves_go_where_they_say() -> None:
    env = DarkKeyDoor(3)
    env.reset(seed=0)
    env._cell, env._key, env._door = 4, 2, 6
    for move, cell in [(LEFT, (0, 1)), (LEFT, (0, 1)), (UP, (0, 0)), (UP, (0, 0)), (RIGHT, (1, 0)), (DOWN, (1, 1))]:
        assert cell_of(env, env.step(move)[0]) == cell


def test_randomized_actions_are_a_permutation_that_holds_for_the_rollout() -> None:
    env = DarkKeyDoor(3, horizon=10_000, randomize_actions=True)
    env.reset(seed=0)
    permutations = set()
    for _ in range(50):
        env.reset()
        cells = []
        for action in [*range(5)] * 3:
            env._cell, env._has_key = 4, False
            env._start = env._key = env._door = 8
            cells.append(cell_of(env, env.step(action)[0]))
        assert cells[:5] == cells[5:10] == cells[10:]
        assert set(cells) == {(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)}
        permutations.add(tuple(cells))
    assert len(permutations) > 20


def test_same_seed_same_rollout_and_observations_in_the_space() -> None:
    def rollout() -> list[Any]:
        env = DarkKeyDoor(4, horizon=100, randomize_actions=True)
        rows = [env.reset(seed=7)[0].tolist()]
        for _ in range(100):
            observation, *rest = env.step(env.np_random.integers(5))
            assert env.observation_space.contains(observation)
            rows.append((observation.tolist(), *rest))
        return rows

    assert rollout() == rollout()


@pytest.mark.parametrize("kwargs", [{}, {"dark": False, "randomize_actions": True}])
@pytest.mark.filterwarnings("error")
def test_follows_gymnasium(kwargs: dict[str, Any]) -> None:
    check_env(gym.make("amago_ray/DarkKeyDoor-v0", render_mode="rgb_array", **kwargs).unwrapped)


def test_picture() -> None:
    assert DarkKeyDoor().render() is None
    env, start = task(render_mode="rgb_array")
    first = env.render()
    assert first is not None and first.dtype == np.uint8 and first.shape == (9 * 24, 9 * 24, 3)
    play(env, walk(start, env.key_cell))
    second = env.render()
    assert second is not None and (first != second).any()


def test_names() -> None:
    assert DarkKeyDoor().env_name == "DarkKeyDoor-9x9"
    assert DarkKeyDoor(5, dark=False, randomize_actions=True).env_name == "LightKeyDoor-5x5-RandomActions"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 1),
        ("max_episode_steps", 0),
        ("horizon", 1.5),
        ("dark", 1),
        ("randomize_actions", "no"),
        ("render_mode", "x"),
    ],
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        DarkKeyDoor(**{name: value})


@pytest.mark.parametrize("action", [-1, 5])
def test_bad_actions(action: int) -> None:
    env = DarkKeyDoor()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action={action}: must be an integer from 0 to 4"):
        env.step(action)
