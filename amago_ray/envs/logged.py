"""What environments log about a rollout in their `info`: one rule for every pool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from amago_ray.warned import warn

LOG_PREFIX = "AMAGO_LOG_METRIC"
OWN_RESULTS = ("Total Return", "Episode Length")  # measured of every rollout, so that no environment may log them


class LoggedMetrics:
    """The logged entries of N environments' rollouts in progress.

    What `reset` gives belongs to the rollout that begins there. Of every entry the last value counts, and all of them
    are handed out with the end of the rollout. A value that is not one finite number is left out, with one warning.
    """

    def __init__(self, num_envs: int) -> None:
        self._current: list[dict[str, float]] = [{} for _ in range(num_envs)]
        self._warned: set[str] = set()

    def clear(self, rows: np.ndarray | int) -> None:
        """Forget the rollouts of `rows`: one row, or (N,) bool."""
        for row in [rows] if isinstance(rows, int) else np.flatnonzero(rows).tolist():
            self._current[row] = {}

    def add(self, row: int, info: Mapping[str, Any]) -> None:
        """Take in what one environment gave in `step` or `reset`."""
        for key, name in _logged(info).items():
            self._set(row, key, name, info[key])

    def add_batch(self, info: Any, rows: np.ndarray) -> None:
        """Take in a VectorEnv's `info`, of those `rows` (N,) bool that have an entry in it.

        info: a dict of arrays (N, ...) with masks "_<key>", as gymnasium has it, or one dict (or None) for each row.
        """
        if not isinstance(info, Mapping):
            for row in np.flatnonzero(rows).tolist():
                self.add(row, info[row] or {})
            return
        for key, name in _logged(info).items():
            has_one = _mask(info.get(f"_{key}"), len(rows))
            if has_one is None:
                self._warn(key, f"its mask '_{key}' is not of one flag for each of {len(rows)} environments")
            elif not _has_rows(info[key], len(rows)):
                self._warn(key, f"it takes one number for each of {len(rows)} environments, not {_told(info[key])}")
            else:
                for row in np.flatnonzero(rows & has_one).tolist():
                    self._set(row, key, name, info[key][row])

    def take(self, ended: np.ndarray) -> dict[int, dict[str, float]]:
        """What was logged in the rollouts that `ended` (N,) bool, by row; rows without an entry are left out."""
        taken = {row: self._current[row] for row in np.flatnonzero(ended).tolist() if self._current[row]}
        self.clear(ended)
        return taken

    def _set(self, row: int, key: str, name: str, value: Any) -> None:
        number = _number(value)
        if name in OWN_RESULTS:
            self._warn(key, f"{name!r} is measured of every rollout: give it another name")
        elif number is None:
            self._warn(key, f"it takes one number, not {_told(value)}")
        elif not math.isfinite(number):
            self._warn(key, f"{number} is no number to average: rollouts that end with it count as without one")
        else:
            self._current[row][name] = number

    def _warn(self, key: str, fault: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warn(f"the info entry {key!r} is left out of the metrics: {fault}", stacklevel=2)


def _logged(info: Mapping[str, Any]) -> dict[str, str]:
    """The keys of an `info` that are to be logged, and under which name."""
    keys = [key for key in info if isinstance(key, str) and key.startswith(LOG_PREFIX)]
    return {key: key.removeprefix(LOG_PREFIX).lstrip(" _:/") for key in keys}


def _number(value: Any) -> float | None:
    """`value` as one number, None where it is none. An array of one element is one, and so is a tensor of any kind."""
    try:
        if isinstance(value, (bool, int, float)):
            return float(value)
        if hasattr(value, "detach"):  # NumPy has no bfloat16, and takes no tensor that has a gradient
            value = value.detach().tolist()
        array = np.asarray(value)
        return float(array.item()) if array.size == 1 and array.dtype.kind in "biuf" else None
    except Exception:  # whatever an object raises that is to be a number: 10**400, or lists of several lengths
        return None


def _mask(given: Any, num_envs: int) -> np.ndarray | None:
    """Which environments have an entry, (num_envs,) bool; all where no mask is given, None where it is none."""
    if given is None:
        return np.ones(num_envs, bool)
    try:
        mask = np.asarray(given)
    except Exception:  # whatever a user's object raises
        return None
    if mask.shape not in ((), (num_envs,)) or mask.dtype.kind not in "biuf":
        return None
    return np.broadcast_to(mask.astype(bool), num_envs)


def _has_rows(values: Any, num_envs: int) -> bool:
    try:
        return len(values) == num_envs and not isinstance(values, (str, bytes, Mapping))
    except Exception:  # a number, or an array of no dimension
        return False


def _told(value: Any) -> str:
    """A value in a few words, whatever its own text would be."""
    try:
        text = f"{value!r:.80}"
    except Exception:  # a user's object may raise, and so does Python of a number of thousands of digits
        text = "one"
    return f"{text} of type {type(value).__name__}"
