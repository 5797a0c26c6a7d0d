"""What EnvPool is asked for, and under which name its environments run."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.vector import SyncVectorEnv

from amago_ray.envs.makers import check_env, make_pool
from amago_ray.envs.suites.envpool import make_envpool


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `envpool.make_gymnasium` was given, which builds as many CartPoles."""
    calls: list[dict[str, Any]] = []

    def make_gymnasium(task_id: str, num_envs: int, **kwargs: Any) -> SyncVectorEnv:
        calls.append({"task_id": task_id, "num_envs": num_envs, **kwargs})
        return SyncVectorEnv([lambda: gym.make("CartPole-v1")] * num_envs)

    module = ModuleType("envpool")
    vars(module)["make_gymnasium"] = make_gymnasium
    monkeypatch.setitem(sys.modules, "envpool", module)
    return calls


def test_a_worker_gets_its_share_with_one_thread_and_a_seed_of_its_own(asked: list[dict[str, Any]]) -> None:
    for first_env in (0, 3):
        pool = make_pool((make_envpool, {"env_id": "Pong-v5", "stack_num": 1}), num_envs=3, first_env=first_env, seed=7)
        pool.close()
    one, other = asked
    assert one["seed"] != other["seed"]
    assert one == {"task_id": "Pong-v5", "num_envs": 3, "seed": one["seed"], "num_threads": 1, "stack_num": 1}


def test_metrics_are_grouped_by_its_id(asked: list[dict[str, Any]]) -> None:
    assert check_env((make_envpool, {"env_id": "CartPole-v1", "num_threads": 2}))[2] == "CartPole-v1"
    assert asked[0]["num_threads"] == 2


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="^num_envs=0: must be"):
        make_envpool(num_envs=0)
