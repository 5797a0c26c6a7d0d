"""The rules of TabularMDP, one by one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import amago_ray.envs.builtin  # noqa: F401 - registers the ids
from amago_ray.envs.builtin.tabular_mdp import TabularMDP


def test_episodes_begin_in_state_0_and_the_last_one_terminates() -> None:
    env = TabularMDP(num_episodes=3, episode_steps=4)
    assert env.reset(seed=0)[0].tolist() == [0, 1]
    steps = [env.step(step % 5) for step in range(12)]
    assert [int(observation[1]) for observation, *_ in steps] == [0, 0, 0, 1] * 3
    assert [int(steps[end][0][0]) for end in (3, 7, 11)] == [0, 0, 0]
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * 11 + [True]
    assert not any(truncated for _, _, _, truncated, _ in steps)


def test_rewards_and_next_states_follow_the_drawn_tables() -> None:
    env = TabularMDP(3, 2, num_episodes=30_000, episode_steps=2)
    state = int(env.reset(seed=2)[0][0])
    rewards: dict[tuple[int, int], list[float]] = {}
    successors = np.zeros((2, 3))
    for step in range(60_000):
        action = step // 2 % 2
        observation, reward, *_ = env.step(action)
        rewards.setdefault((state, action), []).append(reward)
        if step % 2 == 0:
            successors[action, observation[0]] += 1
        state = int(observation[0])
    for pair, found in rewards.items():
        assert np.mean(found) == pytest.approx(env.mean_rewards[pair], abs=5 / np.sqrt(len(found)))
        assert np.std(found) == pytest.approx(1.0, abs=5 / np.sqrt(len(found)))
    np.testing.assert_allclose(successors / 15_000, env.transitions[0], atol=0.02)


def test_tables_are_drawn_as_the_paper_says() -> None:
    env = TabularMDP(4, 3)
    env.reset(seed=0)
    means, chances = [], []
    for _ in range(400):
        env.reset()
        means.append(env.mean_rewards)
        chances.append(env.transitions)
    assert np.shape(means) == (400, 4, 3) and np.shape(chances) == (400, 4, 3, 4)
    assert np.mean(means) == pytest.approx(1.0, abs=0.06)
    assert np.std(means) == pytest.approx(1.0, abs=0.06)
    np.testing.assert_allclose(np.sum(chances, axis=3), 1.0)
    # Of four entries from the flat Dirichlet each is Beta(1, 3): mean 1/4, variance 3/80.
    assert np.mean(chances) == pytest.approx(1 / 4)
    assert np.var(chances) == pytest.approx(3 / 80, rel=0.05)


def test_random_actions_earn_what_the_paper_says() -> None:
    """Table 2 of arXiv 1611.02779, column Random: 100.1 in 10 episodes."""
    env = TabularMDP()
    env.reset(seed=0)
    returns = []
    for _ in range(150):
        env.reset()
        returns.append(sum(env.step(env.np_random.integers(5))[1] for _ in range(100)))
    assert np.mean(returns) == pytest.approx(100.0, abs=5.0)


def test_the_last_episode_is_logged_without_its_luck() -> None:
    env = TabularMDP(num_episodes=2, episode_steps=3)
    state = int(env.reset(seed=0)[0][0])
    means = []
    for step in range(6):
        means.append(env.mean_rewards[state, step % 5])
        observation, *_, info = env.step(step % 5)
        assert bool(info) == (step == 5)
        state = int(observation[0])
    assert info == {"AMAGO_LOG_METRIC Last Episode Mean Reward": pytest.approx(np.mean(means[3:]))}


def test_same_seed_same_rollout() -> None:
    def rollout(seed: int) -> list[Any]:
        env = TabularMDP()
        rows: list[Any] = [env.reset(seed=seed)[0].tolist()]
        for step in range(100):
            observation, *rest = env.step(step % 5)
            assert env.observation_space.contains(observation)
            rows.append((observation.tolist(), *rest))
        return rows

    assert rollout(5) == rollout(5) != rollout(6)


@pytest.mark.filterwarnings("error")
def test_follows_gymnasium() -> None:
    check_env(gym.make("amago_ray/TabularMDP-v0").unwrapped)


def test_name() -> None:
    assert TabularMDP(num_episodes=25).env_name == "TabularMDP-10x5-n25"


@pytest.mark.parametrize(
    ("name", "value"), [("num_states", 1), ("num_actions", 1.0), ("num_episodes", 0), ("episode_steps", 0)]
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        TabularMDP(**{name: value})


@pytest.mark.parametrize("action", [-1, 5])
def test_bad_actions(action: int) -> None:
    env = TabularMDP()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action={action}: must be an integer from 0 to 4"):
        env.step(action)
