"""dm_control and shimmy themselves."""

from __future__ import annotations

import pytest

from amago_ray.envs.makers import check_env
from amago_ray.envs.suites import make_dm_control

pytestmark = pytest.mark.processes  # of glfw, which looks for its library in one


@pytest.mark.parametrize(
    ("task", "hidden"),
    [
        ("cartpole-swingup", {"velocity"}),
        ("humanoid-run", {"velocity", "com_velocity"}),
        ("dog-run", {"joint_velocites", "torso_com_velocity"}),
        ("swimmer-swimmer6", {"body_velocities"}),
        ("manipulator-bring_ball", {"arm_vel", "object_vel"}),
    ],
)
def test_velocities_are_left_out(task: str, hidden: set[str]) -> None:
    seen, action_spec, name = check_env((make_dm_control, {"task": task}))
    left, same, other_name = check_env((make_dm_control, {"task": task, "hide_velocities": True}))
    assert set(seen) - set(left) == hidden and set(left) < set(seen) and action_spec == same
    assert (name, other_name) == (f"dm_control/{task}-v0", f"dm_control/{task}NoVel-v0")


def test_a_rollout_has_1000_steps() -> None:
    env = make_dm_control("pendulum-swingup")
    env.reset(seed=0)
    steps = 1
    while not any(env.step(env.action_space.sample())[2:4]):
        steps += 1
    assert steps == 1000
