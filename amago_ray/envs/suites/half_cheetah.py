"""HalfCheetah whose speed or direction is a task that only rewards tell: the meta-learning problems of MAML and RL²."""

from __future__ import annotations

from typing import Any, Literal, get_args

import gin
import gymnasium as gym
import numpy as np

from amago_ray.envs.builtin.arguments import check_choice, check_number
from amago_ray.envs.suites.extras import require
from amago_ray.envs.suites.trials import Trials, is_same_task

Task = Literal["velocity", "direction"]

CONTROL_COST = 0.05  # times the squared action


class CheetahTask(gym.Wrapper):
    """A task drawn at each `reset`, unless it asks for the same; nothing of the observation tells it.

    task "velocity": a speed drawn uniformly from 0 to `max_velocity`; reward -|x_velocity - speed|. "direction":
    forward or backward, equally likely; reward x_velocity times 1 or -1. Either way less 0.05 times the squared action.

    env: one whose `info` has "x_velocity"; it must not end by itself. Raises ValueError for an argument out of range.
    Source: Finn et al. 2017, MAML, arXiv 1703.03400, section 5.3 (max_velocity 2, episodes of 200 steps).
    """

    def __init__(self, env: gym.Env, task: Task = "velocity", max_velocity: float = 2.0) -> None:
        super().__init__(env)
        check_choice("task", task, get_args(Task))
        self.task = task
        self.max_velocity = check_number("max_velocity", max_velocity, 0.0, 1e3)

    @property
    def env_name(self) -> str:
        return f"HalfCheetah-{self.task}"

    @property
    def goal(self) -> float:
        """The speed that is wanted, or 1 for forward and -1 for backward."""
        return self._goal

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The start of an episode, of a new task or (see `Trials`) of the same one."""
        observation, info = self.env.reset(seed=seed)
        if not is_same_task(options):
            draw = float(self.np_random.random())
            self._goal = self.max_velocity * draw if self.task == "velocity" else (1.0 if draw < 0.5 else -1.0)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = self.env.step(action)
        velocity = float(info["x_velocity"])
        reward = -abs(velocity - self._goal) if self.task == "velocity" else self._goal * velocity
        return observation, reward - CONTROL_COST * float(np.square(action).sum()), terminated, truncated, info


@gin.configurable
def make_half_cheetah(
    task: Task = "velocity", max_velocity: float = 2.0, num_episodes: int = 2, episode_steps: int = 200, **kwargs: Any
) -> gym.Env:
    """gymnasium's HalfCheetah-v5 under a `CheetahTask` and `Trials`, which say what the arguments mean.

    kwargs: as for `gymnasium.make`. Raises ModuleNotFoundError without the package mujoco.
    """
    require("mujoco", "mujoco")
    env = gym.make("HalfCheetah-v5", max_episode_steps=-1, **kwargs)  # no limit: Trials counts
    return Trials(CheetahTask(env, task, max_velocity), num_episodes, episode_steps)
