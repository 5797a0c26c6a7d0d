"""Settings of a base class that the class in use has of its own: bound there, they are never read.

`MultiTaskAgent` gives `Agent` an `online_coeff` of its own: `Agent.online_coeff = 0.5` then sets nothing, in silence.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import gin

from amago_ray.config.registry import registry
from amago_ray.config.text import literal

logger = logging.getLogger("amago_ray")
Setting = tuple[str, str]  # full name of the configurable, argument
of_records: set[Setting] = set()  # those whose values are from a run's own record, by which nobody sets anything anew
_told: set[str] = set()


def tell_unread(cls: type) -> None:
    """Log a line, once, for each setting that the user has bound of a class above `cls` and that `cls` never reads,
    unless its own has the same value."""
    for text in unread(cls):
        if text not in _told:
            _told.add(text)
            logger.warning(text)


def unread(made: type) -> Iterator[str]:
    """What to say of each."""
    own: dict[str, tuple[type, Any]] = {}  # argument -> the first class that has a default of it, and that
    for cls in made.__mro__:
        for (selector, argument), value in _bound(cls).items():
            if argument in own and (selector, argument) not in of_records:
                yield from _told_of(cls, argument, value, *own[argument])
        if "__init__" in vars(cls) and _selector(cls):
            for name, parameter in inspect.signature(vars(cls)["__init__"]).parameters.items():
                if parameter.default is not parameter.empty and parameter.default is not None:  # which may mean any
                    own.setdefault(name, (cls, parameter.default))


def _told_of(base: type, argument: str, value: Any, cls: type, default: Any) -> Iterator[str]:
    bound = {selector: own for selector, own in _bound(cls, scopes=True).items() if selector[1] == argument}
    if bound.keys() - of_records:
        return  # both are the user's, and the first of them is meant
    effective = next(iter(bound.values()), default)
    if value != effective and literal(value) != literal(effective):  # a class is bound by its name
        shown = literal(effective) or repr(effective)
        yield (
            f"{base.__name__}.{argument} = {value!r} is not read: {cls.__name__} has its own, {shown}; set "
            f"{cls.__name__}.{argument}"
        )


def _bound(cls: type, scopes: bool = False) -> dict[Setting, Any]:
    """What gin holds for a class; it offers no public list. scopes: in scopes, too."""
    selector = _selector(cls)
    return {
        (name, argument): value
        for (scope, name), values in gin.config._CONFIG.items()
        if name == selector and (scopes or not scope)
        for argument, value in values.items()
    }


def _selector(cls: type) -> str | None:
    return next((name for name, configurable in registry().items() if configurable.wrapper is cls), None)
