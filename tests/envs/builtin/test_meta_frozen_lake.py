"""The rules of MetaFrozenLake, one by one."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.toy_text.frozen_lake import generate_random_map
from gymnasium.utils.env_checker import check_env

import amago_ray.envs.builtin  # noqa: F401 - registers the ids
from amago_ray.envs.builtin.grid import DOWN, LEFT, RIGHT, STAY, UP
from amago_ray.envs.builtin.meta_frozen_lake import MetaFrozenLake

OFFSETS = {LEFT: (-1, 0), DOWN: (0, 1), RIGHT: (1, 0), UP: (0, -1)}


def find(env: MetaFrozenLake, letter: str) -> list[int]:
    """Moves along a shortest path over the ice from the start to the first cell of this letter that is reached."""
    lake = env.lake
    queue: deque[tuple[int, int, list[int]]] = deque([(0, 0, [])])
    seen = {(0, 0)}
    while queue:
        x, y, path = queue.popleft()
        for move, (dx, dy) in OFFSETS.items():
            to = x + dx, y + dy
            if not (0 <= to[0] < env.size and 0 <= to[1] < env.size) or to in seen:
                continue
            if lake[to[1]][to[0]] == letter:
                return [*path, move]
            if lake[to[1]][to[0]] in "SF":
                seen.add(to)
                queue.append((*to, [*path, move]))
    raise AssertionError(f"no way to {letter} on {lake}")


def lake_with_holes(**kwargs: Any) -> MetaFrozenLake:
    """An environment that was reset to a lake with a hole that can be reached."""
    env = MetaFrozenLake(**kwargs)
    env.reset(seed=0)
    while "H" not in "".join(env.lake):
        env.reset()
    return env


def play(env: MetaFrozenLake, moves: list[int]) -> list[tuple[Any, ...]]:
    return [env.step(move) for move in moves]


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_lake_is_the_one_that_gymnasium_makes(size: int) -> None:
    env = MetaFrozenLake(size)
    for seed in range(200):
        env.reset(seed=seed)
        assert env.lake == generate_random_map(size, p=0.8, seed=seed)


def test_every_reset_makes_a_new_lake_that_can_be_crossed() -> None:
    env = MetaFrozenLake(4)
    env.reset(seed=0)
    lakes = set()
    for _ in range(100):
        env.reset()
        find(env, "G")
        lakes.add(tuple(env.lake))
    assert len(lakes) > 50


def test_goal_gives_reward_and_ends_the_attempt() -> None:
    env = MetaFrozenLake(5, k_episodes=4)
    observation, info = env.reset(seed=1)
    np.testing.assert_array_equal(observation, np.array([0, 0, 1, 0], dtype=np.float32))
    assert info == {}
    steps = play(env, find(env, "G"))
    assert [reward for _, reward, *_ in steps] == [0.0] * (len(steps) - 1) + [1.0]
    np.testing.assert_array_equal(steps[-1][0], np.array([0, 0, 1, 1 / 4], dtype=np.float32))
    assert all(observation[2] == 0 for observation, *_ in steps[:-1])
    assert not any(terminated or truncated for _, _, terminated, truncated, _ in steps)


def test_moves_go_where_they_say() -> None:
    env = MetaFrozenLake(3)
    env.reset(seed=0)
    while "H" in "".join(env.lake):
        env.reset()
    expected = [(RIGHT, 1, 0), (DOWN, 1, 1), (STAY, 1, 1), (LEFT, 0, 1), (LEFT, 0, 1), (UP, 0, 0), (UP, 0, 0)]
    for move, x, y in expected:
        observation = env.step(move)[0]
        np.testing.assert_array_equal(observation[:2], np.array([x / 3, y / 3], dtype=np.float32))


def test_hole_ends_the_attempt_without_reward() -> None:
    env = lake_with_holes(size=5, k_episodes=2)
    before = env.lake
    observation, reward, terminated, truncated, _ = play(env, find(env, "H"))[-1]
    assert reward == 0 and not terminated and not truncated
    np.testing.assert_array_equal(observation, np.array([0, 0, 1, 1 / 2], dtype=np.float32))
    assert env.lake == before


def test_recover_mode_pays_and_steps_back() -> None:
    env = lake_with_holes(size=5, recover_mode=True)
    path = find(env, "H")
    before = play(env, [STAY, *path[:-1]])[-1][0]
    observation, reward, *_ = env.step(path[-1])
    assert reward == -0.1
    np.testing.assert_array_equal(observation, before)


@pytest.mark.parametrize(("hard_mode", "limit"), [(False, 9), (True, 18)])
def test_attempts_time_out(hard_mode: bool, limit: int) -> None:
    env = MetaFrozenLake(3, k_episodes=2, hard_mode=hard_mode)
    env.reset(seed=0)
    steps = play(env, [STAY] * (2 * limit))
    assert [observation[2] for observation, *_ in steps] == [0] * (limit - 1) + [1] + [0] * limit
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * (2 * limit - 1) + [True]


def test_last_attempt_terminates_and_logs_success_by_attempt() -> None:
    env = lake_with_holes(size=4, k_episodes=3)
    goal, hole = find(env, "G"), find(env, "H")
    steps = play(env, goal + hole + goal)
    assert all(info == {} for *_, info in steps[:-1])
    observation, reward, terminated, truncated, info = steps[-1]
    assert terminated and not truncated and reward == 1
    np.testing.assert_array_equal(observation, np.array([3 / 4, 3 / 4, 0, 1], dtype=np.float32))
    assert info == {
        "AMAGO_LOG_METRIC Attempt 1 Success": 1.0,
        "AMAGO_LOG_METRIC Attempt 2 Success": 0.0,
        "AMAGO_LOG_METRIC Attempt 3 Success": 1.0,
        "AMAGO_LOG_METRIC First Attempt Success": 1.0,
        "AMAGO_LOG_METRIC Last Attempt Success": 1.0,
    }


def test_max_episode_steps_truncates_the_rollout() -> None:
    env = MetaFrozenLake(3, k_episodes=3, max_episode_steps=12)
    env.reset(seed=0)
    steps = play(env, [STAY] * 12)
    assert [truncated for _, _, _, truncated, _ in steps] == [False] * 11 + [True]
    assert not any(terminated for _, _, terminated, _, _ in steps)
    assert steps[-1][4] == {
        "AMAGO_LOG_METRIC Attempt 1 Success": 0.0,
        "AMAGO_LOG_METRIC First Attempt Success": 0.0,
    }
    env = MetaFrozenLake(3, k_episodes=1, max_episode_steps=9)
    env.reset(seed=0)
    assert play(env, [STAY] * 9)[-1][2:4] == (True, False)


def test_progress_can_be_hidden() -> None:
    env = MetaFrozenLake(3, k_episodes=3, show_k_progress=False)
    env.reset(seed=0)
    assert all(observation[3] == 0 for observation, *_ in play(env, [STAY] * 27))


def test_hard_mode_swaps_two_pairs_of_actions_in_half_of_the_rollouts() -> None:
    env = MetaFrozenLake(3, hard_mode=True)
    env.reset(seed=0)
    swapped_rollouts = 0
    for _ in range(300):
        env.reset()
        cells = []
        for action in [STAY, LEFT, DOWN, RIGHT, UP] * 2:
            env._cell, env._holes, env._attempt_steps = 4, set(), 0
            env.step(action)
            cells.append(env._cell)
        assert cells in ([4, 3, 7, 5, 1] * 2, [4, 5, 1, 3, 7] * 2)
        swapped_rollouts += cells[1] == 5
    # Standard deviation 9.
    assert 115 <= swapped_rollouts <= 185


def test_hard_mode_readings_are_noisy_by_one_cell_a_quarter_of_the_time() -> None:
    env = MetaFrozenLake(5, k_episodes=100, hard_mode=True)
    env.reset(seed=0)
    readings = [env.step(STAY)[0] for _ in range(4000)]
    moved = [round(5 * float(o[0] + o[1])) for o in readings]
    assert set(moved) == {0, 1}
    assert 0.22 < np.mean(moved) < 0.28


def test_hard_mode_ice_breaks_behind_the_agent_a_third_of_the_time_until_the_next_attempt() -> None:
    env = MetaFrozenLake(5, k_episodes=100, hard_mode=True)
    broken, moves = 0, 0
    env.reset(seed=0)
    for _ in range(3000):
        env.reset()
        before = env.lake
        env.step(STAY)
        assert env.lake == before
        env.step(env.np_random.integers(1, 5))
        if env._cell != 0 and env._attempt_steps:
            moves += 1
            if env.lake != before:
                broken += 1
                assert env.lake[0][0] == "H"
                while env._attempt_steps:
                    env.step(STAY)
                assert env.lake == before
    assert moves > 500
    assert 0.28 < broken / moves < 0.39


def test_without_hard_mode_nothing_is_random_in_a_step() -> None:
    env = MetaFrozenLake(5)
    env.reset(seed=0)
    before = env.np_random.bit_generator.state
    play(env, [RIGHT, DOWN, LEFT, UP] * 20)
    assert env.np_random.bit_generator.state == before


def test_slips_go_to_the_sides() -> None:
    env = MetaFrozenLake(3, slip_chance=0.4)
    env.reset(seed=0)
    counts = {(2, 1): 0, (1, 0): 0, (1, 2): 0}
    for _ in range(3000):
        env._holes, env._cell, env._attempt_steps = set(), 4, 0
        x, y = np.rint(env.step(RIGHT)[0][:2] * 3).astype(int).tolist()
        counts[x, y] += 1
    assert 0.57 < counts[2, 1] / 3000 < 0.63
    assert 0.17 < counts[1, 0] / 3000 < 0.23
    env._cell, env._attempt_steps = 4, 0
    assert all(env.step(STAY)[0][0] == np.float32(1 / 3) for _ in range(8))


@pytest.mark.parametrize("kwargs", [{}, {"hard_mode": True, "slip_chance": 0.2}, {"size": 3, "recover_mode": True}])
def test_same_seed_same_rollout_and_observations_in_the_space(kwargs: dict[str, Any]) -> None:
    def rollout() -> list[Any]:
        env = MetaFrozenLake(k_episodes=3, **kwargs)
        rows = [env.reset(seed=7)[0].tolist()]
        terminated = False
        while not terminated:
            observation, reward, terminated, truncated, info = env.step(env.np_random.integers(5))
            assert env.observation_space.contains(observation)
            rows.append((observation.tolist(), reward, terminated, truncated, info))
        return rows

    assert rollout() == rollout()


@pytest.mark.parametrize("kwargs", [{}, {"hard_mode": True}, {"recover_mode": True, "max_episode_steps": 20}])
@pytest.mark.filterwarnings("error")
def test_follows_gymnasium(kwargs: dict[str, Any]) -> None:
    check_env(gym.make("amago_ray/MetaFrozenLake-v0", render_mode="rgb_array", **kwargs).unwrapped)


def test_picture() -> None:
    assert MetaFrozenLake().render() is None
    env = lake_with_holes(size=4, k_episodes=3, render_mode="rgb_array")
    first = env.render()
    assert first is not None and first.dtype == np.uint8 and first.shape == (4 * 24 + 8, 4 * 24, 3)
    env.step(find(env, "G")[0])
    second = env.render()
    assert second is not None and (first != second).any()


def test_names() -> None:
    assert MetaFrozenLake(3, k_episodes=5).env_name == "MetaFrozenLake-3x3-k5"
    assert MetaFrozenLake(hard_mode=True, recover_mode=True).env_name == "MetaFrozenLake-5x5-k10-Hard-Recover"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 1),
        ("size", 4.0),
        ("k_episodes", 0),
        ("hard_mode", "yes"),
        ("recover_mode", 1),
        ("max_episode_steps", 0),
        ("show_k_progress", None),
        ("slip_chance", 1.1),
        ("slip_chance", float("nan")),
        ("render_mode", "human"),
    ],
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        MetaFrozenLake(**{name: value})


@pytest.mark.parametrize("action", [-1, 5])
def test_bad_actions(action: int) -> None:
    env = MetaFrozenLake()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action={action}: must be an integer from 0 to 4"):
        env.step(action)
