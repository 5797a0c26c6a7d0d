"""The rules of TMaze, one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import amago_ray.envs.builtin  # noqa: F401 - registers the ids
from amago_ray.envs.builtin.tmaze import DOWN, LEFT, RIGHT, UP, TMaze


def with_cue(cue: int, **kwargs: Any) -> tuple[TMaze, np.ndarray]:
    """An environment that was reset until its cue says up (1) or down (-1), and its first observation."""
    env = TMaze(**kwargs)
    observation, _ = env.reset(seed=0)
    while env._goal != (UP if cue == 1 else DOWN):
        observation, _ = env.reset()
    return env, observation


def play(env: TMaze, actions: Iterable[int]) -> list[tuple[Any, ...]]:
    return [env.step(action) for action in actions]


@pytest.mark.parametrize("cue", [1, -1])
@pytest.mark.parametrize("length", [1, 2, 30])
def test_passive_optimum_is_exactly_one(length: int, cue: int) -> None:
    env, first = with_cue(cue, corridor_length=length)
    assert first.tolist() == [1, 0, cue]
    steps = play(env, [RIGHT] * length + [UP if cue == 1 else DOWN])
    assert sum(reward for _, reward, *_ in steps) == 1.0
    assert [observation.tolist() for observation, *_ in steps] == [[0, 0, 0]] * (length - 1) + [[0, 1, 0], [0, 0, 0]]
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * length + [True]
    assert not any(truncated for _, _, _, truncated, _ in steps)
    assert steps[-1][4] == {"AMAGO_LOG_METRIC Success": 1.0}
    assert all(info == {} for *_, info in steps[:-1])


@pytest.mark.parametrize("cue", [1, -1])
def test_wrong_turn_ends_the_rollout_for_nothing(cue: int) -> None:
    env, _ = with_cue(cue, corridor_length=5)
    steps = play(env, [RIGHT] * 5 + [DOWN if cue == 1 else UP])
    assert sum(reward for _, reward, *_ in steps) == 0.0
    assert steps[-1][2:] == (True, False, {"AMAGO_LOG_METRIC Success": 0.0})


def test_every_step_not_moving_right_costs_the_penalty() -> None:
    env, _ = with_cue(1, corridor_length=5, penalty=-0.25)
    steps = play(env, [LEFT, UP, DOWN, RIGHT, LEFT, RIGHT])
    assert [reward for _, reward, *_ in steps] == [-0.25, -0.25, -0.25, 0, -0.25, 0]
    assert steps[-1][2:] == (True, False, {"AMAGO_LOG_METRIC Success": 0.0})
    assert [o[2] for o, *_ in steps] == [1, 1, 1, 0, 1, 0]
    env, _ = with_cue(1, corridor_length=2, active=True, penalty=-0.25)
    steps = play(env, [RIGHT, RIGHT, RIGHT, LEFT])
    assert [reward for _, reward, *_ in steps] == [0, 0, -0.25, -0.25]


def test_default_penalty_is_one_over_the_steps_of_the_rollout() -> None:
    assert TMaze(30).penalty == -1 / 31
    assert TMaze(30, active=True).penalty == -1 / 33


@pytest.mark.parametrize("cue", [1, -1])
def test_active_cue_is_one_step_to_the_left(cue: int) -> None:
    env, first = with_cue(cue, corridor_length=4, active=True)
    assert first.tolist() == [1, 0, 0]
    steps = play(env, [LEFT, RIGHT, RIGHT, RIGHT, RIGHT, RIGHT, UP if cue == 1 else DOWN])
    assert [o.tolist() for o, *_ in steps] == [
        [0, 0, cue],
        [1, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
        [0, 0, 0],
        [0, 1, 0],
        [0, 0, 0],
    ]
    assert sum(reward for _, reward, *_ in steps) == 1.0 + env.penalty
    assert steps[-1][2:] == (True, False, {"AMAGO_LOG_METRIC Success": 1.0})


@pytest.mark.parametrize("active", [False, True])
def test_a_deadline_that_is_the_task_terminates(active: bool) -> None:
    """A truncation is bootstrapped from: one step from the junction, a wasted step would seem to cost nothing."""
    env = TMaze(4, active=active)
    env.reset(seed=0)
    steps = play(env, [LEFT] * env.horizon)
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * (env.horizon - 1) + [True]
    assert not any(truncated for _, _, _, truncated, _ in steps)
    assert steps[-1][4] == {"AMAGO_LOG_METRIC Success": 0.0}
    assert sum(reward for _, reward, *_ in steps) == pytest.approx(-1.0)


@pytest.mark.parametrize("active", [False, True])
def test_no_memoryless_policy_beats_a_coin(active: bool) -> None:
    """Tries every deterministic map from the five observations that exist to actions."""
    views = [(1, 0, 1), (1, 0, -1), (0, 0, 0), (0, 1, 0)]
    if active:
        views = [(1, 0, 0), (0, 0, 1), (0, 0, -1), (0, 0, 0), (0, 1, 0)]
    envs = [with_cue(cue, corridor_length=2, active=active) for cue in (1, -1)]
    best = -np.inf
    for actions in itertools.product(range(4), repeat=len(views)):
        policy = dict(zip(views, actions))
        returns = []
        for env, first in envs:
            env._x, env._steps, env._turn = env._start, 0, None
            observation, total, over = first, 0.0, False
            while not over:
                observation, reward, terminated, truncated, _ = env.step(policy[tuple(observation.tolist())])
                total, over = total + reward, terminated or truncated
            returns.append(total)
        best = max(best, float(np.mean(returns)))
    assert best == 0.5


def test_cues_are_even() -> None:
    env = TMaze(3)
    env.reset(seed=0)
    assert 0.44 < np.mean([env.reset()[0][2] > 0 for _ in range(1000)]) < 0.56


def test_same_seed_same_cues() -> None:
    def cues() -> list[float]:
        env = TMaze(3)
        return [env.reset(seed=9)[0][2]] + [env.reset()[0][2] for _ in range(30)]

    assert cues() == cues()


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.filterwarnings("error")
def test_follows_gymnasium(active: bool) -> None:
    check_env(gym.make("amago_ray/TMaze-v0", render_mode="rgb_array", active=active).unwrapped)


def test_picture() -> None:
    assert TMaze().render() is None
    env = TMaze(5, render_mode="rgb_array")
    env.reset(seed=0)
    pictures = [env.render()] + [(env.step(action), env.render())[1] for action in [RIGHT] * 5 + [UP]]
    for before, after in itertools.pairwise(pictures):
        assert before is not None and before.dtype == np.uint8 and before.shape == (3 * 16, 6 * 16, 3)
        assert (before != after).any()


def test_names() -> None:
    assert TMaze().env_name == "TMaze-Passive-30"
    assert TMaze(5, active=True).env_name == "TMaze-Active-5"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("corridor_length", 0),
        ("active", 1),
        ("penalty", 0.1),
        ("penalty", float("-inf")),
        ("penalty", "small"),
        ("render_mode", "human"),
    ],
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        TMaze(**{name: value})


@pytest.mark.parametrize("action", [-1, 4])
def test_bad_actions(action: int) -> None:
    env = TMaze()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action={action}: must be an integer from 0 to 3"):
        env.step(action)
