"""gymnax: classic control, bsuite, MinAtar and meta-learning tasks in JAX."""

from __future__ import annotations

from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces

from amago_ray.envs.builtin.arguments import check_integer
from amago_ray.envs.suites.extras import require
from amago_ray.envs.suites.jax_vector import JaxStep, JaxVectorEnv

EXTRA = "gymnax"


@gin.configurable
def make_gymnax(env_id: str = "MemoryChain-bsuite", num_envs: int = 1, seed: int = 0, **params: Any) -> JaxVectorEnv:
    """An environment of gymnax as a VectorEnv.

    env_id: gymnax's; metrics are grouped by it. num_envs, seed: a worker gives its own. params: replace those of the
    environment's default parameters, as in memory_length=20. Every end terminates, as gymnax tells none from another.

    Raises ModuleNotFoundError without the package gymnax, ValueError for a parameter that the environment lacks.
    Source: Lange 2022, https://github.com/RobertTLange/gymnax.
    """
    check_integer("num_envs", num_envs, at_least=1)
    gymnax, jax = require("gymnax", EXTRA), require("jax", EXTRA)
    env, defaults = gymnax.make(env_id)
    known = list(vars(defaults))
    for name in params:
        if name not in known:
            raise ValueError(f"{name}={params[name]!r}: must be one of {', '.join(known)}, which {env_id} has")
    settings = defaults.replace(**params)

    def reset(key: Any) -> tuple[Any, Any]:
        observation, state = env.reset_env(key, settings)
        return state, observation

    def step(key: Any, state: Any, action: Any) -> JaxStep:
        observation, state, reward, done, _ = env.step_env(key, state, action, settings)
        return JaxStep(state, observation, reward, done, False, {})

    shown = (env.observation_space(settings), env.action_space(settings))
    return JaxVectorEnv(jax, reset, step, (_space(shown[0]), _space(shown[1])), env_id, num_envs, seed)


def _space(space: Any) -> gym.Space:
    """The space of gymnasium that gymnax's is. Raises ValueError for one that is no Discrete and no Box."""
    match type(space).__name__:
        case "Discrete":
            return spaces.Discrete(int(space.n))
        case "Box":
            low, high = (
                np.broadcast_to(np.asarray(bound, np.float32), space.shape) for bound in (space.low, space.high)
            )
            return spaces.Box(low, high, dtype=np.float32)
        case name:
            raise ValueError(f"a space of gymnax that is a {name} cannot be used: it must be Discrete or Box")
