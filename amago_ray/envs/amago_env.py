"""The name of an environment, under which its metrics are grouped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym


class AMAGOEnv(gym.Wrapper):
    """Gives an environment the name that its metrics are grouped by. Only multi-task environments need it.

    env_name: a name, or a function without arguments that is asked again after every reset: the task may change there.
    """

    def __init__(self, env: gym.Env, env_name: str | Callable[[], str]) -> None:
        super().__init__(env)
        self._env_name = env_name

    @property
    def env_name(self) -> str:
        """The current name."""
        return self._env_name() if callable(self._env_name) else self._env_name


def env_name_of(env: Any) -> str:
    """The name of `env`: the outermost `env_name` attribute among its wrappers, else its id, else its class."""
    layer = env
    while layer is not None:
        if hasattr(layer, "env_name"):
            return str(layer.env_name)
        layer = getattr(layer, "env", None)
    base = getattr(env, "unwrapped", env)
    spec = getattr(base, "spec", None)  # the base's: a wrapper's own is rebuilt whenever it is read
    return type(base).__name__ if spec is None else spec.id
