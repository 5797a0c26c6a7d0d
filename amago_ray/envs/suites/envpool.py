"""EnvPool: environments in C++ that all of a worker's steps go to at once. Atari, MuJoCo, Procgen and many more."""

from __future__ import annotations

from typing import Any

import gin
from gymnasium.vector import VectorEnv

from amago_ray.envs.builtin.arguments import check_integer
from amago_ray.envs.suites.extras import require


@gin.configurable
def make_envpool(env_id: str = "CartPole-v1", num_envs: int = 1, seed: int = 0, **kwargs: Any) -> VectorEnv:
    """A VectorEnv of EnvPool. Images have their channels first: `CNNTstepEncoder.channels_first = True`.

    env_id: EnvPool's, such as "Pong-v5" or Procgen's "CoinrunEasy-v0"; metrics are grouped by it. num_envs, seed: a
    worker gives its own. kwargs: as for `envpool.make_gymnasium`; `num_threads` is 1 unless it is given, as a worker
    has one core.

    Raises ModuleNotFoundError without the package envpool, ImportError for Procgen where Qt 5 is missing.
    Source: Weng et al. 2022, arXiv 2206.10558.
    """
    check_integer("num_envs", num_envs, at_least=1)
    envpool = require("envpool", "envpool")
    env = envpool.make_gymnasium(env_id, num_envs=num_envs, seed=seed, **{"num_threads": 1, **kwargs})
    env.env_name = env_id
    return env
