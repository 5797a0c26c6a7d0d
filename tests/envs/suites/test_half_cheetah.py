"""Tasks of speed and direction, on a body whose speed is its action."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from amago_ray.envs.suites.half_cheetah import CheetahTask
from amago_ray.envs.suites.trials import SAME_TASK


class FakeCheetah(gym.Env[np.ndarray, np.ndarray]):
    """Moves as fast as the first entry of the action says. Observation: steps since the reset."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = spaces.Box(-3, 3, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.array([self.steps], dtype=np.float64), 99.0, False, False, {"x_velocity": float(action[0])}


ACTION = np.array([1.5, -2.0], dtype=np.float32)
COST = 0.05 * (1.5**2 + 2**2)


def test_velocity_rewards_the_distance_from_the_speed_that_is_wanted() -> None:
    env = CheetahTask(FakeCheetah(), "velocity")
    env.reset(seed=0)
    assert env.step(ACTION)[1] == pytest.approx(-abs(1.5 - env.goal) - COST)


def test_direction_rewards_speed_forward_or_backward() -> None:
    env = CheetahTask(FakeCheetah(), "direction")
    env.reset(seed=0)
    seen = set()
    for _ in range(30):
        env.reset()
        assert env.step(ACTION)[1] == pytest.approx(env.goal * 1.5 - COST)
        seen.add(env.goal)
    assert seen == {1.0, -1.0}


def test_speeds_are_uniform_up_to_the_largest() -> None:
    env = CheetahTask(FakeCheetah(), "velocity", max_velocity=3.0)
    env.reset(seed=0)
    goals = []
    for _ in range(2000):
        env.reset()
        goals.append(env.goal)
    assert 0 <= min(goals) < 0.05 and 2.95 < max(goals) <= 3
    assert np.mean(goals) == pytest.approx(1.5, abs=0.08)  # four standard errors


def test_a_reset_for_the_same_task_keeps_the_speed() -> None:
    env = CheetahTask(FakeCheetah(), "velocity")
    env.reset(seed=3)
    goal = env.goal
    assert env.reset(options=SAME_TASK)[0].tolist() == [0] and env.goal == goal
    env.reset()
    assert env.goal != goal


def test_same_seed_same_task() -> None:
    goals = []
    for seed in (1, 1, 2):
        env = CheetahTask(FakeCheetah(), "velocity")
        env.reset(seed=seed)
        goals.append(env.goal)
    assert goals[0] == goals[1] != goals[2]


def test_name() -> None:
    assert CheetahTask(FakeCheetah(), "direction").env_name == "HalfCheetah-direction"


@pytest.mark.parametrize(("name", "value"), [("task", "jump"), ("max_velocity", -1.0)])
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        CheetahTask(FakeCheetah(), **{name: value})
