"""What stored rows mean: the spaces are kept beside them, since equal numbers mean other actions in other bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from amago_ray.atomic_files import read_json, write_atomically
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
