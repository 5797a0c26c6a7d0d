"""TabularMDP: a new random table of transitions and rewards at each rollout, and several episodes to learn it."""

from __future__ import annotations

from operator import index
from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.builtin.arguments import check_integer


@gin.configurable
class TabularMDP(gym.Env[NDArray[np.int64], np.int64]):
    """`reset` draws an MDP, in which `num_episodes` episodes of `episode_steps` steps follow within one rollout.

    The next state of each state and action comes from a distribution of its own, drawn from the flat Dirichlet; the
    reward is normal with variance 1 and a mean of its own for each state and action, drawn from N(1, 1). Every episode
    begins in state 0: the step that ends one returns the first observation of the next. The end of the last episode
    terminates the rollout.

    Actions: 0 ... num_actions - 1. Observation, MultiDiscrete ([num_states, 2]): the state; 1 at the first observation
    of an episode, which tells the agent that the one before is over, and after the last one, else 0.

    `info` at the end of a rollout has "AMAGO_LOG_METRIC Last Episode Mean Reward", the expected reward of the state and
    action of each step of the last episode, averaged: the luck of the draws left out.

    Raises ValueError for an argument out of range, and for an action that there is none of.
    Source: Duan et al. 2016, RL², arXiv 1611.02779, section 3.2 (10 states, 5 actions, episodes of 10 steps; n = 10,
    25, 50, 75, 100 episodes).
    """

    metadata = {"render_modes": []}

    def __init__(
        self, num_states: int = 10, num_actions: int = 5, num_episodes: int = 10, episode_steps: int = 10
    ) -> None:
        self.num_states = check_integer("num_states", num_states, at_least=2)
        self.num_actions = check_integer("num_actions", num_actions, at_least=2)
        self.num_episodes = check_integer("num_episodes", num_episodes, at_least=1)
        self.episode_steps = check_integer("episode_steps", episode_steps, at_least=1)
        self.observation_space = spaces.MultiDiscrete([self.num_states, 2])
        self.action_space = spaces.Discrete(self.num_actions)

    @property
    def env_name(self) -> str:
        return f"TabularMDP-{self.num_states}x{self.num_actions}-n{self.num_episodes}"

    @property
    def mean_rewards(self) -> NDArray[np.float64]:
        """(num_states, num_actions)."""
        return self._mean_rewards.copy()

    @property
    def transitions(self) -> NDArray[np.float64]:
        """(num_states, num_actions, num_states): probability of each next state."""
        return self._transitions.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """A new MDP and its first episode. `options` are not used."""
        super().reset(seed=seed)
        pairs = (self.num_states, self.num_actions)
        self._mean_rewards = self.np_random.normal(1.0, 1.0, pairs)
        self._transitions = self.np_random.dirichlet(np.ones(self.num_states), pairs)
        self._cumulated = self._transitions.cumsum(axis=2)
        self._state = self._steps = 0
        self._means_of_episode = 0.0
        return self._observe(), {}

    def step(self, action: int | np.int64) -> tuple[NDArray[np.int64], float, bool, bool, dict[str, Any]]:
        move = index(action)
        if not 0 <= move < self.num_actions:
            raise ValueError(f"action={move!r}: must be an integer from 0 to {self.num_actions - 1}")
        if self._steps % self.episode_steps == 0:
            self._means_of_episode = 0.0
        mean = float(self._mean_rewards[self._state, move])
        self._means_of_episode += mean
        reward = float(self.np_random.normal(mean, 1.0))
        self._steps += 1
        if self._steps % self.episode_steps == 0:
            self._state = 0
        else:
            draw = self.np_random.random()
            # Rounding may leave the last sum a little below 1, and the draw above it.
            last = self.num_states - 1
            self._state = min(int(self._cumulated[self._state, move].searchsorted(draw, side="right")), last)
        over = self._steps == self.num_episodes * self.episode_steps
        return self._observe(), reward, over, False, self._metrics() if over else {}

    def _observe(self) -> NDArray[np.int64]:
        return np.array((self._state, self._steps % self.episode_steps == 0), dtype=np.int64)

    def _metrics(self) -> dict[str, float]:
        return {"AMAGO_LOG_METRIC Last Episode Mean Reward": self._means_of_episode / self.episode_steps}
