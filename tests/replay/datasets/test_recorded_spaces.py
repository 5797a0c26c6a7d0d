"""Stored numbers and the spaces that they are of: kept, compared, and refused where they mean something else."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from amago_ray.replay.datasets import RowLayout
from amago_ray.replay.datasets.recorded_spaces import (
    FILE,
    check_meaning,
    layout_of,
    meaning,
    record_spaces,
    recorded_spaces,
)

SEEN = spaces.Dict(kind=spaces.Discrete(3, start=1), x=spaces.Box(-1, 1, (2,)))
ACTIONS = [
    spaces.Box(-1, 1, (2,)),
    spaces.Box(-2, 2, (2,)),
    spaces.Box(-1, np.array([1, 1.5], np.float32)),
    spaces.Box(-1, 1, (1, 2)),
    spaces.Box(-1, 1, (2,), np.int64),
    spaces.Discrete(3),
    spaces.Discrete(3, start=1),
    spaces.MultiDiscrete([2, 2]),
    spaces.MultiDiscrete([2, 2], start=[0, 1]),
    spaces.MultiBinary(2),
]


@pytest.mark.parametrize("i", range(len(ACTIONS)))
def test_only_the_same_actions_mean_the_same(tmp_path: Path, i: int) -> None:
    record_spaces(tmp_path / "new", RowLayout(SEEN, ACTIONS[i]))
    kept = recorded_spaces(tmp_path / "new")
    assert kept == meaning(RowLayout(SEEN, ACTIONS[i])), "as plain values: a training state keeps it too"
    check_meaning(kept, RowLayout(SEEN, ACTIONS[i]), "resume")
    for other in (*ACTIONS[:i], *ACTIONS[i + 1 :]):
        with pytest.raises(ValueError, match="^resume: the action space was .*, and is now ") as refused:
            check_meaning(kept, RowLayout(SEEN, other), "resume")
        assert "\n" not in str(refused.value)


OBSERVED = [
    SEEN,
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Box(-1, 1, (2,), np.float64),
    spaces.Discrete(300, start=-1),
    spaces.Dict({"a": spaces.Tuple([spaces.MultiBinary((2, 2)), spaces.MultiDiscrete([[2, 3]], start=[[0, 5]])])}),
]


@pytest.mark.parametrize("action", ACTIONS, ids=str)
@pytest.mark.parametrize("observed", OBSERVED, ids=str)
def test_a_layout_is_made_of_what_was_kept(tmp_path: Path, observed: gym.Space, action: gym.Space) -> None:
    record_spaces(tmp_path, RowLayout(observed, action))
    kept = recorded_spaces(tmp_path)
    assert kept is not None
    layout = layout_of(kept)
    assert layout is not None
    check_meaning(kept, layout, "made")
    empty = RowLayout(observed, action).empty(2)
    assert {name: (x.shape, x.dtype) for name, x in layout.empty(2).items()} == {
        name: (x.shape, x.dtype) for name, x in empty.items()
    }


def test_no_layout_is_made_of_anything_else() -> None:
    kept = meaning(RowLayout(SEEN, ACTIONS[0]))
    for wrong in ({}, {"action space": {}}, kept | {"action space": {"kind": "discrete", "categories": []}}):
        assert layout_of(wrong) is None


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (spaces.Dict(x=spaces.Box(-9, 9, (2,)), kind=spaces.Discrete(3, start=1)), True),
        (spaces.Dict(kind=spaces.Discrete(3), x=spaces.Box(-1, 1, (2,))), False),
        (spaces.Dict(kind=spaces.Discrete(4, start=1), x=spaces.Box(-1, 1, (2,))), False),
        (spaces.Box(-1, 1, (2,)), False),
    ],
    ids=["bounds and order", "start", "categories", "names"],
)
def test_observations_mean_the_same_where_they_are_stored_alike(other: gym.Space, same: bool) -> None:
    kept, now = meaning(RowLayout(SEEN, ACTIONS[0])), RowLayout(other, ACTIONS[0])
    if same:
        check_meaning(kept, now, "data")
    else:
        with pytest.raises(ValueError, match="^data: the observation space was "):
            check_meaning(kept, now, "data")


def test_folders_from_before_say_nothing_and_broken_files_say_so(tmp_path: Path) -> None:
    assert recorded_spaces(tmp_path) is None
    check_meaning(None, RowLayout(SEEN, ACTIONS[0]), "data")
    record_spaces(tmp_path, RowLayout(SEEN, ACTIONS[0]))
    assert json.loads((tmp_path / FILE).read_text())["action space"]["low"] == [-1.0, -1.0]
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match=f"{FILE} is damaged: .*remove it"):
        recorded_spaces(tmp_path)
