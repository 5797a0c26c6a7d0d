"""What values a setting takes: each check says what would be right of one that is not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args

import numpy as np

from amago_ray.config.mistakes import nearest

LONGEST_NAME = 200  # of a run, in bytes: file systems take 255, and a training state's name is longer
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 1e-6, 1e6  # beyond them float32 draws what it should not, if it is masked say
LARGEST_SEED = 2**32 - 1  # that NumPy's global generator takes

Check = Callable[[Any], str | None]  # what a value must be, where it is not


def whole_number(minimum: int, or_float: bool = False, maximum: int | None = None) -> Check:
    """Integers from `minimum` on, up to `maximum` if there is one. or_float: such as 1e10 too."""

    def check(value: Any) -> str | None:
        whole = isinstance(value, (int, np.integer)) or (or_float and isinstance(value, float) and value.is_integer())
        fits = whole and not isinstance(value, bool) and value >= minimum
        if maximum is not None:
            fits = fits and value <= maximum
            return None if fits else f"it must be an integer of {minimum} or more, and of {maximum:,} at most"
        return None if fits else f"it must be an integer of {minimum} or more"

    return check


def check_counts(call: str, minimum: int, **arguments: Any) -> None:
    """Raises ValueError, naming `call` and argument, for one that is no integer from `minimum` on, nor None."""
    for name, value in arguments.items():
        if value is not None and (wrong := whole_number(minimum)(value)):
            raise ValueError(f"{call}: {name}={value!r}: {wrong}, or None")


def positive(value: Any) -> str | None:
    """Finite numbers above 0."""
    return None if _is_number(value) and value > 0 else "it must be a number above 0"


def not_negative(value: Any) -> str | None:
    """Finite numbers from 0 on."""
    return None if _is_number(value) and value >= 0 else "it must be a number of 0 or more"


def fraction(value: Any) -> str | None:
    """Numbers from 0 to 1."""
    return None if _is_number(value) and 0 <= value <= 1 else "it must be a number in [0, 1]"


def _is_number(value: Any) -> bool:
    """Whether it is one that can be counted with: no truth value, nothing infinite, and within the range of floats."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        return False
    return bool(-sys.float_info.max <= value <= sys.float_info.max)


def one_of(choices: Any) -> Check:
    """The members of a Literal type."""
    known = get_args(choices)

    def check(value: Any) -> str | None:
        return None if value in known else f"use one of {', '.join(map(repr, known))}"

    return check


def subclass_of(base: type) -> Check:
    """Classes below `base`. Raises TypeError itself, naming the nearest of those that there are."""

    def check(value: Any) -> str | None:
        if isinstance(value, type) and issubclass(value, base):
            return None
        known = sorted(set(_subclasses(base)))
        if isinstance(value, str) and value in known:
            raise TypeError(
                f"it must be a subclass of {base.__name__}, {value} itself (@{value} in gin) and not its name"
            )
        hint = nearest(value, known) if isinstance(value, str) else f"; known: {', '.join(known)}"
        raise TypeError(f"it must be a subclass of {base.__name__}{hint}")

    return check


def makes(base: type) -> Check:
    """Classes below `base`, partials of these, and functions: what those make is seen when they are called.

    Raises TypeError as `subclass_of` does.
    """
    is_below = subclass_of(base)

    def check(value: Any) -> str | None:
        while isinstance(value, partial):
            value = value.func
        return is_below(value) if isinstance(value, type) or not callable(value) else None

    return check


def check_made(setting: str, made: Any, base: type) -> None:
    """Raises TypeError, naming `setting`, where a function that it is has made something else than a `base`."""
    if not isinstance(made, base):
        raise TypeError(f"{setting}: it must make a {base.__name__}, and it made {made!r}")


def check_temperature(value: Any, given: str) -> None:
    """Raises ValueError for a temperature that actions cannot be drawn at. given: the setting with its value."""
    if not (_is_number(value) and LEAST_TEMPERATURE <= value <= LARGEST_TEMPERATURE):
        raise ValueError(
            f"{given}: it must be a number from {LEAST_TEMPERATURE:g} to {LARGEST_TEMPERATURE:g}; greedy actions are "
            "those that are not drawn (sample=False, --greedy)"
        )


def _subclasses(base: type) -> Iterator[str]:
    if not getattr(base, "__abstractmethods__", None):
        yield base.__name__
    child: type
    for child in base.__subclasses__():
        yield from _subclasses(child)


def folder_name(value: Any) -> str | None:
    """Text that names one folder, of which files in it are named too, and that can be shown in one line."""
    if not isinstance(value, str) or value in ("", ".", "..") or "/" in value or not value.isprintable():
        return "it names a folder, so it takes text without '/' and without line ends"
    if len(value.encode(errors="surrogatepass")) > LONGEST_NAME:
        return f"it names a folder, so it takes at most {LONGEST_NAME} bytes"
    return None
