"""What an environment's observations and actions are, as every part of the system sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

ActionKind = Literal["discrete", "continuous", "multibinary", "multidiscrete"]
OBS_PREFIX = "obs."


@dataclass(frozen=True)
class Bounds:
    """Least and largest values of an array, entry by entry, as its space declares them; infinite where it does not.

    shape: of `low` and `high`, which are flat. It broadcasts to the array: an axis along which all bounds are alike has
        length 1, so that an image of bytes has one pair of numbers.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @staticmethod
    def of(low: np.ndarray, high: np.ndarray) -> Bounds:
        """The bounds of an array of the shape that `low` and `high` have."""
        both = np.stack((low, high)).astype(np.float64)
        for axis in range(1, both.ndim):
            first = both.take([0], axis) if both.shape[axis] else both
            if (both == first).all():
                both = first
        return Bounds(both.shape[1:], *(tuple(values.ravel().tolist()) for values in both))


@dataclass(frozen=True)
class ArraySpec:
    """One array of the observation, per timestep.

    shape: shape of one timestep. dtype: numpy name; arrays keep it until they reach the learner's device.
    nvec: number of categories of each entry of an integer (Discrete, MultiDiscrete) array, which encoders one-hot;
        empty for arrays of real values, counts or pixels.
    bounds: of those, if the space has any; what encoders scale by. Arrays that differ in nothing else are alike: tasks
        of one benchmark often declare different ranges of the same numbers.
    """

    shape: tuple[int, ...]
    dtype: str
    nvec: tuple[int, ...] = ()
    bounds: Bounds | None = field(default=None, compare=False, repr=False)

    @property
    def num_features(self) -> int:
        """Length of this array as a flat float vector (one-hot where it is categorical)."""
        return sum(self.nvec) if self.nvec else int(np.prod(self.shape, dtype=np.int64))


ObsSpec = Mapping[str, ArraySpec]


@dataclass(frozen=True)
class ActionSpec:
    """The action as it is stored and as the networks see it.

    kind "discrete": an integer, shape (), nvec (n,). "multidiscrete": integers, shape (A,), nvec (n_1, ..., n_A).
    "multibinary": 0 or 1, shape (A,). "continuous": float32 in [-1, 1], shape (A,).
    vector_size: length of the float vector that networks see: the one-hots end to end for (multi-)discrete, else A.
    """

    kind: ActionKind
    shape: tuple[int, ...]
    dtype: str
    vector_size: int
    nvec: tuple[int, ...] = ()


def row_bytes(obs_spec: ObsSpec, action_spec: ActionSpec) -> int:
    """Bytes of one row of a trajectory's table."""
    arrays = [*((spec.shape, spec.dtype) for spec in obs_spec.values()), (action_spec.shape, action_spec.dtype)]
    stored = sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in arrays)
    return stored + np.dtype(np.float32).itemsize + np.dtype(bool).itemsize  # reward, terminated
