"""Whether rows can be learned from at all: asked of every trajectory that is read from data of others."""

from __future__ import annotations

from typing import Any

import numpy as np

from amago_ray.envs.spaces import BOUNDS_TOLERANCE
from amago_ray.messages import ACTION, TERMINATED
from amago_ray.replay.sampling.sources import Columns
from amago_ray.specs import OBS_PREFIX, ActionSpec, ObsSpec
from amago_ray.warned import warn

LARGEST_WHOLE = 1 << 24  # up to which float32 holds every whole number


def reward_column(rewards: Any) -> np.ndarray:
    """(T,) float32. Raises ValueError for what are no numbers, and not one for each transition.

    Warns of whole numbers that become others.
    """
    try:
        given = np.asarray(rewards)
        if given.dtype.kind not in "biufO":
            raise TypeError(f"their dtype is {given.dtype}")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
            numbers = given.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rewards are no numbers: {error}") from error
    if given.dtype.kind in "iu" and (numbers.astype(np.float64) != given).any():
        warn(f"whole rewards above {LARGEST_WHOLE:,} are rounded: they are stored as float32")
    return _column("rewards", numbers)


def terminated_column(terminated: Any, num: int) -> np.ndarray:
    """(T,) bool, of an `Episode` of `num` transitions. Raises ValueError for what is neither true nor false."""
    given = np.asarray(terminated)
    if given.dtype.kind not in "biuf" or ((given != 0) & (given != 1)).any():
        raise ValueError(f"terminated is {given.tolist()}: it must be True or False")
    if given.ndim == 0:
        return (np.arange(num) == num - 1) & bool(given)
    return _column("terminated", given.astype(bool))


def _column(name: str, values: np.ndarray) -> np.ndarray:
    """(T,) of values (T,) or (T, 1). Raises ValueError for other shapes."""
    if values.ndim == 0 or values.size != len(values):
        raise ValueError(f"{name} have shape {values.shape}: there must be one for each transition, (T,)")
    return values.reshape(-1)


def check_rows(columns: Columns, obs_spec: ObsSpec, action_spec: ActionSpec) -> None:
    """Raises ValueError, naming the first wrong timestep, for a table that is no part of one rollout of such specs.

    columns: as in `messages.Trajectory`. Numbers are finite, categories in range, bits 0 or 1, stored actions of a Box
    in [-1, 1], and nothing follows a terminal state.
    """
    for name, column in columns.items():
        _check_finite(name, column)
    for name, spec in obs_spec.items():
        if spec.nvec:
            _check_categories(OBS_PREFIX + name, columns[OBS_PREFIX + name], spec.nvec)
    actions = columns[ACTION]
    if action_spec.nvec:
        _check_categories(ACTION, actions, action_spec.nvec)
    elif action_spec.kind == "multibinary":
        _refuse(ACTION, actions, (actions != 0) & (actions != 1), "it must be 0 or 1")
    else:
        _refuse(ACTION, actions, np.abs(actions) > 1 + BOUNDS_TOLERANCE, "it is stored in [-1, 1]")
    ended = columns[TERMINATED][:-1]
    if ended.any():
        raise ValueError(
            f"transition {int(ended.argmax()) - 1} of {len(ended)} is terminated and others follow it: these are "
            "several rollouts, of which each must be an episode of its own"
        )


def _check_finite(name: str, column: np.ndarray) -> None:
    # A sum is finite only where every number is, and takes a fraction of the time. It may overflow in a good column.
    if column.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            whole = np.isfinite(column.sum(dtype=column.dtype))
        if not whole:
            _refuse(name, column, ~np.isfinite(column), "it must be finite")


def _check_categories(name: str, column: np.ndarray, nvec: tuple[int, ...]) -> None:
    limits = np.reshape(nvec, column.shape[1:])
    _refuse(name, column, (column < 0) | (column >= limits), f"categories end at {', '.join(str(n - 1) for n in nvec)}")


def _refuse(name: str, column: np.ndarray, wrong: np.ndarray, what: str) -> None:
    """Raises ValueError for the first row in which anything is wrong. Action and reward t are those of row t + 1."""
    if not wrong.any():
        return
    place = np.unravel_index(int(wrong.argmax()), wrong.shape)
    row, value = int(place[0]), column[place]
    element = f"[{', '.join(str(int(i)) for i in place[1:])}]" if len(place) > 1 else ""
    if name.startswith(OBS_PREFIX):
        raise ValueError(f"observation {row}: {name.removeprefix(OBS_PREFIX)!r}{element} is {value}; {what}")
    raise ValueError(f"{name} {row - 1}{element} is {value}; {what}")
