"""HalfCheetah whose speed or direction is a task that only rewards tell: the meta-learning problems of MAML and RL²."""

from __future__ import annotations

from typing import Any, Literal, get_args

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.builtin.arguments import check_choice, check_integer, check_number
from amago_ray.envs.suites.extras import require

Task = Literal["velocity", "direction"]

CONTROL_COST = 0.05  # times the squared action


class CheetahTask(gym.Wrapper):
    """A task drawn at each `reset`, and `num_episodes` episodes of `episode_steps` steps for it within one rollout.

    task "velocity": a speed drawn uniformly from 0 to `max_velocity`; reward -|x_velocity - speed|. "direction":
    forward or backward, equally likely; reward x_velocity times 1 or -1. Either way less 0.05 times the squared action.

    The observation has one more entry at its end, 1 at the first reading of an episode and after the last one, else 0;
    nothing of it tells the task. The step that ends an episode returns the first observation of the next; the end of
    the last one truncates the rollout.
    `info` at the end of a rollout has "AMAGO_LOG_METRIC Episode i Return" of every episode.

    env: one whose `info` has "x_velocity", with flat observations; it must not end by itself.
    Raises ValueError for an argument out of range, and for an environment of other observations.
    Source: Finn et al. 2017, MAML, arXiv 1703.03400, section 5.3 (max_velocity 2, episodes of 200 steps).
    """

    def __init__(
        self,
        env: gym.Env,
        task: Task = "velocity",
        max_velocity: float = 2.0,
        num_episodes: int = 2,
        episode_steps: int = 200,
    ) -> None:
        super().__init__(env)
        check_choice("task", task, get_args(Task))
        self.task = task
        self.max_velocity = check_number("max_velocity", max_velocity, 0.0, 1e3)
        self.num_episodes = check_integer("num_episodes", num_episodes, at_least=1)
        self.episode_steps = check_integer("episode_steps", episode_steps, at_least=1)
        inner = env.observation_space
        if not isinstance(inner, spaces.Box) or len(inner.shape) != 1:
            raise ValueError(f"env={env}: must have flat observations, and its space is {inner}")
        low, high = np.append(inner.low, 0.0), np.append(inner.high, 1.0)
        self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    @property
    def env_name(self) -> str:
        return f"HalfCheetah-{self.task}"

    @property
    def goal(self) -> float:
        """The speed that is wanted, or 1 for forward and -1 for backward."""
        return self._goal

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new task and its first episode."""
        observation, _ = self.env.reset(seed=seed, options=options)
        draw = float(self.np_random.random())
        self._goal = self.max_velocity * draw if self.task == "velocity" else (1.0 if draw < 0.5 else -1.0)
        self._steps = 0
        self._returns = [0.0]
        return self._observe(observation), {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        observation, _, _, _, info = self.env.step(action)
        velocity = float(info["x_velocity"])
        reward = -abs(velocity - self._goal) if self.task == "velocity" else self._goal * velocity
        reward -= CONTROL_COST * float(np.square(action).sum())
        self._returns[-1] += reward
        self._steps += 1
        over = self._steps == self.num_episodes * self.episode_steps
        if self._steps % self.episode_steps == 0 and not over:
            observation, _ = self.env.reset()
            self._returns.append(0.0)
        return self._observe(observation), reward, False, over, self._metrics() if over else {}

    def _observe(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        return np.append(observation, self._steps % self.episode_steps == 0).astype(np.float32)

    def _metrics(self) -> dict[str, float]:
        return {f"AMAGO_LOG_METRIC Episode {i + 1} Return": value for i, value in enumerate(self._returns)}


@gin.configurable
def make_half_cheetah(
    task: Task = "velocity", max_velocity: float = 2.0, num_episodes: int = 2, episode_steps: int = 200, **kwargs: Any
) -> gym.Env:
    """gymnasium's HalfCheetah-v5 under a `CheetahTask`, which says what the arguments mean.

    kwargs: as for `gymnasium.make`. Raises ModuleNotFoundError without the package mujoco.
    """
    require("mujoco", "mujoco")
    # The limit of gymnasium's own is 1000 steps for one episode: CheetahTask counts.
    env = gym.make("HalfCheetah-v5", max_episode_steps=episode_steps + 1, **kwargs)
    return CheetahTask(env, task, max_velocity, num_episodes, episode_steps)
