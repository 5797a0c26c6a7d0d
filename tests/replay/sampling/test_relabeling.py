"""Hindsight, in the shard: which goals are chosen, what is computed anew, and what is left alone."""

from __future__ import annotations

import pickle
import re
from typing import Any

import gin
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from ring_cases import as_batch, assert_uniform, make_shards, sample, stored_trajectories
from torch import device

from amago_ray import config
from amago_ray.learner.batches import training_batch
from amago_ray.messages import SampledSequences, Trajectory, TrajectoryId
from amago_ray.replay.sampling.relabeling import (
    ACHIEVED,
    DESIRED,
    HindsightRelabeler,
    Relabeler,
    categories_of,
    relabeled,
)
from amago_ray.replay.shard import ReplayShard
from amago_ray.replay.storage.trajectory_pack import pack
from amago_ray.specs import ActionSpec, ArraySpec

NOWHERE = -99.0  # the goal of all collected rollouts, which nothing achieves
CHANGED = {DESIRED, "reward", "terminated"}
property_based = settings(max_examples=60, deadline=None, derandomize=True)


@gin.configurable
def minus_distance(achieved: np.ndarray, desired: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    """A dense reward, and one that is never 0 away from the goal."""
    return -np.linalg.norm(achieved - desired, axis=-1)


def goal_trajectory(path: np.ndarray, sequence: int = 0, **facts: Any) -> Trajectory:
    """A piece of a rollout that achieves the goals `path` (T + 1, ...); obs.row says where each row is from."""
    num_rows, first = len(path), facts.get("first_time_idx", 0)
    columns = {
        ACHIEVED: path.astype(np.float32),
        DESIRED: np.full(path.shape, NOWHERE, dtype=np.float32),
        "obs.row": np.arange(num_rows, dtype=np.int16),
        "action": (1 + np.arange(num_rows)) % 3,
        "reward": np.full(num_rows, -7.0, dtype=np.float32),
        "terminated": np.zeros(num_rows, dtype=bool),
    }
    if first == 0:
        columns["action"][0] = columns["reward"][0] = 0
    facts = {"env_name": "walk", "first_time_idx": 0, "truncated": True, "weight_version": 0} | facts
    return Trajectory(id=TrajectoryId(0, 0, sequence), columns=columns, **facts)


def line(num: int, sequence: int = 0, **facts: Any) -> Trajectory:
    """`num` transitions straight ahead: another goal in every row."""
    first = facts.get("first_time_idx", 0)
    return goal_trajectory(np.stack([first + np.arange(num + 1), np.zeros(num + 1)], axis=1), sequence, **facts)


def shard_of(trajectories: list[Trajectory], relabeler: Relabeler | None, max_seq_len: int = 100) -> ReplayShard:
    (shard,) = make_shards(1, max_seq_len, relabeler=relabeler)
    shard.push(pack(trajectories))
    shard.commit()
    return shard


def tables(drawn: SampledSequences) -> list[dict[str, np.ndarray]]:
    batch = as_batch(drawn)
    rows = {name: batch.rows(name) for name in batch.column_names}
    return [{name: column[i] for name, column in rows.items()} for i in range(batch.num_sequences)]


def goals(drawn: SampledSequences) -> np.ndarray:
    """(n, 2) the goal of each sequence."""
    return np.stack([table[DESIRED][0] for table in tables(drawn)])


def test_future_goals_are_uniform_over_all_that_is_achieved_later() -> None:
    shard = shard_of([line(10)], HindsightRelabeler("future", probability=1.0))
    drawn = sample(shard, 4000)
    chosen = goals(drawn)[:, 0].astype(int)
    assert_uniform(np.bincount(chosen, minlength=11)[1:])
    assert (chosen > 0).all() and (drawn.lengths == chosen).all()


def test_each_transition_sees_goals_uniform_over_its_own_future() -> None:
    """Which makes it the strategy of that name, though a whole sequence has one goal."""
    chosen = goals(sample(shard_of([line(8)], HindsightRelabeler("future", probability=1.0)), 6000))[:, 0].astype(int)
    for t in range(7):
        assert_uniform(np.bincount(chosen[chosen > t], minlength=9)[t + 1 :])


def test_final_goals_are_those_of_the_last_row() -> None:
    shard = shard_of([line(n, sequence=n) for n in range(1, 9)], HindsightRelabeler("final", probability=1.0))
    drawn = sample(shard, 200)
    assert (goals(drawn)[:, 0] == drawn.ids[:, 2]).all() and (drawn.lengths == drawn.ids[:, 2]).all()
    assert all(
        table["reward"][1:].tolist() == [0.0] * (n - 1) + [1.0] for table, n in zip(tables(drawn), drawn.lengths)
    )


def test_the_other_trajectories_are_untouched() -> None:
    stored = [line(n, sequence=n) for n in range(1, 9)]
    drawn = sample(shard_of(stored, HindsightRelabeler(probability=0.3)), 4000)
    untouched = [table for table in zip(tables(drawn), drawn.ids[:, 2]) if table[0][DESIRED][0, 0] == NOWHERE]
    assert abs(len(untouched) / 4000 - 0.7) < 5 * np.sqrt(0.3 * 0.7 / 4000)
    for table, sequence in untouched:
        for name, column in stored[sequence - 1].columns.items():
            np.testing.assert_array_equal(table[name], column, err_msg=name)


@property_based
@given(
    length=st.integers(1, 30),
    max_seq_len=st.integers(1, 12),
    strategy=st.sampled_from(["future", "final"]),
    tolerance=st.sampled_from([0.0, 1.0, 2.3]),
    first_time_idx=st.sampled_from([0, 40]),
    dense=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_what_is_computed_anew_is_consistent(
    length: int, max_seq_len: int, strategy: Any, tolerance: float, first_time_idx: int, dense: bool, seed: int
) -> None:
    """Random walks that come back to where they were; slices of them; pieces from the middle of a rollout."""
    rng = np.random.default_rng(seed)
    path = np.cumsum(rng.integers(-1, 2, (length + 1, 2)), axis=0)
    stored = goal_trajectory(path, first_time_idx=first_time_idx)
    reward_fn = minus_distance if dense else None
    shard = shard_of([stored], HindsightRelabeler(strategy, 1.0, tolerance, reward_fn), max_seq_len)
    drawn = sample(shard, 8)
    apart = np.linalg.norm(path - path[0], axis=1) > tolerance
    possible = apart[-1] if strategy == "final" else apart.any()
    for table, first in zip(tables(drawn), (drawn.first_time_idx - first_time_idx).tolist()):
        rows = np.arange(first, first + len(table["reward"]))
        np.testing.assert_array_equal(table["obs.row"], rows)
        for name in table.keys() - (CHANGED if possible else set()):
            np.testing.assert_array_equal(table[name], stored.columns[name][rows], err_msg=name)
        if not possible:
            continue
        goal = table[DESIRED][0]
        assert (table[DESIRED] == goal).all(), "a sequence has one goal"
        distance = np.linalg.norm(path - goal, axis=1)
        end = int((distance <= tolerance).argmax())
        assert (path[path.shape[0] - 1] == goal).all() if strategy == "final" else (path == goal).all(axis=1).any()
        assert 0 < end and rows[-1] <= end, "it ends with the first transition that reaches the goal"
        assert table["terminated"].tolist() == (rows == end).tolist()
        rewards = -distance[rows] if dense else (rows == end).astype(float)
        if first_time_idx + first == 0:
            rewards[0] = 0.0
        np.testing.assert_allclose(table["reward"], rewards, rtol=1e-6)
        assert {name: column.dtype for name, column in table.items()} == {
            name: column.dtype for name, column in stored.columns.items()
        }


def test_the_first_row_of_a_later_piece_gets_its_reward_anew() -> None:
    """It is the previous reward that the policy saw there; the first row of a rollout has none."""
    pieces = [line(5, sequence=0), line(5, sequence=1, first_time_idx=5)]
    drawn = sample(shard_of(pieces, HindsightRelabeler("final", 1.0, reward_fn=minus_distance)), 100)
    assert set(drawn.first_time_idx.tolist()) == {0, 5}
    for table, first_time_idx in zip(tables(drawn), drawn.first_time_idx):
        assert table["reward"].tolist() == [0.0 if first_time_idx == 0 else -5.0, -4.0, -3.0, -2.0, -1.0, 0.0]


def test_a_later_piece_may_begin_after_action_0_and_a_reward_of_0() -> None:
    """It is told from the start of a rollout by its place in the rollout, not by its numbers."""
    pieces = [line(3, sequence=0), line(3, sequence=1, first_time_idx=3)]
    pieces[1].columns["action"][0] = pieces[1].columns["reward"][0] = 0
    relabeler = HindsightRelabeler("final", 1.0, reward_fn=minus_distance)
    drawn = sample(shard_of(pieces, relabeler), 50)
    for table, first_time_idx in zip(tables(drawn), drawn.first_time_idx):
        assert table["reward"].tolist() == [0.0 if first_time_idx == 0 else -3.0, -2.0, -1.0, 0.0]
    answer = relabeled(relabeler, pieces[1].columns, np.random.default_rng(0), first_time_idx=3)
    assert answer["reward"].tolist() == [-3.0, -2.0, -1.0, 0.0]


class HandsOn(HindsightRelabeler):
    """A user's own, of the plain signature or of any."""

    def __call__(self, *given: Any, **named: Any) -> dict[str, np.ndarray]:
        return super().__call__(*given, **named)


def test_relabelers_are_told_the_place_of_a_piece_where_they_ask() -> None:
    columns, rng = line(3, first_time_idx=3).columns, np.random.default_rng(0)
    assert relabeled(Answering(lambda c: dict(c)), columns, rng, first_time_idx=3).keys() == columns.keys()
    assert relabeled(HandsOn("final", 1.0, reward_fn=minus_distance), columns, rng, first_time_idx=3)["reward"][0] == -3


def test_the_learner_sees_new_previous_rewards_and_goals() -> None:
    drawn = sample(shard_of([line(6)], HindsightRelabeler("future", 1.0)), 16)
    batch = training_batch(as_batch(drawn), ActionSpec("discrete", (), "int64", 3, (3,)), device("cpu"))
    reaching = drawn.lengths - 1
    for b, last in enumerate(reaching.tolist()):
        assert batch.rewards[b].nonzero().tolist() == batch.terminated[b].nonzero().tolist() == [[last]]
        assert batch.rl2[b, :, 0].nonzero().tolist() == [[last + 1]]
        assert (batch.obs["desired_goal"][b, : last + 2, 0] == last + 1).all()


@pytest.mark.parametrize("strategy", ["future", "final"])
def test_goals_that_hold_from_the_start_are_not_chosen(strategy: Any) -> None:
    still = goal_trajectory(np.zeros((6, 2)))
    (table,) = tables(sample(shard_of([still], HindsightRelabeler(strategy, 1.0)), 1))
    for name, column in still.columns.items():
        np.testing.assert_array_equal(table[name], column, err_msg=name)
    there_and_back = goal_trajectory(np.array([[0, 0], [1, 0], [2, 0], [1, 0], [0, 0]]))
    drawn = sample(shard_of([there_and_back], HindsightRelabeler(strategy, 1.0)), 300)
    expected = {NOWHERE} if strategy == "final" else {1.0, 2.0}
    assert set(goals(drawn)[:, 0].tolist()) == expected


def test_a_draw_is_a_function_of_its_name() -> None:
    shards = [shard_of([line(9, i) for i in range(5)], HindsightRelabeler()) for _ in range(2)]
    (a, b), other = (sample(shard, 50, draw=(1, 2)) for shard in shards), sample(shards[0], 50, draw=(1, 3))
    for name, column in a.columns.items():
        np.testing.assert_array_equal(column, b.columns[name], err_msg=name)
    assert goals(a).tolist() != goals(other).tolist()


def test_what_is_stored_stays_as_it_was() -> None:
    stored = [line(n, sequence=n) for n in range(1, 5)]
    shard = shard_of(stored, HindsightRelabeler(probability=1.0))
    sample(shard, 100)
    for before, after in zip(stored, stored_trajectories(shard), strict=True):
        for name, column in before.columns.items():
            np.testing.assert_array_equal(after.columns[name], column, err_msg=name)
    columns = {name: column.copy() for name, column in stored[-1].columns.items()}
    for column in columns.values():
        column.flags.writeable = False
    HindsightRelabeler(probability=1.0)(columns, np.random.default_rng(0))


def test_integer_goals_of_any_shape() -> None:
    trajectory = goal_trajectory(np.arange(10).reshape(5, 1, 2))
    for name in (ACHIEVED, DESIRED):
        trajectory.columns[name] = trajectory.columns[name].astype(np.uint8)
    for tolerance in (0.0, 0.5):
        table = HindsightRelabeler("final", 1.0, tolerance)(trajectory.columns, np.random.default_rng(0))
        assert table[DESIRED].tolist() == [[[8, 9]]] * 5 and table[DESIRED].dtype == np.uint8


def test_as_gin_configures_it() -> None:
    config.load([], ["HindsightRelabeler.strategy = 'final'", "HindsightRelabeler.reward_fn = @minus_distance"])
    relabeler = pickle.loads(pickle.dumps(HindsightRelabeler(probability=1.0)))
    gin.clear_config()
    assert relabeler(line(3).columns, np.random.default_rng(0))["reward"].tolist() == [0.0, -2.0, -1.0, 0.0]


@pytest.mark.parametrize(("name", "value"), [("strategy", "episode"), ("probability", 1.5), ("tolerance", -0.1)])
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"HindsightRelabeler\.{name}={value!r}: "):
        HindsightRelabeler(**{name: value})


def test_trajectories_without_goals_are_refused() -> None:
    columns = line(3).columns
    without = {name: column for name, column in columns.items() if name != ACHIEVED}
    for bad in (without, columns | {DESIRED: columns[DESIRED][:, :1]}):
        with pytest.raises(ValueError, match="'achieved_goal' and a 'desired_goal' of the same shape, and they have"):
            HindsightRelabeler(probability=0.0)(bad, np.random.default_rng(0))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float16])
def test_goals_that_would_become_others_are_refused(dtype: Any) -> None:
    """Also in trajectories that stay as they are. What is held exactly is fine."""
    columns = line(3).columns
    columns |= {ACHIEVED: columns[ACHIEVED].astype(np.float32), DESIRED: columns[DESIRED].astype(dtype)}
    columns[ACHIEVED][2, 1] = 4099.25
    with pytest.raises(ValueError, match=rf"'achieved_goal' of float32 holds 4099.25.* no {np.dtype(dtype)} as 'des"):
        HindsightRelabeler(probability=0.0)(columns, np.random.default_rng(0))
    columns[ACHIEVED][2, 1] = 7
    relabeled = HindsightRelabeler("final", 1.0)(columns, np.random.default_rng(0))
    np.testing.assert_array_equal(relabeled[DESIRED][-1], relabeled[ACHIEVED][-1])
    assert relabeled[DESIRED].dtype == dtype


def test_a_reward_function_that_gives_too_few_is_refused() -> None:
    relabeler = HindsightRelabeler("final", 1.0, reward_fn=lambda achieved, desired, info: 1.0)
    with pytest.raises(ValueError, match=re.escape("it gave rewards of shape () for 4 goals")):
        relabeler(line(3).columns, np.random.default_rng(0))


class Answering(Relabeler):
    """Gives what a function makes of the columns."""

    def __init__(self, make: Any):
        self.make = make

    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> Any:
        return self.make(columns)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: None, "it answered NoneType; it must be a dict of the columns it was given"),
        (lambda c: {k: v for k, v in c.items() if k != "action"}, r"lacks the columns \['action'\], and has \[\] in"),
        (lambda c: c | {"goal": c["reward"]}, r"lacks the columns \[\], and has \['goal'\] in excess"),
        (lambda c: {k: v[:1] for k, v in c.items()}, "has 1 rows; it must have between 2 and the 4 that it was given"),
        (lambda c: {k: np.repeat(v, 2, 0) for k, v in c.items()}, "has 8 rows; it must have between 2 and the 4"),
        (
            lambda c: c | {"action": c["action"][:3]},
            r"column 'action' .* has shape \(3,\), which with 4 rewards must be",
        ),
        (lambda c: c | {DESIRED: c[DESIRED][:, :1]}, r"'obs.desired_goal' of its answer has shape \(4, 1\).*\(4, 2\)"),
        (lambda c: c | {"action": c["action"] + 0.5}, "column 'action' of its answer holds 0.5, which is no int64"),
        (lambda c: c | {"obs.row": c["obs.row"] + np.int64(1 << 16)}, "'obs.row' .* holds 65536, which is no int16"),
        (
            lambda c: c | {"reward": c["reward"].astype(object)},
            "'reward' of its answer has dtype object; it must be fl",
        ),
        (lambda c: c | {"reward": c["reward"] * np.nan}, "'reward' of its answer holds nan, which is not finite"),
        (
            lambda c: c | {DESIRED: c[DESIRED] * np.float32(np.inf)},
            "'obs.desired_goal' .* holds -inf, which is not finite",
        ),
        (lambda c: c | {"action": c["action"] - 7}, "'action' of its answer holds -7; .* are integers counted from 0"),
    ],
)
def test_answers_that_are_no_table_are_refused(make: Any, message: str) -> None:
    """In one line, which names the relabeler."""
    shard = shard_of([line(3)], Answering(make))
    with pytest.raises(ValueError, match=f"^Experiment.relabeler_type=Answering: .*{message}") as refused:
        sample(shard, 1)
    assert "\n" not in str(refused.value)


def test_actions_that_no_box_has_are_refused() -> None:
    columns = line(3).columns | {"action": np.array([[0.0], [1.0], [-1.0], [0.5]], np.float32)}
    rng = np.random.default_rng(0)
    assert relabeled(Answering(lambda c: c | {"action": -c["action"]}), columns, rng)["action"][1] == -1
    with pytest.raises(ValueError, match="relabeler_type=Answering: column 'action' .* holds 2.0; .* from -1 to 1"):
        relabeled(Answering(lambda c: c | {"action": c["action"] * 2}), columns, rng)


def test_answers_come_in_the_dtypes_that_are_stored() -> None:
    """Rewards are often float64 and flags numbers, which the learner could not lay beside others."""

    def make(columns: dict[str, np.ndarray]) -> dict[str, Any]:
        found = {"terminated": [0, 0, 0, 1], "reward": np.arange(4) / 3} | {
            name: column for name, column in columns.items() if name not in ("terminated", "reward")
        }
        return found | {"obs.row": columns["obs.row"].astype(np.int64)}

    stored = line(3)
    (table,) = tables(sample(shard_of([stored], Answering(make)), 1))
    assert {name: column.dtype for name, column in table.items()} == {
        name: column.dtype for name, column in stored.columns.items()
    }
    np.testing.assert_array_equal(table["reward"], (np.arange(4) / 3).astype(np.float32))
    assert table["terminated"].tolist() == [False, False, False, True]


class InPlace(Relabeler):
    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        columns["reward"] += 1
        return columns


class InTheDict(Relabeler):
    """Which is its own: the arrays are not."""

    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        columns["reward"] = columns["reward"] + 1
        return columns


def test_what_other_draws_share_cannot_be_changed() -> None:
    """Neither in the run's own replay, nor in a data set, which keeps what it has loaded."""
    stored = line(3)
    message = r"^Experiment.relabeler_type=InPlace: it writes into a column .* read-only\).* column.copy\(\)$"
    with pytest.raises(ValueError, match=message):
        sample(shard_of([stored], InPlace()), 1)
    columns, rng = stored.columns, np.random.default_rng(0)
    with pytest.raises(ValueError, match=message):
        relabeled(InPlace(), columns, rng)
    for _ in range(2):
        assert relabeled(InTheDict(), columns, rng)["reward"].tolist() == [1.0, -6.0, -6.0, -6.0]
    columns["reward"][0] = 0.0  # they are as writable as before


def test_what_is_given_may_be_answered() -> None:
    (table,) = tables(sample(shard_of([stored := line(3)], Answering(lambda columns: columns)), 1))
    for name, column in stored.columns.items():
        np.testing.assert_array_equal(table[name], column, err_msg=name)


OBS_SPEC = {
    "one": ArraySpec((), "uint8", (5,)),
    "some": ArraySpec((2,), "int16", (3, 300)),
    "real": ArraySpec((2,), "float32"),
}
ACTIONS = {
    "discrete": ActionSpec("discrete", (), "int64", 3, (3,)),
    "multidiscrete": ActionSpec("multidiscrete", (2,), "int64", 5, (2, 3)),
    "multibinary": ActionSpec("multibinary", (2,), "int8", 2),
    "continuous": ActionSpec("continuous", (2,), "float32", 2),
}


@pytest.mark.parametrize(
    ("kind", "name", "value", "last"),
    [
        ("discrete", "obs.one", 200, 4),
        ("discrete", "obs.some", [0, 300], 299),
        ("discrete", "obs.some", [3, 0], 2),
        ("discrete", "obs.some", [-1, 0], 2),
        ("discrete", "action", 7, 2),
        ("discrete", "action", -1, 2),
        ("multidiscrete", "action", [2, 0], 1),
        ("multibinary", "action", [0, 2], 1),
    ],
)
def test_categories_that_there_are_not_are_refused(kind: str, name: str, value: Any, last: int) -> None:
    """A learner would end in an error of PyTorch that names neither, or train on another category's embedding."""
    shapes = {"obs." + key: (spec.shape, spec.dtype) for key, spec in OBS_SPEC.items()}
    columns = {key: np.zeros((4, *shape), dtype) for key, (shape, dtype) in shapes.items()} | {
        "action": np.zeros((4, *ACTIONS[kind].shape), ACTIONS[kind].dtype),
        "reward": np.zeros(4, np.float32),
        "terminated": np.zeros(4, bool),
    }
    changed = columns[name].copy()
    changed[2] = value
    categories, rng = categories_of(OBS_SPEC, ACTIONS[kind]), np.random.default_rng(0)
    answering, same = (Answering(lambda c, x=x: c | {name: x}) for x in (changed, changed.copy()))
    wrong = np.asarray(value).flat[int(np.argmax(np.abs(value)))]
    message = f"column {name!r} of its answer holds {wrong}; its categories are stored as 0 to {last}"
    with pytest.raises(ValueError, match=f"^Experiment.relabeler_type=Answering: {re.escape(message)}$"):
        relabeled(answering, columns, rng, 0, categories)
    columns[name] = changed
    relabeled(same, columns, rng, 0, categories)  # it was so before, which is none of its doing


def test_categories_are_those_of_the_specification() -> None:
    assert categories_of(OBS_SPEC, ACTIONS["continuous"]) == {"obs.one": (5,), "obs.some": (3, 300)}


class NextAction(Relabeler):
    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return columns | {"action": columns["action"] + 1}


def test_a_shard_knows_categories() -> None:
    """Of what it draws from its buffer."""
    (shard,) = make_shards(1, 100, relabeler=NextAction(), categories={"action": (3,)})
    shard.push(pack([line(3)]))
    shard.commit()
    with pytest.raises(ValueError, match="'action' of its answer holds 3; its categories are stored as 0 to 2"):
        sample(shard, 1)


def goal_spaces(achieved: spaces.Space, desired: spaces.Space) -> spaces.Dict:
    return spaces.Dict(achieved_goal=achieved, desired_goal=desired, other=spaces.Discrete(4, start=9))


@pytest.mark.parametrize(
    ("achieved", "desired"),
    [
        (spaces.Discrete(5, start=1), spaces.Discrete(6)),
        (spaces.Discrete(5), spaces.Discrete(5, start=-1)),
        (spaces.Discrete(5), spaces.Discrete(3)),
        (spaces.MultiDiscrete([3, 4], start=[0, 1]), spaces.MultiDiscrete([3, 4])),
        (spaces.MultiDiscrete([3, 4]), spaces.MultiDiscrete([4, 3])),
        (spaces.Discrete(5, start=1), spaces.Box(0, 9, (), np.int64)),
        (spaces.Box(0, 9, (), np.uint8), spaces.Discrete(10, start=1)),
    ],
)
def test_goals_that_are_counted_otherwise_are_refused(achieved: spaces.Space, desired: spaces.Space) -> None:
    """A table does not tell: categories are stored counted from 0."""
    said = re.escape(f"'achieved_goal' is {achieved} and 'desired_goal' is {desired}; give both the same start")
    with pytest.raises(ValueError, match=f"^Experiment.relabeler_type=HindsightRelabeler: a goal .*{said}"):
        HindsightRelabeler().check_spaces(goal_spaces(achieved, desired))


@pytest.mark.parametrize(
    "space",
    [
        goal_spaces(spaces.Discrete(5, start=2), spaces.Discrete(5, start=2)),
        goal_spaces(spaces.Discrete(5), spaces.Discrete(6)),
        goal_spaces(spaces.MultiDiscrete([3, 4]), spaces.MultiDiscrete([3, 5])),
        goal_spaces(spaces.Discrete(5), spaces.Box(0, 9, (), np.int64)),
        goal_spaces(spaces.Box(0, 9, (), np.uint8), spaces.Discrete(10)),
        goal_spaces(spaces.Box(-1, 1, (2,)), spaces.Box(-2, 2, (2,))),
        spaces.Dict(reached=spaces.Discrete(5)),
        spaces.Discrete(5),
    ],
)
def test_goals_that_are_counted_alike(space: spaces.Space) -> None:
    """And other observations, which a relabeler of one's own may have a use for."""
    HindsightRelabeler().check_spaces(space)
    Answering(lambda columns: columns).check_spaces(space)
