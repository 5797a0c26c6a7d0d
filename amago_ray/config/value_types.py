"""What kind of value a setting takes, by the annotation of its parameter: told before anything is built of it."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import math
import os
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import gin
import numpy as np

from amago_ray.config.registry import registry

NUMBERS = (int, float, np.integer, np.floating)
SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
MAPPINGS = (dict, collections.abc.Mapping)


def objection(value: Any, hint: Any) -> str | None:
    """What a value must be, where it is not: "it must be a number". None where it fits, or nobody can tell.

    hint: an evaluated annotation. Objects of classes are not looked at, nor what a reference of gin gives when it is
    evaluated.
    """
    return None if _fits(value, hint) else f"it must be {_described(hint)}"


def plain(value: Any) -> Any:
    """A scalar of NumPy as Python's own, which can be written down; all else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def check_argument(selector: str, argument: str, value: Any) -> None:
    """Raises TypeError, naming setting and value, for one that the annotation of a configurable's parameter refuses.

    selector: full name of the configurable. What has no annotation passes.
    """
    hint = hints_of(registry()[selector].wrapped).get(argument, Any)
    if text := objection(value, hint):
        raise TypeError(f"{selector.rpartition('.')[2]}.{argument}={value!r}: {text}")


@functools.cache
def hints_of(configurable: Any) -> Mapping[str, Any]:
    """Evaluated annotations of the parameters of a class or function; empty where they name what is not imported."""
    by_class = inspect.isclass(configurable) and dataclasses.is_dataclass(configurable)
    try:
        if by_class or not inspect.isclass(configurable):
            return get_type_hints(configurable)
        return get_type_hints(configurable.__init__)
    except NameError:
        return {}


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if isinstance(value, gin.config.ConfigurableReference):
        return value.evaluate or not _is_plain(hint)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in parts)
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, (bool, np.bool_))
    if hint is int:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, NUMBERS) and not isinstance(value, bool) and not math.isnan(value)
    if hint is str:
        return isinstance(value, str)
    if origin in SEQUENCES:
        return _is_sequence(value, origin, parts)
    if origin in MAPPINGS:
        return isinstance(value, Mapping) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if origin in (collections.abc.Callable, type):
        return callable(value)  # a partial may stand for a class
    return isinstance(value, os.PathLike) if _is_path(hint) else True


def _is_sequence(value: Any, origin: Any, parts: tuple[Any, ...]) -> bool:
    """gin has no arrays, and its lists and tuples stand for one another."""
    if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple, np.ndarray)):
        return origin is collections.abc.Iterable and not isinstance(value, (str, int, float, type(None)))
    if origin is tuple and parts[-1:] != (...,):
        return len(value) == len(parts) and all(map(_fits, value, parts))
    return all(_fits(item, parts[0]) for item in value) if parts else True


def _is_path(hint: Any) -> bool:
    return (get_origin(hint) or hint) is os.PathLike


def _is_plain(hint: Any) -> bool:
    """Whether only values that can be written down are meant: no class or function fits."""
    return hint in (bool, int, float, str, type(None)) or get_origin(hint) in (Literal, *SEQUENCES, *MAPPINGS)


def _described(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_described, parts)))
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin is tuple and parts[-1:] != (...,):
        return f"({', '.join(map(_described, parts))})"
    if origin in SEQUENCES:
        return f"a list or tuple, each item {_described(parts[0])}" if parts else "a list or tuple"
    if origin in MAPPINGS:
        return f"a dict of {_described(parts[0])} to {_described(parts[1])}"
    if _is_path(hint):
        return "a path"
    if origin is collections.abc.Callable:
        return "a function or class, such as @name"
    if origin is type:
        return f"a subclass of {parts[0].__name__}, such as @name"
    plain = {bool: "True or False", int: "an integer", float: "a number", str: "text", type(None): "None", None: "None"}
    return plain.get(hint) or str(getattr(hint, "__name__", hint))
