"""The row tables: every step once, in its place, and cut so that the pieces join."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ring_cases import assert_uniform

from amago_ray.envs.makers import Transition
from amago_ray.messages import Trajectory
from amago_ray.rollout.recorder import TrajectoryRecorder
from amago_ray.specs import ActionSpec, ArraySpec

OBS_SPEC = {"place": ArraySpec((2,), "float32"), "kind": ArraySpec((), "uint8", (200,))}
NAMES = ["left", "right", "third"]
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
    return list(recorder.add(transition(*steps, **flags), actions, NAMES[: len(steps)], version).values())


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
    (t,) = [t for i in range(1, 4) for t in step(r, i)]
    assert_rows(t, [0, 1, 2, 3])


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


def slots(r: TrajectoryRecorder) -> int:
    (num,) = {len(column) for column in r._columns.values()}
    return num


def test_columns_grow_with_the_rollout_and_not_with_the_setting() -> None:
    r = recorder(3, max_transitions=10**10)
    assert slots(r) == 65
    for i in range(1, 190):  # beyond the 64 that there is room for at first, and beyond twice as many
        # The second one has rollouts of 7, and the third of 71, which lie across the end and the beginning.
        ends = [row for row, length in ((1, 7), (2, 71)) if i % length == 0]
        found = step(r, i, (i - 1) % 7 + 1, (i - 1) % 71 + 1, terminated=ends)
        for t, row in zip(found, ends, strict=True):
            assert_rows(t, list(range((7, 71)[row - 1] + 1)))
        r.begin(np.isin([0, 1, 2], ends), observe(i, 0, 0))
    left, third = r.cut_all(NAMES)
    assert_rows(left, list(range(190)))
    assert_rows(third, list(range(189 % 71 + 1)))
    assert slots(r) == 257


def test_columns_hold_no_more_than_the_longest_piece() -> None:
    r = recorder(2, max_transitions=70)
    pieces = [t for i in range(1, 250) for t in step(r, i, i)]
    assert len(pieces) == 6 and slots(r) == 71
    for n, t in enumerate(pieces):
        assert_rows(t, list(range(n // 2 * 70, n // 2 * 70 + 71)))


def test_rollouts_of_any_lengths_and_pieces_are_recorded_whole() -> None:
    rng = np.random.default_rng(0)
    for num, most, longest in ((1, 1, 5), (3, 4, 9), (5, 70, 300), (4, 130, 200)):
        r = recorder(num, max_transitions=most)
        at, resting = np.zeros(num, int), np.zeros(num, bool)
        seen: list[list[int]] = [[] for _ in range(num)]
        for _ in range(1500):
            at += ~resting
            ends = ~resting & (rng.random(num) < 2 / longest)
            fails = ~resting & ~ends & (rng.random(num) < 0.2 / longest)
            flags = {"truncated": ends, "failed": fails, "resting": resting}
            rows = {name: np.flatnonzero(flag).tolist() for name, flag in flags.items()}
            given = transition(*np.where(resting, 199, at % 200), **rows)
            finished = r.add(given, np.where(resting, 199, at % 200) % 5, [str(n) for n in range(num)], 0)
            for row, t in finished.items():
                steps = np.arange(t.first_time_idx, t.first_time_idx + t.num_transitions + 1)
                assert t.columns["obs.kind"].tolist() == (steps % 200).tolist()
                assert steps[-1] == at[row] and len(steps) <= most + 1 and t.env_name == str(row)
                seen[row].append(t.num_transitions)
            assert set(np.flatnonzero(ends)) <= set(finished)
            over = ends & (rng.random(num) < 0.5)  # the others rest in the coming step
            fresh = over | fails | resting
            resting = ends & ~over
            at[fresh] = 0
            r.begin(fresh, observe(*at % 200))
        assert all(map(len, seen))


def test_what_is_unfinished_can_be_cut_as_truncated() -> None:
    r = recorder(2, max_transitions=5)
    for i in range(1, 8):
        step(r, i, i, terminated=[1] if i == 7 else [])  # the right one ends here and has not begun again
    (left,) = r.cut_all(["left", "right"])
    assert_rows(left, [5, 6, 7])
    assert left.truncated and left.env_name == "left" and not left.columns["terminated"].any()


def staggered(first_env: int, num_envs: int, seed: int = 3, max_transitions: int = 10) -> TrajectoryRecorder:
    r = TrajectoryRecorder(OBS_SPEC, ACTION_SPEC, num_envs, max_transitions, 0, 0, 4, seed, first_env)
    r.begin(np.ones(num_envs, bool), observe(*[0] * num_envs))
    return r


def test_staggered_pieces_join_and_their_lengths_are_uniform() -> None:
    r = staggered(first_env=0, num_envs=1)
    pieces = [t for i in range(1, 8000) for t in step(r, i % 200)]
    lengths = np.array([t.num_transitions for t in pieces])
    assert [t.first_time_idx for t in pieces] == [0, *np.cumsum(lengths)[:-1]]
    counts = np.bincount(lengths)
    assert set(np.flatnonzero(counts)) == set(range(6, 15))
    assert_uniform(counts[6:15])


def test_staggered_lengths_are_those_of_the_environment_and_the_seed() -> None:
    def lengths(r: TrajectoryRecorder, num_envs: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in range(num_envs)]
        for _ in range(200):
            actions = np.zeros(num_envs, np.int64)
            for row, t in r.add(transition(*[1] * num_envs), actions, ["x"] * num_envs, 0).items():
                found[row].append(t.num_transitions)
        return found

    together = lengths(staggered(0, 2), 2)
    assert together == lengths(staggered(0, 1), 1) + lengths(staggered(1, 1), 1)
    assert together[0] != together[1] and together != lengths(staggered(0, 2, seed=4), 2)
    assert min(map(min, lengths(staggered(0, 2, max_transitions=2), 2))) == 1


@pytest.mark.parametrize(
    ("before", "now"),
    [((64, 0), (3, 0)), ((16, 0), (8, 0)), ((64, 20), (64, 0)), ((4, 0), (64, 20)), ((64, 0), (9, 4))],
)
def test_a_state_of_other_lengths_is_cut_by_those_of_now(before: tuple[int, int], now: tuple[int, int]) -> None:
    """From the first piece on; every step is there once."""
    old, new = (
        TrajectoryRecorder(OBS_SPEC, ACTION_SPEC, 2, length, worker=3, incarnation=1, stagger=stagger, seed=5)
        for length, stagger in (before, now)
    )
    new.load_state_dict(old.state_dict())
    new.begin(np.ones(2, bool), observe(0, 0))
    pieces = [piece for t in range(1, 151) for piece in step(new, t, t, **({"terminated": [0, 1]} if t == 150 else {}))]
    for name in NAMES[:2]:
        mine = [piece for piece in pieces if piece.env_name == name]
        assert sum(piece.num_transitions for piece in mine) == 150
        for piece in mine:
            assert_rows(piece, [*range(piece.first_time_idx, piece.first_time_idx + piece.num_transitions + 1)])
        length, stagger = now
        assert {length - stagger <= piece.num_transitions <= length + stagger for piece in mine[:-1]} == {True}
