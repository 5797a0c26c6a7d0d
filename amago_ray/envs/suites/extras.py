"""Packages that only one suite needs."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """The module. Raises ModuleNotFoundError, in one line that names the extra of amago_ray that brings it.

    What a module that is there raises while it is imported, of its own or for want of another, is raised as it is.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.partition(".")[0] != error.name.partition(".")[0]:
            raise
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'amago_ray[{extra}]'") from None
