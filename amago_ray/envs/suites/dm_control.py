"""DeepMind's control suite, through shimmy, with or without its velocities."""

from __future__ import annotations

import re
from typing import Any

import gin
import gymnasium as gym
from gymnasium import spaces
from gymnasium.wrappers import FilterObservation

from amago_ray.envs.amago_env import AMAGOEnv
from amago_ray.envs.builtin.arguments import check_flag
from amago_ray.envs.suites.extras import require

EXTRA = "dm-control"
IS_VELOCITY = re.compile(r"veloci|_vel$")  # "velocity", "body_velocities", "joint_velocites", "arm_vel"


@gin.configurable
def make_dm_control(task: str = "cartpole-swingup", hide_velocities: bool = False, **kwargs: Any) -> gym.Env:
    """A task of the suite: Dict observations with an entry for each of its sensors, 1000 steps, rewards from 0 to 1.

    task: domain and task, as in the id dm_control/<task>-v0. hide_velocities: leave out the entries that are
    velocities, by their names; the quadruped's "egocentric_state" and the "ball_state" hold others, which stay. The
    name that metrics are grouped by gets "NoVel" before its version. kwargs: as for `gymnasium.make`.

    Raises ModuleNotFoundError without the packages shimmy and dm_control, ValueError for a task without velocities.
    Source: Tassa et al. 2018, arXiv 1801.00690.
    """
    require("dm_control", EXTRA)
    gym.register_envs(require("shimmy", EXTRA))
    env = gym.make(f"dm_control/{task}-v0", **kwargs)
    if not check_flag("hide_velocities", hide_velocities):
        return env
    assert isinstance(env.observation_space, spaces.Dict)
    kept = [key for key in env.observation_space.spaces if not IS_VELOCITY.search(key)]
    if len(kept) == len(env.observation_space.spaces):
        raise ValueError(f"hide_velocities=True: must be False for {task}, of which no entry is a velocity")
    return AMAGOEnv(FilterObservation(env, kept), f"dm_control/{task}NoVel-v0")
