"""The name of an environment, under which its metrics are grouped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym


class AMAGOEnv(gym.Wrapper):
    """Gives an environment the name that its metrics are grouped by. Only multi-task environments need it.

    env_name: a name, or a function without arguments that is asked again after every reset: the task may change there.
        None keeps the name that the environment has without this wrapper.
    """

    def __init__(self, env: gym.Env, env_name: str | Callable[[], str] | None = None) -> None:
        super().__init__(env)
        self._env_name = env_name

    @property
    def env_name(self) -> str:
        """The current name."""
        if self._env_name is None:
            return env_name_of(self.env)
        return self._env_name() if callable(self._env_name) else self._env_name


def env_name_of(env: Any) -> str:
    """The name of `env`: the outermost `env_name` attribute among its wrappers, else its id, else its class.

    Whatever an `env_name` that is a property or a function raises is raised here.
    """
    for layer in _layers(env):
        if has_attribute(layer, "env_name"):
            return str(layer.env_name)
    base = getattr(env, "unwrapped", env)
    # The base's spec: a wrapper's own is rebuilt whenever it is read. Those of other packages may have no id.
    registered = getattr(getattr(base, "spec", None), "id", None)
    return type(base).__name__ if registered is None else str(registered)


def name_before_reset(env: Any) -> str:
    """`env_name_of`, or the name of its class where its own name is only known after a reset."""
    try:
        return env_name_of(env)
    except Exception:  # whatever the user's function raises; it is asked again after the reset, and then it counts
        return type(getattr(env, "unwrapped", env)).__name__


def names_its_own_tasks(env: Any) -> bool:
    """Whether the name of `env` may change from one rollout to the next."""
    for layer in _layers(env):
        if has_attribute(layer, "env_name"):
            attribute = inspect.getattr_static(layer, "env_name")
            if attribute is inspect.getattr_static(AMAGOEnv, "env_name"):
                return callable(layer._env_name) or (layer._env_name is None and names_its_own_tasks(layer.env))
            return isinstance(attribute, property)
    return False


def has_attribute(owner: Any, name: str) -> bool:
    """As `hasattr`, but an attribute that raises AttributeError when it is read is one that is there."""
    # (`inspect.getattr_static` tells it too, and takes half as long as a small environment's whole reset.)
    declared = any(name in vars(kind) for kind in type(owner).__mro__)
    return declared or name in getattr(owner, "__dict__", ()) or hasattr(owner, name)


def _layers(env: Any) -> Iterator[Any]:
    """`env` and what it wraps, from the outside in."""
    layer = env
    while layer is not None:
        yield layer
        layer = getattr(layer, "env", None)
