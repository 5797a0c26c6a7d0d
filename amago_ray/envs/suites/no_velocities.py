"""Control tasks whose velocities are hidden: what to do now depends on what was seen before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.amago_env import env_name_of
from amago_ray.envs.suites.extras import require

# Which entries of an observation are velocities, by the name of the task without its version; of MuJoCo's tasks,
# of version 5. Those of CartPole, MountainCar, Pendulum and LunarLander are the ones that rl-baselines3-zoo hides.
VELOCITIES: dict[str, tuple[int, ...]] = {
    "Acrobot": (4, 5),
    "CartPole": (1, 3),
    "LunarLander": (2, 3, 5),
    "LunarLanderContinuous": (2, 3, 5),
    "MountainCar": (1,),
    "MountainCarContinuous": (1,),
    "Pendulum": (2,),
    "Ant": tuple(range(13, 27)),
    "HalfCheetah": tuple(range(8, 17)),
    "Hopper": tuple(range(5, 11)),
    "InvertedDoublePendulum": (5, 6, 7),
    "InvertedPendulum": (2, 3),
    "Swimmer": tuple(range(3, 8)),
    "Walker2d": tuple(range(8, 17)),
}


class MaskVelocities(gym.ObservationWrapper):
    """Puts 0 in place of the entries `velocities` of a flat observation; its space, rewards and actions stay.

    The environment's name gets "NoVel" before its version: CartPoleNoVel-v1, as in rl-baselines3-zoo.
    Raises ValueError for observations that are no flat Box, and for an entry that they do not have.
    """

    def __init__(self, env: gym.Env, velocities: Sequence[int]) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"env={env}: must have flat observations, and its space is {space}")
        entries = range(space.shape[0])
        if not velocities or not all(entry in entries for entry in velocities):
            raise ValueError(f"velocities={list(velocities)!r}: must be some of {entries[0]} to {entries[-1]} of {env}")
        self._velocities = list(velocities)
        self.env_name = re.sub(r"(-v\d+)?$", r"NoVel\1", env_name_of(env), count=1)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        masked = np.array(observation)
        masked[self._velocities] = 0
        return masked


@gin.configurable
def make_no_velocities(env_id: str = "CartPole-v1", velocities: Sequence[int] | None = None, **kwargs: Any) -> gym.Env:
    """A control task under `MaskVelocities`.

    env_id: of classic control, Box2D or MuJoCo, such as "Pendulum-v1" or "Hopper-v5". velocities: entries of its
    observation; None takes those that `VELOCITIES` has for it. kwargs: as for `gymnasium.make`.

    Raises ModuleNotFoundError where a package is missing, and ValueError for an unlisted task without `velocities`.
    Source: "CartPoleNoVel" and its like of rl-baselines3-zoo; Meng et al. 2021, arXiv 2102.12344, for MuJoCo.
    """
    name, _, version = env_id.rpartition("-")
    if velocities is None and name not in VELOCITIES:
        raise ValueError(f"env_id={env_id!r}: must be one of {', '.join(VELOCITIES)}, or velocities must be given")
    spec = gym.spec(env_id)
    if ".mujoco." in str(spec.entry_point):
        require("mujoco", "mujoco")
        if velocities is None and version != "v5":
            raise ValueError(f"env_id={env_id!r}: must be of version v5, or velocities must be given")
    if ".box2d." in str(spec.entry_point):
        require("Box2D", "box2d")
    return MaskVelocities(gym.make(env_id, **kwargs), VELOCITIES[name] if velocities is None else velocities)
