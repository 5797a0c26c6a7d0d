"""Environments that are pure functions of JAX, as a VectorEnv."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray


class JaxStep(NamedTuple):
    """What a step of one environment returns: arrays of JAX. metrics: logged at the end of a rollout."""

    state: Any
    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    metrics: dict[str, Any]


class JaxVectorEnv(VectorEnv):
    """`num_envs` copies of one environment, stepped together by one compiled function. It resets rows when asked to.

    reset: from a key to (state, observation). step: from (key, state, action) to a `JaxStep`. Both are of one
    environment and pure. jax: the module. env_name: what metrics are grouped by. seed: where keys come from.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}

    def __init__(
        self,
        jax: Any,
        reset: Callable[[Any], tuple[Any, Any]],
        step: Callable[[Any, Any, Any], JaxStep],
        spaces: tuple[gym.Space, gym.Space],
        env_name: str,
        num_envs: int,
        seed: int = 0,
    ) -> None:
        self.num_envs = num_envs
        self.env_name = env_name
        self.single_observation_space, self.single_action_space = spaces
        self.observation_space, self.action_space = (batch_space(space, num_envs) for space in spaces)
        self._jax = jax
        self._key = jax.random.key(seed)
        self._state: Any = None

        def reset_rows(key: Any, rows: Any, old: Any) -> Any:
            new = jax.vmap(reset)(jax.random.split(key, num_envs))
            return jax.vmap(lambda row, a, b: jax.tree.map(lambda x, y: jax.numpy.where(row, x, y), a, b))(
                rows, new, old
            )

        self._reset_all = jax.jit(lambda key: jax.vmap(reset)(jax.random.split(key, num_envs)))
        self._reset_rows = jax.jit(reset_rows)
        self._step = jax.jit(lambda key, state, action: jax.vmap(step)(jax.random.split(key, num_envs), state, action))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """All rows, or those of `options["reset_mask"]` (num_envs,) bool."""
        if seed is not None:
            self._key = self._jax.random.key(seed)
        mask = (options or {}).get("reset_mask")
        if mask is None:
            self._state, self._observation = self._reset_all(self._next_key())
        else:
            old = (self._state, self._observation)
            self._state, self._observation = self._reset_rows(self._next_key(), mask, old)
        return self._as_numpy(self._observation), {}

    def step(self, actions: NDArray[Any]) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        made = self._step(self._next_key(), self._state, actions)
        self._state, self._observation = made.state, made.observation
        result = self._as_numpy(made._replace(state=None))
        ended = result.terminated | result.truncated
        info: dict[str, Any] = {}
        for name, values in result.metrics.items():
            info |= {f"AMAGO_LOG_METRIC {name}": values, f"_AMAGO_LOG_METRIC {name}": ended}
        return result.observation, result.reward, result.terminated, result.truncated, info

    def _next_key(self) -> Any:
        self._key, key = self._jax.random.split(self._key)
        return key

    def _as_numpy(self, tree: Any) -> Any:
        return self._jax.tree.map(np.array, self._jax.device_get(tree))  # arrays of JAX cannot be written to
