"""The rules of NiTMaze, one by one, as section 4.1 of arXiv 2307.03864 has them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import amago_ray.envs.builtin  # noqa: F401 - registers the ids
from amago_ray.envs.builtin.ni_tmaze import NiTMaze
from amago_ray.envs.builtin.tmaze import DOWN, LEFT, RIGHT, UP


def with_cue(cue: int, **kwargs: Any) -> tuple[NiTMaze, np.ndarray]:
    """An environment that was reset until its cue says up (1) or down (-1), and its first observation."""
    env = NiTMaze(**kwargs)
    observation, _ = env.reset(seed=0)
    while env._goal != (UP if cue == 1 else DOWN):
        observation, _ = env.reset()
    return env, observation


def play(env: NiTMaze, actions: Iterable[int]) -> list[tuple[Any, ...]]:
    return [env.step(action) for action in actions]


@pytest.mark.parametrize("cue", [1, -1])
@pytest.mark.parametrize("length", [1, 2, 50])
def test_passive_optimum_is_one_after_length_plus_one_steps(length: int, cue: int) -> None:
    env, first = with_cue(cue, corridor_length=length)
    assert first.tolist() == [0, cue]
    steps = play(env, [RIGHT] * length + [UP if cue == 1 else DOWN])
    assert [reward for _, reward, *_ in steps] == [0.0] * length + [1.0]
    assert [o.tolist() for o, *_ in steps] == [[0, 0]] * (length - 1) + [[1, 0], [1, cue]]
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * length + [True]
    assert steps[-1][4] == {"AMAGO_LOG_METRIC Success": 1.0}


@pytest.mark.parametrize("cue", [1, -1])
def test_active_optimum_is_one_too(cue: int) -> None:
    env, first = with_cue(cue, corridor_length=4, active=True)
    assert first.tolist() == [0, 0]
    steps = play(env, [LEFT] + [RIGHT] * 5 + [UP if cue == 1 else DOWN])
    assert [reward for _, reward, *_ in steps] == [0.0] * 6 + [1.0]
    assert [o.tolist() for o, *_ in steps] == [[0, cue], *[[0, 0]] * 4, [1, 0], [1, cue]]
    assert steps[-1][2:] == (True, False, {"AMAGO_LOG_METRIC Success": 1.0})


def test_penalty_is_one_over_length_for_every_step_behind_schedule() -> None:
    assert NiTMaze(50).penalty == NiTMaze(50, active=True).penalty == -1 / 50
    env, _ = with_cue(1, corridor_length=4)
    steps = play(env, [RIGHT, LEFT, RIGHT, RIGHT, UP])
    assert [reward for _, reward, *_ in steps] == [0, -0.25, -0.25, -0.25, 0]
    # The worst policy: L penalties.
    assert sum(reward for _, reward, *_ in play(with_cue(1, corridor_length=4)[0], [LEFT] * 5)) == -1.0
    # Active: the two steps to the oracle and back are the slack of those who do not take them.
    env, _ = with_cue(1, corridor_length=2, active=True, penalty=-0.5)
    assert [reward for _, reward, *_ in play(env, [UP, UP, UP, RIGHT, RIGHT])] == [0, 0, -0.5, -0.5, 0]


def test_only_the_place_at_the_last_step_counts_and_arms_can_be_left() -> None:
    for last, reward in ((UP, 1.0), (DOWN, 0.0), (LEFT, 0.0)):
        env, _ = with_cue(1, corridor_length=1, active=True)
        steps = play(env, [RIGHT, DOWN, UP, last])
        assert [o.tolist() for o, *_ in steps[:3]] == [[1, 0], [1, -1], [1, 0]]
        assert [terminated for _, _, terminated, _, _ in steps] == [False] * 3 + [True]
        assert steps[-1][1] == reward
    env, _ = with_cue(1, corridor_length=1, active=True)
    assert play(env, [RIGHT, UP, LEFT, RIGHT])[-1][1] == 1.0  # sideways moves in an arm lead nowhere


def test_the_cue_is_shown_once() -> None:
    env, first = with_cue(-1, corridor_length=5)
    assert first.tolist() == [0, -1]
    assert [o.tolist() for o, *_ in play(env, [LEFT, RIGHT, LEFT])] == [[0, 0]] * 3
    assert abs(env.reset()[0][1]) == 1


@pytest.mark.parametrize("active", [False, True])
def test_no_memoryless_policy_beats_a_coin(active: bool) -> None:
    """Tries every deterministic map from the observations that exist to actions."""
    views = [(0, 0), (0, 1), (0, -1), (1, 0), (1, 1), (1, -1)]
    best = -np.inf
    for actions in itertools.product(range(4), repeat=len(views)):
        policy = dict(zip(views, actions))
        returns = []
        for cue in (1, -1):
            env = NiTMaze(2, active=active)
            observation, _ = env.reset(seed=0)
            env._goal, env._cue_seen = (UP if cue == 1 else DOWN), False
            observation, total, over = env._observe(), 0.0, False
            while not over:
                observation, reward, over, *_ = env.step(policy[tuple(observation.tolist())])
                total += reward
            returns.append(total)
        best = max(best, float(np.mean(returns)))
    assert best == 0.5


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.filterwarnings("error")
def test_follows_gymnasium(active: bool) -> None:
    check_env(gym.make("amago_ray/NiTMaze-v0", active=active, render_mode="rgb_array").unwrapped)


def test_name() -> None:
    assert NiTMaze(100).env_name == "NiTMaze-Passive-100"
    assert NiTMaze(20, active=True).env_name == "NiTMaze-Active-20"


@pytest.mark.parametrize("action", [-1, 4])
def test_bad_actions(action: int) -> None:
    env = NiTMaze()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action={action}: must be an integer from 0 to 3"):
        env.step(action)
