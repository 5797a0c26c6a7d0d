"""What stored rows mean: the spaces are kept beside them, since equal numbers mean other actions in other bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from amago_ray.atomic_files import read_json, write_atomically
from amago_ray.envs.spaces import OBSERVATION
from amago_ray.replay.datasets.dataset import RowLayout

FILE = "spaces.json"


def meaning(layout: RowLayout) -> dict[str, Any]:
    """Everything that says what stored numbers stand for, as plain values."""
    space = layout.action_space
    action: dict[str, Any] = {"kind": layout.action.spec.kind, "shape": list(space.shape or ())}
    match space:
        case spaces.Box():
            action |= {"dtype": str(space.dtype), "low": space.low.tolist(), "high": space.high.tolist()}
        case spaces.Discrete() | spaces.MultiDiscrete():
            action |= {"categories": list(layout.action.spec.nvec), "start": np.asarray(space.start).tolist()}
    return {"action space": action, "observation space": layout.obs.meaning}


def layout_of(recorded: Mapping[str, Any]) -> RowLayout | None:
    """A layout of this meaning, whose observations have no bounds, which are not kept; None for what is no meaning."""
    try:
        arrays = {name: _observation(*leaf) for name, leaf in recorded["observation space"].items()}
        only = arrays[OBSERVATION] if list(arrays) == [OBSERVATION] else spaces.Dict(arrays)
        found = RowLayout(only, _action(recorded["action space"]))
        return found if meaning(found) == recorded else None
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError):  # gymnasium asserts
        return None


def _observation(shape: list[int], dtype: str, nvec: list[int], start: list[int]) -> spaces.Space:
    if nvec and shape:
        return spaces.MultiDiscrete(np.reshape(nvec, shape), start=np.reshape(start, shape))
    if nvec:
        return spaces.Discrete(nvec[0], start=start[0])
    of = np.dtype(dtype)
    low, high = (-np.inf, np.inf) if of.kind == "f" else (np.iinfo(of).min, np.iinfo(of).max)
    return spaces.Box(low, high, tuple(shape), of.type)


def _action(kept: Mapping[str, Any]) -> spaces.Space:
    match kept["kind"]:
        case "continuous":
            of = np.dtype(kept["dtype"])
            return spaces.Box(np.array(kept["low"], of), np.array(kept["high"], of), tuple(kept["shape"]), of.type)
        case "discrete":
            return spaces.Discrete(kept["categories"][0], start=kept["start"])
        case "multidiscrete":
            return spaces.MultiDiscrete(np.reshape(kept["categories"], kept["shape"]), start=np.array(kept["start"]))
    return spaces.MultiBinary(kept["shape"])


def check_meaning(recorded: Mapping[str, Any] | None, layout: RowLayout, what: str) -> None:
    """Raises ValueError, which begins with `what`, where an earlier `meaning` is not that of `layout`; None passes."""
    for name, now in meaning(layout).items():
        if recorded is not None and recorded.get(name) != now:
            raise ValueError(f"{what}: the {name} was {recorded.get(name)}, and is now {now}")


def record_spaces(folder: Path, layout: RowLayout) -> None:
    """Keep in `folder`, which is made, what rows of this layout mean."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(meaning(layout), indent=1)
    write_atomically(folder / FILE, lambda path: path.write_text(text, encoding="utf-8"))


def recorded_spaces(folder: Path) -> dict[str, Any] | None:
    """What `record_spaces` kept; None in folders that are older than it. Raises ValueError for a broken file."""
    path = folder / FILE
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}; remove it to go on without this check") from error
