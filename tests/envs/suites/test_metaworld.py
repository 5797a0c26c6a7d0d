"""Goals that are drawn and hidden, on an arm that shows which one it was given."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from amago_ray.envs.makers import check_env, tasks_of
from amago_ray.envs.suites import metaworld
from amago_ray.envs.suites.metaworld import make_metaworld, metaworld_tasks


class FakeArm(gym.Env[np.ndarray, np.ndarray]):
    """As Meta-World's: `reset` takes no seed, goals come by `set_task`. Observation: the goal and the steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Box(-1, 1, (4,), np.float32)

    def seed(self, seed: int) -> None:
        self._np_random = np.random.default_rng(seed)

    def set_task(self, task: float) -> None:
        self.goal = task

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is None
        self.steps = 0
        return np.array([self.goal, 0.0]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.array([self.goal, self.steps]), 0.5, False, False, {"success": float(action[0] > 0)}


class FakeML1:
    ENV_NAMES: ClassVar = ["reach-v3", "push-v3"]

    def __init__(self, name: str, seed: int) -> None:
        self.train_classes = {name: FakeArm}
        self.train_tasks, self.test_tasks = [10 * seed + i for i in (1, 2, 3)], [-1 - seed]


@pytest.fixture(autouse=True)
def fake_metaworld(monkeypatch: pytest.MonkeyPatch) -> None:
    package, env_dict = ModuleType("metaworld"), ModuleType("metaworld.env_dict")
    vars(package)["ML1"] = FakeML1
    vars(env_dict).update(
        ML10_V3={"train": {"reach-v3": None, "push-v3": None}, "test": {"push-v3": None}}, ML45_V3={"train": {}}
    )
    for module in (package, env_dict):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    metaworld._goals_of.cache_clear()


def test_a_rollout_has_one_goal_and_the_next_may_have_another() -> None:
    env = make_metaworld("push-v3", num_episodes=2, episode_steps=2)
    action = np.ones(4, dtype=np.float32)
    goals = []
    for rollout in range(30):
        seen = [env.reset(seed=0 if rollout == 0 else None)[0], *(env.step(action)[0] for _ in range(4))]
        assert [reading[1:].tolist() for reading in seen] == [[0, 1], [1, 0], [0, 1], [1, 0], [2, 1]]
        assert len({reading[0] for reading in seen}) == 1
        goals.append(seen[0][0])
    assert set(goals) == {1, 2, 3}
    env.reset(seed=0)
    assert [env.reset()[0][0] for _ in range(29)] == goals[1:]


def test_success_is_logged_by_episode() -> None:
    env = make_metaworld(num_episodes=2, episode_steps=2)
    env.reset(seed=0)
    infos = [env.step(np.full(4, sign, dtype=np.float32))[4] for sign in (-1, -1, 1, -1)]
    assert infos[-1] == {
        "AMAGO_LOG_METRIC Episode 1 Return": 1.0,
        "AMAGO_LOG_METRIC Episode 2 Return": 1.0,
        "AMAGO_LOG_METRIC Episode 1 Success": 0.0,
        "AMAGO_LOG_METRIC Episode 2 Success": 1.0,
    }


def test_the_test_split_of_ml1_has_goals_of_its_own() -> None:
    assert make_metaworld(split="test", goals_seed=4).reset(seed=0)[0][0] == -5
    assert make_metaworld(goals_seed=4).reset(seed=0)[0][0] in (41, 42, 43)


def test_tasks_of_a_benchmark_keep_their_names() -> None:
    tasks = metaworld_tasks("ML10", "train")
    assert [check_env(task)[2] for task in tasks] == ["ML10-reach-v3", "ML10-push-v3"]
    assert tasks_of(tasks).labels == ("", "")
    assert [check_env(task)[2] for task in metaworld_tasks("ML10", "test")] == ["ML10-push-v3"]


@pytest.mark.parametrize(
    ("name", "value"), [("benchmark", "ML9"), ("split", "val"), ("task", "fly-v3"), ("goals_seed", -1)]
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        make_metaworld(**{name: value})


def test_ml1_is_one_task() -> None:
    with pytest.raises(ValueError, match="^benchmark='ML1': must be one of 'ML10', 'ML45'"):
        metaworld_tasks("ML1")
