"""Spaces as JSON, complete: what acting needs of an environment that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from amago_ray.atomic_files import read_json, write_atomically
from amago_ray.specs import Bounds


def write_spaces(path: Path, observation_space: gym.Space, action_space: gym.Space) -> None:
    """Keep both spaces of an environment in a file, from which `read_spaces` builds equal ones."""
    text = json.dumps({"observation": to_plain(observation_space), "action": to_plain(action_space)}, indent=1)
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_spaces(path: Path) -> tuple[gym.Space, gym.Space]:
    """Observation and action space of a file that `write_spaces` wrote. Raises ValueError where it cannot be read."""
    try:
        plain = read_json(path, "observation", "action")
        return from_plain(plain["observation"]), from_plain(plain["action"])
    except (OSError, KeyError, TypeError, ValueError, AssertionError, AttributeError) as error:  # gymnasium asserts
        raise ValueError(f"{path} holds no spaces that can be read: {type(error).__name__}: {error}") from error


def to_plain(space: gym.Space) -> dict[str, Any]:
    """A space as lists, dicts, text and numbers. Raises ValueError for one that cannot be stored (see `obs_spec`)."""
    match space:
        case spaces.Dict():
            return {"space": "Dict", "parts": [[key, to_plain(part)] for key, part in space.spaces.items()]}
        case spaces.Tuple():
            return {"space": "Tuple", "parts": [to_plain(part) for part in space.spaces]}
        case spaces.Box():
            shape = Bounds.of(space.low, space.high).shape  # an image of bytes has one pair of numbers
            low, high = (bound[tuple(slice(n) for n in shape)].tolist() for bound in (space.low, space.high))
            return {"space": "Box", "dtype": str(space.dtype), "shape": list(space.shape), "low": low, "high": high}
        case spaces.MultiBinary():
            n = space.n if isinstance(space.n, int) else list(space.n)
            return {"space": "MultiBinary", "n": n}
        case spaces.Discrete():
            return {"space": "Discrete", "dtype": str(space.dtype), "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete():
            values = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
            return {"space": "MultiDiscrete", "dtype": str(space.dtype), **values}
    raise ValueError(f"the space {space} cannot be kept: use Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple")


def from_plain(plain: dict[str, Any]) -> gym.Space:
    """The inverse of `to_plain`. Raises ValueError for the name of no space."""
    match plain["space"]:
        case "Dict":
            return spaces.Dict([(key, from_plain(part)) for key, part in plain["parts"]])
        case "Tuple":
            return spaces.Tuple([from_plain(part) for part in plain["parts"]])
        case "Box":
            dtype, shape = np.dtype(plain["dtype"]), tuple(plain["shape"])
            low, high = (np.broadcast_to(np.array(plain[name], dtype), shape).copy() for name in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        case "MultiBinary":
            return spaces.MultiBinary(plain["n"])
        case "Discrete":
            return spaces.Discrete(plain["n"], start=plain["start"], dtype=np.dtype(plain["dtype"]).type)
        case "MultiDiscrete":
            dtype = np.dtype(plain["dtype"]).type
            return spaces.MultiDiscrete(plain["nvec"], dtype=dtype, start=plain["start"])
    raise ValueError(f"there is no space {plain['space']!r}")
