"""Names of environments: the outermost one given, asked again at every reset, and its errors are told."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from amago_ray.envs.amago_env import AMAGOEnv, env_name_of, name_before_reset, names_its_own_tasks
from amago_ray.envs.makers import check_env, make_pool


class Late(gym.Env):
    """Knows its level, which is its name, only after a reset."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    @property
    def env_name(self) -> str:
        return f"level {self.level}"

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        self.level = 3
        return 0, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict]:
        return 1, 1.0, True, False, {}


def test_a_name_that_is_known_late_is_asked_for_after_the_reset() -> None:
    for make in (Late, lambda: gym.wrappers.TimeLimit(Late(), 5)):
        pool = make_pool(make, 2, 0, seed=0)
        assert pool.env_names == ["Late"] * 2
        pool.reset()
        assert pool.env_names == ["level 3"] * 2


def test_an_error_in_a_name_is_told() -> None:
    def misspelt() -> gym.Env:
        env = gym.make("CartPole-v1")
        return AMAGOEnv(env, lambda: env.unwrapped.levl)

    assert name_before_reset(misspelt()) == "CartPoleEnv"
    with pytest.raises(AttributeError, match="levl"):
        env_name_of(misspelt())
    with pytest.raises(ValueError, match="failed with AttributeError: .*levl"):
        check_env(misspelt)


def test_no_name_leaves_that_of_the_environment() -> None:
    assert env_name_of(AMAGOEnv(gym.make("CartPole-v1"))) == "CartPole-v1"
    assert env_name_of(AMAGOEnv(AMAGOEnv(Late(), "inner"))) == "inner"


def test_which_environments_name_their_own_tasks() -> None:
    class Named(Late):
        env_name = "fixed"  # type: ignore[assignment]

    assert names_its_own_tasks(Late()) and names_its_own_tasks(AMAGOEnv(Late(), lambda: "x"))
    assert names_its_own_tasks(AMAGOEnv(Late()))
    for env in (AMAGOEnv(Late(), "x"), Named(), gym.make("CartPole-v1")):
        assert not names_its_own_tasks(env)
    assert env_name_of(Named()) == "fixed"
