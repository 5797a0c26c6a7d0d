"""The rules of Bandit, one by one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import amago_ray.envs.builtin  # noqa: F401 - registers the ids
from amago_ray.envs.builtin.bandit import Bandit


def test_an_arm_pays_as_often_as_its_chance_says() -> None:
    env = Bandit(3, num_pulls=4000)
    for arm in range(3):
        env.reset(seed=arm)
        rewards = [env.step(arm)[1] for _ in range(4000)]
        assert set(rewards) <= {0.0, 1.0}
        assert np.mean(rewards) == pytest.approx(env.chances[arm], abs=0.03)  # four standard errors


def test_chances_are_uniform_and_new_at_each_reset() -> None:
    env = Bandit(5)
    env.reset(seed=0)
    chances = []
    for _ in range(400):
        env.reset()
        chances.append(env.chances)
    counts = np.histogram(chances, bins=10, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-square with 9 degrees of freedom, 0.001
    assert len(set(chances)) == 400


def test_the_last_pull_terminates_and_says_the_regret() -> None:
    env = Bandit(4, num_pulls=6)
    assert env.reset(seed=1)[0].tolist() == [1.0]
    steps = [env.step(pull % 4) for pull in range(6)]
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * 5 + [True]
    assert not any(truncated for _, _, _, truncated, _ in steps)
    assert all(observation.tolist() == [1.0] for observation, *_ in steps)
    assert all(info == {} for *_, info in steps[:-1])
    pulled = [env.chances[pull % 4] for pull in range(6)]
    assert steps[-1][4] == {"AMAGO_LOG_METRIC Regret": pytest.approx(6 * max(env.chances) - sum(pulled))}


def test_random_pulls_earn_what_the_paper_says() -> None:
    """Table 1 of arXiv 1611.02779, column Random: 5.0 of 10 pulls."""
    env = Bandit(5, 10)
    env.reset(seed=0)
    returns = []
    for _ in range(2000):
        env.reset()
        returns.append(sum(env.step(env.np_random.integers(5))[1] for _ in range(10)))
    assert np.mean(returns) == pytest.approx(5.0, abs=0.2)  # four standard errors


def test_same_seed_same_rollout() -> None:
    def rewards(seed: int) -> list[float]:
        env = Bandit(num_pulls=50)
        env.reset(seed=seed)
        return [env.step(pull % 5)[1] for pull in range(50)]

    assert rewards(3) == rewards(3) != rewards(4)


@pytest.mark.filterwarnings("error")
def test_follows_gymnasium() -> None:
    check_env(gym.make("amago_ray/Bandit-v0", num_arms=10).unwrapped)


def test_name() -> None:
    assert Bandit(10, 100).env_name == "Bandit-k10-n100"


@pytest.mark.parametrize(("name", "value"), [("num_arms", 1), ("num_arms", True), ("num_pulls", 0)])
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        Bandit(**{name: value})


@pytest.mark.parametrize("action", [-1, 5])
def test_bad_actions(action: int) -> None:
    env = Bandit()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"action={action}: must be an integer from 0 to 4"):
        env.step(action)
