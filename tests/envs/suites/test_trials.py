"""Episodes of one task follow one another within a rollout, on an environment that shows its task."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from amago_ray.envs.suites.trials import Trials, is_same_task

STAY, END, SUCCEED = range(3)


class FakeTask(gym.Env[np.ndarray, int]):
    """Observation: the task, counted up at each reset that draws one, and the episode's steps. Reward: 1 a step."""

    def __init__(self, with_success: bool = True) -> None:
        self.observation_space = spaces.Box(0, 99, (2,), np.float64)
        self.action_space = spaces.Discrete(3)
        self.task, self.with_success = 0, with_success

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.task += not is_same_task(options)
        self.steps = 0
        return np.array([self.task, 0.0]), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        info = {"success": float(action == SUCCEED)} if self.with_success else {"anything": 1}
        return np.array([self.task, self.steps], dtype=np.float64), 1.0, action == END, False, info


def test_episodes_follow_one_another_for_one_task() -> None:
    env = Trials(FakeTask(), num_episodes=2, episode_steps=3)
    for task in (1, 2):
        first, _ = env.reset(seed=3)
        assert env.observation_space.contains(first) and first.tolist() == [task, 0, 1]
        steps = [env.step(action) for action in (STAY, SUCCEED, STAY, STAY, STAY, STAY)]
        seen = [[1, 0], [2, 0], [0, 1], [1, 0], [2, 0], [3, 1]]
        assert [o.tolist() for o, *_ in steps] == [[task, *rest] for rest in seen]
        assert [step[1:4] for step in steps] == [(1.0, False, False)] * 5 + [(1.0, False, True)]
        assert all(info == {} for *_, info in steps[:-1])
        assert steps[-1][4] == {
            "AMAGO_LOG_METRIC Episode 1 Return": 3.0,
            "AMAGO_LOG_METRIC Episode 2 Return": 3.0,
            "AMAGO_LOG_METRIC Episode 1 Success": 1.0,
            "AMAGO_LOG_METRIC Episode 2 Success": 0.0,
        }


def test_what_the_environment_ends_is_an_episode_and_no_rollout() -> None:
    env = Trials(FakeTask(with_success=False), num_episodes=2, episode_steps=3)
    env.reset(seed=0)
    steps = [env.step(action) for action in (STAY, END, END)]
    assert [o.tolist() for o, *_ in steps] == [[1, 1, 0], [1, 0, 1], [1, 1, 1]]
    assert [step[2:4] for step in steps] == [(False, False), (False, False), (False, True)]
    assert steps[-1][4] == {"AMAGO_LOG_METRIC Episode 1 Return": 2.0, "AMAGO_LOG_METRIC Episode 2 Return": 1.0}


@pytest.mark.parametrize("name", ["num_episodes", "episode_steps"])
def test_bad_arguments(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=0: must be"):
        Trials(FakeTask(), **{name: 0})


def test_observations_that_are_not_flat() -> None:
    task = FakeTask()
    task.observation_space = spaces.Box(0, 1, (2, 2))
    with pytest.raises(ValueError, match="must have flat observations, and its space is Box"):
        Trials(task)
