"""The row tables: every step once, in its place, and cut so that the pieces join."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from amago_ray.envs.makers import Transition
from amago_ray.messages import Trajectory
from amago_ray.rollout.recorder import TrajectoryRecorder
from amago_ray.specs import ActionSpec, ArraySpec

OBS_SPEC = {"place": ArraySpec((2,), "float32"), "kind": ArraySpec((), "uint8", (200,))}
ACTION_SPEC = ActionSpec("discrete", (), "int64", 5, (5,))


def observe(*steps: int) -> dict[str, np.ndarray]:
    """Observations of environments that are at `steps`."""
    step = np.array(steps)
    return {"place": np.stack([step, -step], axis=1).astype(np.float32), "kind": step.astype(np.uint8)}


def transition(*steps: int, **flags: Any) -> Transition:
    """All environments arrive at `steps` with 10 times that reward; flags are given as lists of rows."""
    rows = {name: np.isin(np.arange(len(steps)), chosen) for name, chosen in flags.items()}
    none = np.zeros(len(steps), bool)
    failed = rows.get("failed", none)
    return Transition(
        obs=observe(*steps),
        rewards=np.where(failed, 0, 10 * np.array(steps)).astype(np.float32),
        terminated=rows.get("terminated", none),
        truncated=rows.get("truncated", none),
        stepped=~(failed | rows.get("resting", none)),
        failed=failed,
    )


def recorder(num_envs: int = 2, max_transitions: int = 10) -> TrajectoryRecorder:
    recorder = TrajectoryRecorder(OBS_SPEC, ACTION_SPEC, num_envs, max_transitions, worker=3, incarnation=1)
    recorder.begin(np.ones(num_envs, bool), observe(*[0] * num_envs))
    return recorder


def step(recorder: TrajectoryRecorder, *steps: int, version: int = 0, **flags: Any) -> list[Trajectory]:
    actions = np.array(steps) % 5
    return recorder.add(transition(*steps, **flags), actions, ["left", "right"][: len(steps)], version)


def assert_rows(t: Trajectory, steps: list[int]) -> None:
    """`t` holds the rows of `steps`, of which only step 0 starts a rollout."""
    row = np.array(steps)
    np.testing.assert_array_equal(t.columns["obs.place"], observe(*steps)["place"])
    np.testing.assert_array_equal(t.columns["obs.kind"], row)
    np.testing.assert_array_equal(t.columns["action"], row % 5)
    np.testing.assert_array_equal(t.columns["reward"], 10 * row)
    assert t.first_time_idx == steps[0] and t.num_transitions == len(steps) - 1
    dtypes = {name: column.dtype.name for name, column in t.columns.items()}
    assert dtypes == {
        "obs.place": "float32",
        "obs.kind": "uint8",
        "action": "int64",
        "reward": "float32",
        "terminated": "bool",
    }


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_a_rollout_becomes_a_table(end: str) -> None:
    r = recorder()
    assert step(r, 1, 1) == step(r, 2, 2) == []
    (t,) = step(r, 3, 3, **{end: [1]})
    assert_rows(t, [0, 1, 2, 3])
    assert t.columns["terminated"].tolist() == [False, False, False, end == "terminated"]
    assert t.truncated == (end == "truncated")
    assert (t.env_name, t.id.worker, t.id.incarnation, t.id.sequence) == ("right", 3, 1, 0)


def test_a_long_rollout_is_cut_into_pieces_that_join() -> None:
    r = recorder(1, max_transitions=3)
    pieces = [t for i in range(1, 9) for t in step(r, i, terminated=[0] if i == 8 else [])]
    for piece, steps in zip(pieces, ([0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8]), strict=True):
        assert_rows(piece, steps)
        assert not piece.truncated
    assert [t.id.sequence for t in pieces] == [0, 1, 2]
    assert [t.columns["terminated"].any() for t in pieces] == [False, False, True]


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_a_rollout_that_ends_where_it_would_be_cut_leaves_one_piece(end: str) -> None:
    r = recorder(1, max_transitions=3)
    pieces = [t for i in range(1, 4) for t in step(r, i, **{end: [0] if i == 3 else []})]
    assert len(pieces) == 1 and pieces[0].truncated == (end == "truncated")
    r.begin(np.ones(1, bool), observe(0))
    assert r.time_idx.tolist() == [0]
    (t,) = [t for i in range(1, 4) for t in step(r, i)]
    assert_rows(t, [0, 1, 2, 3])


def test_the_time_index_runs_through_the_pieces_of_a_rollout() -> None:
    r = recorder(2, max_transitions=2)
    seen = []
    for i in range(1, 6):
        seen.append(r.time_idx.tolist())
        step(r, i, i, terminated=[1] if i == 3 else [])
        if i == 3:
            r.begin(np.array([False, True]), observe(i, 0))
    assert seen == [[0, 0], [1, 1], [2, 2], [3, 0], [4, 1]]


def test_rows_that_only_rest_are_not_recorded() -> None:
    r = recorder(2)
    step(r, 1, 1)
    assert len(step(r, 2, 2, terminated=[1])) == 1
    step(r, 3, 9, resting=[1])
    r.begin(np.array([False, True]), observe(3, 0))
    (t,) = step(r, 4, 1, truncated=[1])
    assert_rows(t, [0, 1])
    (t,) = step(r, 5, 2, truncated=[0])
    assert_rows(t, [0, 1, 2, 3, 4, 5])


def test_a_failure_drops_the_unfinished_piece_and_nothing_else() -> None:
    r = recorder(2, max_transitions=3)
    for i in range(1, 5):
        pieces = step(r, i, i)
        assert len(pieces) == (2 if i == 3 else 0)
    assert step(r, 5, 0, failed=[1]) == []
    r.begin(np.array([False, True]), observe(5, 0))
    left, right = pieces = step(r, 6, 1, truncated=[1])
    assert_rows(left, [3, 4, 5, 6])
    assert_rows(right, [0, 1])
    assert [t.id.sequence for t in pieces] == [2, 3]  # no number is left out


def test_the_weight_version_is_that_of_the_first_action() -> None:
    r = recorder(1, max_transitions=3)
    # Versions change between the observation and the action, as they do between two chunks.
    pieces = [t for i in range(1, 9) for t in step(r, i, version=10 + i, truncated=[0] if i == 8 else [])]
    assert [t.weight_version for t in pieces] == [11, 14, 17]
    r.begin(np.ones(1, bool), observe(0))
    (t,) = step(r, 1, version=30, truncated=[0])
    assert t.weight_version == 30


def test_trajectories_do_not_change_after_they_are_given_out() -> None:
    r = recorder(1, max_transitions=2)
    step(r, 1)
    (t,) = step(r, 2)
    for i in range(3, 7):
        step(r, i)
    assert_rows(t, [0, 1, 2])
