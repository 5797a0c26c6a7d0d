"""What gin can configure."""

from __future__ import annotations

import inspect
from typing import Any

import gin


def parameters_of(selector: str) -> list[str]:
    """Names of what can be set of a configurable."""
    configurable = gin.get_configurable(selector)
    # Of a class that has a `__new__` of its own, the signature would be that one's.
    signature = inspect.signature(configurable.__init__ if inspect.isclass(configurable) else configurable)
    return [known for known in signature.parameters if known != "self"]


def registry() -> dict[str, Any]:
    """Everything that gin can configure, by its full name."""
    return gin.config._REGISTRY._selector_map  # gin offers no public list


def matching(name: str) -> list[str]:
    """Full names of what gin could mean by `name`."""
    return [selector for selector in registry() if selector == name or selector.endswith("." + name)]


def configurable_names() -> list[str]:
    """Names of everything that gin can configure."""
    return [selector.rsplit(".", 1)[-1] for selector in registry()]
