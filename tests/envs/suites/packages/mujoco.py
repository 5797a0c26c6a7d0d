"""MuJoCo itself."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from amago_ray.envs.makers import check_env
from amago_ray.envs.suites import make_half_cheetah, make_no_velocities
from amago_ray.envs.suites.no_velocities import VELOCITIES

pytestmark = pytest.mark.processes  # of glfw, which looks for its library in one

TASKS = [name for name in VELOCITIES if name in ("Ant", "HalfCheetah", "Hopper", "Swimmer", "Walker2d")]


@pytest.mark.parametrize("name", [*TASKS, "InvertedPendulum", "InvertedDoublePendulum"])
def test_what_is_hidden_is_what_the_simulation_has_as_velocities(name: str) -> None:
    env = gym.make(f"{name}-v5")
    env.reset(seed=0)
    for _ in range(3):
        observation, *_ = env.step(env.action_space.sample())
    shown, held = observation[list(VELOCITIES[name])], env.unwrapped.data.qvel  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.clip(shown, -10, 10), np.clip(held, -10, 10))  # some clip what they show
    assert check_env((make_no_velocities, {"env_id": f"{name}-v5"}))[2] == f"{name}NoVel-v5"


@pytest.mark.parametrize("task", ["velocity", "direction"])
def test_half_cheetah_has_two_episodes_of_200_steps(task: str) -> None:
    env = make_half_cheetah(task)  # type: ignore[arg-type]
    first, _ = env.reset(seed=0)
    assert first.shape == (18,)
    steps = [env.step(env.action_space.sample()) for _ in range(400)]
    assert [step for step, (o, *_) in enumerate(steps, start=1) if o[-1]] == [200, 400]
    assert [truncated for *_, truncated, _ in steps] == [False] * 399 + [True]
    assert check_env((make_half_cheetah, {"task": task}))[2] == f"HalfCheetah-{task}"
