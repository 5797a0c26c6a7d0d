"""What gymnasium's spaces become: flat named arrays for observations, one array for the action.

An observation space of any nesting is a list of *leaves*, each of them one named array. Categories (Discrete,
MultiDiscrete) are stored counted from 0, whatever the space's `start`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from amago_ray.envs.refused_spaces import action_remedy, described, observation_remedy
from amago_ray.specs import ActionSpec, ArraySpec, Bounds
from amago_ray.warned import warn

OBSERVATION = "observation"  # name of an observation that is not a Dict
BOUNDS_TOLERANCE = 1e-5  # of the bounds of a Box of floats: what rounding may add to an action at them

MAX_CATEGORIES = 100_000  # of an action: networks see a vector of this length at every timestep
NO_BOUND = 1e18  # bounds of an action at or beyond it stand for none; such numbers cannot be told apart by float32

_INTEGERS, _NUMBERS = "biu", "biuf"  # kinds of numpy dtypes that a leaf accepts


def obs_spec(space: gym.Space) -> dict[str, ArraySpec]:
    """The flat named arrays that hold an observation of `space`.

    Names of nested spaces are joined by "/", elements of a Tuple are named by index, and a space that is not a Dict is
    called "observation". Box keeps its shape and dtype (wider floats become float32), MultiBinary its shape as int8,
    Discrete is a scalar and MultiDiscrete a vector of the smallest integers that fit.

    Raises ValueError for a space that cannot be stored.
    """
    return ObsConverter(space).spec


def action_spec(space: gym.Space) -> ActionSpec:
    """How actions of `space` are stored (see `ActionSpec`). Raises ValueError for an unsupported or unbounded space."""
    return ActionConverter(space).spec


class ObsConverter:
    """Turns the observations of one space into flat named arrays. Equal converters store observations alike.

    Every method raises ValueError, naming the array, where an observation does not have its space's shape, kind of
    dtype or range of categories. Finiteness is not looked at: that is cheaper over many environments at once.
    """

    def __init__(self, space: gym.Space) -> None:
        root = "" if isinstance(space, spaces.Dict) else OBSERVATION
        self._leaves = tuple(_leaves(space, (), root))
        self.spec: dict[str, ArraySpec] = {leaf.name: leaf.spec for leaf in self._leaves}
        if not self.spec:
            raise ValueError(f"the observation space {space} is empty")
        if len(self.spec) < len(self._leaves):
            raise ValueError(f"two parts of the observation space {space} have the same name: avoid '/' in its keys")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObsConverter) and self._leaves == other._leaves

    @property
    def meaning(self) -> dict[str, list[Any]]:
        """Shape, stored dtype, categories and their start by name, in order: equal ones store observations alike."""
        leaves = sorted(self._leaves, key=lambda leaf: leaf.name)
        return {x.name: [list(x.shape), x.spec.dtype, list(x.spec.nvec), list(x.start)] for x in leaves}

    def empty(self, num_envs: int) -> dict[str, np.ndarray]:
        """Zeroed arrays (num_envs, ...) for `write` and `write_batch`."""
        return {name: np.zeros((num_envs, *spec.shape), spec.dtype) for name, spec in self.spec.items()}

    def batch_size(self, obs: Any) -> int | None:
        """How many environments' observation this is: None for one alone, N where every array has a leading axis N."""
        leaf = self._leaves[0]
        shape = leaf.shape_of(obs)
        if shape == leaf.shape:
            return None
        if shape[1:] == leaf.shape and len(shape) == len(leaf.shape) + 1:
            return shape[0]
        raise ValueError(f"observation {leaf.name!r} has shape {shape}: its space has {leaf.shape}, a batch (N, ...)")

    def flatten(self, obs: Any) -> dict[str, np.ndarray]:
        """One environment's observation as arrays of the shapes in `spec`, which it shares no memory with."""
        return {leaf.name: np.array(leaf.read(obs), leaf.spec.dtype) for leaf in self._leaves}

    def write(self, out: dict[str, np.ndarray], index: int, obs: Any) -> None:
        """Write one environment's observation into row `index` of arrays made by `empty`."""
        for leaf, column in zip(self._leaves, out.values(), strict=True):
            column[index] = leaf.read(obs)

    def write_batch(self, out: dict[str, np.ndarray], obs: Any) -> None:
        """Write a VectorEnv's observation (the space's structure, every array with a leading axis N) into all rows."""
        for leaf, column in zip(self._leaves, out.values(), strict=True):
            column[...] = leaf.read(obs, column.shape[:1])


class ActionConverter:
    """Turns stored actions into what the environment takes."""

    def __init__(self, space: gym.Space) -> None:
        self.space = space
        match space:
            case spaces.Discrete():
                num = int(space.n)
                _check_categories(space, num)
                self.spec = ActionSpec("discrete", (), "int64", num, (num,))
            case spaces.MultiDiscrete():
                nvec = tuple(space.nvec.ravel().tolist())
                _check_categories(space, sum(nvec))
                self.spec = ActionSpec("multidiscrete", (len(nvec),), "int64", sum(nvec), nvec)
            case spaces.MultiBinary():
                size = int(np.prod(space.shape))
                self.spec = ActionSpec("multibinary", (size,), "int8", size)
            case spaces.Box():
                self._check_bounds(space)
                size = int(np.prod(space.shape))
                self.spec = ActionSpec("continuous", (size,), "float32", size)
                self._middle, self._reach = middle_and_reach(space)
            case _:
                raise ValueError(
                    f"the action space {described(space)} is not supported: "
                    f"use Box, Discrete, MultiDiscrete or MultiBinary; {action_remedy(space)}"
                )
        if self.spec.vector_size == 0:
            raise ValueError(f"the action space {described(space)} has no entries: there is nothing to decide")

    def to_env(self, stored: np.ndarray) -> Any:
        """The environment's own form of one stored action, or of a batch (N, ...) of them, always in new memory."""
        space = self.space
        if isinstance(space, spaces.Discrete) and isinstance(stored, np.ndarray):
            return (stored + int(space.start)).astype(space.dtype)
        lead = np.shape(stored)[: np.ndim(stored) - len(self.spec.shape)]
        values = np.reshape(stored, (*lead, *(space.shape or ())))
        if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            values = np.add(values, space.start)
        elif isinstance(space, spaces.Box):
            values = values * self._reach + self._middle
            if space.dtype.kind != "f":
                values = np.rint(values)
            values = np.clip(values, space.low, space.high)
        values = values.astype(space.dtype)
        return values if isinstance(space, spaces.Discrete) else np.asarray(values)  # numpy makes scalars of shape ()

    def each_to_env(self, stored: np.ndarray) -> Any:
        """`to_env` of a batch (N, ...), to be iterated over: an array each, of a Discrete action an integer."""
        actions = self.to_env(stored)
        if actions.ndim > 1 or isinstance(self.space, spaces.Discrete):
            return actions
        return [actions[row, ...] for row in range(len(actions))]  # what iterating gives are scalars and no arrays

    def from_env(self, actions: np.ndarray) -> np.ndarray:
        """The inverse of `to_env` for a batch (N, ...) of the environment's actions: (N, *spec.shape) as stored.

        Raises ValueError, naming the first of them, where they are not in the space: categories and bits are whole
        numbers, so are those of a Box of integers, and a Box has bounds (within BOUNDS_TOLERANCE of the larger one).
        """
        space = self.space
        if actions.shape[1:] != (space.shape or ()):
            raise ValueError(f"actions have shape {actions.shape[1:]}, the action space {space.shape or ()}")
        if actions.dtype.kind not in _NUMBERS:
            raise ValueError(f"actions have dtype {actions.dtype}, the action space {space} has numbers")
        low, high = self._range
        real = isinstance(space, spaces.Box) and space.dtype.kind == "f"
        slack = BOUNDS_TOLERANCE * np.maximum(np.abs(low), np.abs(high)) if real else 0.0
        inside = (actions >= low - slack) & (actions <= high + slack)  # False for NaN
        if not real:
            inside &= actions == np.rint(actions)
        if not inside.all():
            t = int((~inside.reshape(len(actions), -1).all(axis=1)).argmax())
            raise ValueError(f"action {t} is {actions[t].tolist()}, which is outside the action space {space}")
        values = actions
        if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            values = actions - space.start
        elif isinstance(space, spaces.Box):
            reach = np.where(self._reach > 0, self._reach, 1.0)
            values = np.clip((actions - self._middle) / reach, -1.0, 1.0)
        return values.reshape(len(actions), *self.spec.shape).astype(self.spec.dtype)

    @cached_property
    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the largest of what the environment takes, float64 of the space's shape."""
        match self.space:
            case spaces.Box(low=low, high=high):
                pass
            case spaces.Discrete(start=low, n=num) | spaces.MultiDiscrete(start=low, nvec=num):
                low, high = np.asarray(low), np.asarray(low + num - 1)
            case space:
                low, high = np.zeros(space.shape or ()), np.ones(space.shape or ())
        return low.astype(np.float64), high.astype(np.float64)

    @staticmethod
    def _check_bounds(space: spaces.Box) -> None:
        if not (space.is_bounded() and (np.abs(np.stack([space.low, space.high]).astype(np.float64)) < NO_BOUND).all()):
            raise ValueError(
                f"the action space {space} has no finite bounds to rescale to: give low and high (the largest float "
                "counts as none), for example with gymnasium.wrappers.TransformAction(env, func, Box(-1, 1, shape))"
            )


def middle_and_reach(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """What a stored action of 0 stands for, and how far one of 1 is from it, float64 of the space's shape."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return (high + low) / 2, (high - low) / 2


def sample_actions(spec: ActionSpec, num: int, rng: np.random.Generator, legal: np.ndarray | None = None) -> np.ndarray:
    """`num` uniform actions in stored form, (num, *spec.shape).

    legal: (num, vector_size), nonzero where a category may be chosen (see `check_action_mask`); None where all may.
    Raises ValueError if a row leaves no choice.
    """
    shape = (num, *spec.shape)
    if legal is not None:
        return _sample_legal(spec, legal, rng).reshape(shape).astype(spec.dtype)
    if spec.kind == "continuous":
        return rng.uniform(-1.0, 1.0, shape).astype(spec.dtype)
    # (`rng.integers` takes many times as long for a few.)
    categories = (spec.nvec[0] if spec.kind == "discrete" else spec.nvec) or 2
    return np.multiply(rng.random(shape), categories).astype(spec.dtype)


def is_legal(spec: ActionSpec, actions: np.ndarray, legal: np.ndarray) -> np.ndarray:
    """(num, *spec.shape) bool: which entries of stored `actions` are legal. legal: as in `sample_actions`."""
    offsets = np.cumsum((0, *spec.nvec[:-1]))
    flat = np.asarray(legal).reshape(len(actions), -1)
    chosen = flat[np.arange(len(actions))[:, None], offsets + actions.reshape(len(actions), -1)] != 0
    return chosen.reshape(actions.shape)


def check_action_mask(name: str, obs_spec: Mapping[str, ArraySpec], action_spec: ActionSpec) -> None:
    """Raises ValueError unless observation `name` can say which actions are legal: one number for each category.

    Those of a MultiDiscrete action are end to end: the mask has the length of all its categories together.
    """
    setting = f"Experiment.action_mask_key={name!r}"
    if action_spec.kind not in ("discrete", "multidiscrete"):
        raise ValueError(f"{setting}: only Discrete and MultiDiscrete actions have masks, not {action_spec.kind} ones")
    if name not in obs_spec:
        raise ValueError(f"{setting}: no observation is named so; there are {', '.join(map(repr, obs_spec))}")
    if obs_spec[name].nvec or obs_spec[name].shape != (action_spec.vector_size,):
        raise ValueError(
            f"{setting}: a mask is a Box or MultiBinary of shape {(action_spec.vector_size,)}, one number for each "
            f"category of the action, not of shape {obs_spec[name].shape}"
        )


def _sample_legal(spec: ActionSpec, legal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(num, len(nvec)) int64: uniform among the legal categories of each entry."""
    chosen, start = [], 0
    for size in spec.nvec:
        part = np.asarray(legal)[:, start : start + size] != 0
        if not part.any(axis=1).all():
            raise ValueError(f"the action mask allows no action in row {int(np.argmin(part.any(axis=1)))}")
        chosen.append(np.where(part, rng.random(part.shape), -1.0).argmax(axis=1))
        start += size
    return np.stack(chosen, axis=1)


@dataclass(frozen=True)
class _Leaf:
    """One array of an observation.

    path: keys that lead to it in an observation. shape: as in the space. start: least value of each category.
    binary: whether it holds nothing but 0 and 1.
    """

    name: str
    path: tuple[Any, ...]
    shape: tuple[int, ...]
    spec: ArraySpec
    start: tuple[int, ...] = ()
    binary: bool = False

    @cached_property
    def _stored_as_it_is(self) -> np.dtype | None:
        """The dtype of arrays of which, with the right shape, nothing else is to be seen; None where there are none."""
        return None if self.spec.nvec or self.binary else np.dtype(self.spec.dtype)

    @cached_property
    def _kinds(self) -> str:
        return _NUMBERS if np.dtype(self.spec.dtype).kind == "f" else _INTEGERS

    @cached_property
    def _categories(self) -> tuple[np.ndarray, np.ndarray]:
        """The least value and the number of categories, in the stored shape."""
        return np.reshape(self.start, self.spec.shape), np.reshape(self.spec.nvec, self.spec.shape)

    def _part_of(self, obs: Any) -> np.ndarray:
        if type(obs) is np.ndarray and not self.path:
            return obs
        try:
            for key in self.path:
                obs = obs[key]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"observation {self.name!r} is missing: {type(error).__name__}: {error}") from error
        return as_array(obs, f"observation {self.name!r}")

    def shape_of(self, obs: Any) -> tuple[int, ...]:
        """Shape of this array's part of `obs`, whatever it is."""
        return self._part_of(obs).shape

    def read(self, obs: Any, batch: tuple[int, ...] = ()) -> np.ndarray | int:
        """This array's part of `obs`, (*batch, *spec.shape), checked; integers not yet of the stored dtype."""
        value = self._part_of(obs)
        if value.shape != batch + self.shape:
            raise ValueError(f"observation {self.name!r} has shape {value.shape}, its space {batch + self.shape}")
        if value.dtype is self._stored_as_it_is:
            return value
        if value.dtype.kind not in self._kinds:
            raise ValueError(f"observation {self.name!r} has dtype {value.dtype}, its space stores {self.spec.dtype}")
        if self.spec.nvec:
            return self._from_zero(value, batch)
        if self._kinds is _NUMBERS:
            return self._as_stored(value)
        if self.binary or value.dtype.name != self.spec.dtype:
            self._check_range(value)
        return value

    def _as_stored(self, value: np.ndarray) -> np.ndarray:
        """In the stored dtype. What is too large becomes infinite, which is told of as that.

        Warns where whole numbers are rounded, and not of others: those that have digits are expected to lose some.
        """
        with np.errstate(over="ignore"):
            stored = value.astype(self._stored_as_it_is)
            if value.dtype.kind in "iu" and not np.can_cast(value.dtype, self.spec.dtype):
                rounded = stored.astype(np.float64) != value
                if rounded.any():
                    first = int(value[rounded][0])
                    warn(f"observation {self.name!r}: whole numbers, such as {first}, are rounded to {self.spec.dtype}")
        return stored

    @cached_property
    def _range(self) -> tuple[int, int]:
        """The least and the largest number that can be stored."""
        if self.binary or self.spec.dtype == "bool":
            return 0, 1
        info = np.iinfo(self.spec.dtype)
        return int(info.min), int(info.max)

    def _check_range(self, value: np.ndarray) -> None:
        low, high = self._range
        if value.size and (int(value.min()) < low or int(value.max()) > high):
            bad = value[(value < low) | (value > high)].flat[0] if value.ndim else value
            raise ValueError(
                f"observation {self.name!r} is outside its space: {int(bad)} is not between {low} and {high}"
            )

    def _from_zero(self, value: np.ndarray, batch: tuple[int, ...]) -> np.ndarray | int:
        """Categories counted from 0."""
        if value.ndim == 0:  # one Discrete: plain numbers, since numpy takes microseconds over a scalar
            category = int(value) - self.start[0]
            inside = 0 <= category < self.spec.nvec[0]
        else:
            start, nvec = self._categories
            category = value.reshape(batch + self.spec.shape).astype(np.int64) - start
            inside = ((category >= 0) & (category < nvec)).all()
        if not inside:
            raise ValueError(f"observation {self.name!r} is outside its space: {value.tolist()!s:.80}")
        return category


def as_array(values: Any, name: str) -> np.ndarray:
    """`values` as an array. Raises ValueError, which begins with `name`, for what NumPy cannot make one of."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error}"
        remedy = "of a tensor, .detach().cpu().float() can (NumPy has no bfloat16)"
        raise ValueError(f"{name} cannot be made a NumPy array ({why}); {remedy}") from error


def _leaves(space: gym.Space, path: tuple[Any, ...], name: str) -> Iterator[_Leaf]:
    """Every array below `space`, which is found at `path` of the observation, in the space's order."""
    match space:
        case spaces.Dict() | spaces.Tuple():
            parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
            for key, part in parts:
                yield from _leaves(part, (*path, key), f"{name}/{key}" if name else str(key))
        case spaces.Box():
            wide = space.dtype is not None and space.dtype.kind == "f" and space.dtype.itemsize > 4
            dtype = "float32" if wide else space.dtype.name
            bounds = Bounds.of(space.low, space.high)
            yield _Leaf(name, path, space.shape, ArraySpec(space.shape, dtype, bounds=bounds))
        case spaces.MultiBinary():
            yield _Leaf(name, path, space.shape, ArraySpec(space.shape, "int8"), binary=True)
        case spaces.Discrete():
            num = int(space.n)
            yield _Leaf(name, path, (), ArraySpec((), _category_dtype(num), (num,)), (int(space.start),))
        case spaces.MultiDiscrete():
            nvec, start = tuple(space.nvec.ravel().tolist()), tuple(space.start.ravel().tolist())
            yield _Leaf(name, path, space.shape, ArraySpec((len(nvec),), _category_dtype(max(nvec)), nvec), start)
        case _:
            raise ValueError(
                f"the observation space {described(space)} at {name!r} is not supported: "
                f"use Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these; "
                f"{observation_remedy(space)}"
            )


def _category_dtype(num: int) -> str:
    """The smallest dtype for 0 ... num - 1, among the integers that PyTorch computes with."""
    return next(name for name in ("uint8", "int16", "int32", "int64") if num - 1 <= np.iinfo(name).max)


def _check_categories(space: gym.Space, total: int) -> None:
    """Raises ValueError for actions of too many categories. Observations of many are embedded."""
    if total > MAX_CATEGORIES:
        raise ValueError(
            f"the action space {described(space)} has {total} categories, and networks see a vector of as many numbers "
            f"at each timestep: {MAX_CATEGORIES} are the most; split it into the digits of a MultiDiscrete, or make it "
            "a Box of features, with gymnasium.wrappers.TransformAction"
        )
