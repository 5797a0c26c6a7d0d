"""Which entries are velocities, on tasks with entries as DeepMind's suite names them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from amago_ray.envs.makers import check_env
from amago_ray.envs.suites.dm_control import IS_VELOCITY, make_dm_control


class FakeTask(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """Entries of the names that it is given, all ones."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.observation_space = spaces.Dict({name: spaces.Box(-np.inf, np.inf, (2,), np.float64) for name in names})
        self.action_space = spaces.Box(-1, 1, (1,), np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        return {name: np.ones(2) for name in self.observation_space.spaces}, {}  # type: ignore[attr-defined]

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.5, False, False, {}


@pytest.fixture(autouse=True)
def fake_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dm_control", "shimmy"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for task, names in (("cart-swingup", ("position", "velocity")), ("rock-lie", ("position",))):
        id = f"dm_control/{task}-v0"
        spec = gym.envs.registration.EnvSpec(id, entry_point=FakeTask, kwargs={"names": names}, max_episode_steps=4)
        monkeypatch.setitem(gym.registry, id, spec)


def test_with_and_without_velocities() -> None:
    spec, _, name = check_env((make_dm_control, {"task": "cart-swingup"}))
    assert (sorted(spec), name) == (["position", "velocity"], "dm_control/cart-swingup-v0")
    spec, _, name = check_env((make_dm_control, {"task": "cart-swingup", "hide_velocities": True}))
    assert (sorted(spec), name) == (["position"], "dm_control/cart-swingupNoVel-v0")


def test_names_of_velocities() -> None:
    velocities = {
        *("velocity", "joint_velocites", "body_velocities", "torso_com_velocity", "arm_vel", "box_vel", "com_velocity")
    }
    others = {"position", "orientations", "egocentric_state", "ball_state", "touch", "level", "imu", "arm_pos"}
    assert {name for name in velocities | others if IS_VELOCITY.search(name)} == velocities


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="^hide_velocities=True: must be False for rock-lie, of which no entry is"):
        make_dm_control("rock-lie", hide_velocities=True)
    with pytest.raises(ValueError, match="^hide_velocities=1: must be True or False"):
        make_dm_control("cart-swingup", hide_velocities=1)  # type: ignore[arg-type]
