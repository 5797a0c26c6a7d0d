"""Velocities are hidden, and nothing but velocities."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from amago_ray.envs.builtin import Identity
from amago_ray.envs.makers import check_env
from amago_ray.envs.suites.no_velocities import VELOCITIES, MaskVelocities, make_no_velocities

# What gymnasium's environments hold as their velocities, in the order of the observation.
HELD: dict[str, Callable[[Any], Any]] = {
    "Acrobot-v1": lambda env: env.state[2:],
    "CartPole-v1": lambda env: np.asarray(env.state)[[1, 3]],
    "MountainCar-v0": lambda env: env.state[1:],
    "MountainCarContinuous-v0": lambda env: env.state[1:],
    "Pendulum-v1": lambda env: env.state[1:],
}


@pytest.mark.parametrize("env_id", HELD)
def test_the_velocities_are_zero_and_all_else_is_as_it_was(env_id: str) -> None:
    plain, masked = gym.make(env_id), make_no_velocities(env_id)
    assert masked.observation_space == plain.observation_space and masked.action_space == plain.action_space
    velocities = list(VELOCITIES[env_id.rpartition("-")[0]])
    seen, hidden = plain.reset(seed=3)[0], masked.reset(seed=3)[0]
    plain.action_space.seed(3)
    for _ in range(6):
        np.testing.assert_allclose(seen[velocities], HELD[env_id](plain.unwrapped), rtol=1e-5)
        assert not hidden[velocities].any()
        np.testing.assert_array_equal(np.delete(hidden, velocities), np.delete(seen, velocities))
        action = plain.action_space.sample()
        (seen, *outcome, _), (hidden, *same, _) = plain.step(action), masked.step(action)
        assert outcome == same
    assert np.abs(seen[velocities]).min() > 0


def test_metrics_are_grouped_under_the_name_of_rl_baselines3_zoo() -> None:
    assert check_env(lambda: make_no_velocities("Pendulum-v1"))[2] == "PendulumNoVel-v1"
    assert check_env(make_no_velocities)[2] == "CartPoleNoVel-v1"
    assert MaskVelocities(Identity(), (0,)).env_name == "Identity-discreteNoVel"


def test_other_entries_can_be_named() -> None:
    env = make_no_velocities("CartPole-v1", velocities=[0], max_episode_steps=3)
    observation, _ = env.reset(seed=0)
    assert (observation == 0).tolist() == [True, False, False, False]
    assert env.spec is not None and env.spec.max_episode_steps == 3


@pytest.mark.parametrize(
    ("env_id", "extra", "module"), [("Hopper-v5", "mujoco", "mujoco"), ("LunarLander-v3", "box2d", "Box2D")]
)
def test_a_missing_package_names_the_extra(
    env_id: str, extra: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"^{module} is not installed: pip install 'amago_ray\[{extra}\]'"):
        make_no_velocities(env_id)


def test_bad_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", sys)
    with pytest.raises(ValueError, match="^env_id='Taxi-v4': must be one of Acrobot, .*or velocities must be given"):
        make_no_velocities("Taxi-v4")
    with pytest.raises(ValueError, match="^env_id='Hopper-v4': must be of version v5, or velocities"):
        make_no_velocities("Hopper-v4")
    for entries in ([4], [-1], []):
        with pytest.raises(ValueError, match=r"^velocities=\[.*\]: must be some of 0 to 3"):
            make_no_velocities("CartPole-v1", velocities=entries)
    square = gym.make("CartPole-v1")
    square.observation_space = spaces.Box(0, 1, (2, 2))
    with pytest.raises(ValueError, match="must have flat observations, and its space is Box"):
        MaskVelocities(square, (0,))
