"""Checks of constructor arguments: each raises a one-line `ValueError` with argument, value and what is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real


def check_integer(name: str, value: int, at_least: int) -> int:
    """`value` as an int of at least `at_least`; a bool or a float is not an integer."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise ValueError(f"{name}={value!r}: must be an integer of at least {at_least}")
    return int(value)


def check_number(name: str, value: float, low: float, high: float) -> float:
    """`value` as a finite float within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name}={value!r}: must be a number between {low:g} and {high:g}")
    return float(value)


def check_flag(name: str, value: bool) -> bool:
    """`value`, which is True or False and nothing that merely counts as such."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: must be True or False")
    return value


def check_choice(name: str, value: str | None, choices: Sequence[str | None]) -> None:
    """Nothing, if `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")


def check_render_mode(value: str | None) -> str | None:
    """`value`, which is None or "rgb_array"."""
    check_choice("render_mode", value, (None, "rgb_array"))
    return value
