"""Hindsight for instructions: the arithmetic, and that it is what the environment itself would have said."""

from __future__ import annotations

import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from amago_ray import config
from amago_ray.envs.builtin import MazeRunner
from amago_ray.replay.sampling.instructions import INSTRUCTION, InstructionRelabeler, reached_in_order
from amago_ray.replay.sampling.relabeling import ACHIEVED

CHANGED = {INSTRUCTION, "reward", "terminated"}
property_based = settings(max_examples=60, deadline=None, derandomize=True)


def walked(path: list[int], max_goals: int = 3) -> dict[str, np.ndarray]:
    """A trajectory that achieves the goals (p, -p) for p in `path`, with an instruction that nobody can follow."""
    rows = len(path)
    instruction = np.full((rows, max_goals, 3), 99.0, dtype=np.float32)
    return {
        ACHIEVED: np.array([[p, -p] for p in path], dtype=np.float32),
        INSTRUCTION: instruction,
        "obs.row": np.arange(rows, dtype=np.int16),
        "action": np.arange(rows) % 3,
        "reward": np.full(rows, -7.0, dtype=np.float32),
        "terminated": np.zeros(rows, dtype=bool),
    }


def goals_of(columns: dict[str, np.ndarray], row: int = 0) -> list[int]:
    """The instruction in a row of a trajectory made by `walked`."""
    instruction = columns[INSTRUCTION][row]
    real = instruction[instruction[:, -1] == 1]
    assert (real[:, 0] == -real[:, 1]).all() and not instruction[len(real) :].any()
    return real[:, 0].astype(int).tolist()


def test_progress_is_in_order_one_at_a_time_and_not_in_the_first_row() -> None:
    path = np.array([[2], [1], [2], [2], [3], [1]])
    for goals, progress in (
        ([1, 2, 3], [0, 1, 2, 2, 3, 3]),
        ([2, 2], [0, 0, 1, 2, 2, 2]),
        ([3, 2], [0, 0, 0, 0, 1, 1]),
        ([9], [0] * 6),
    ):
        assert reached_in_order(path, np.array(goals)[:, None]).tolist() == progress


@property_based
@given(
    path=st.lists(st.integers(0, 6), min_size=2, max_size=25),
    max_goals=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_asked_for_was_reached_in_that_order(path: list[int], max_goals: int, seed: int) -> None:
    before = walked(path, max_goals)
    after = InstructionRelabeler(1.0)(before, np.random.default_rng(seed))
    if after is before:
        return  # nothing was achieved but what the first row had achieved already
    rows = len(after["reward"])
    goals = goals_of(after)
    assert 2 <= rows <= len(path) and 1 <= len(goals) <= max_goals
    # One row after the other, as the environment would have it.
    ahead = list(goals)
    rewards = [0.0]
    for row in range(1, rows):
        assert ahead, "the trajectory goes on after the last goal"
        rewards.append(float(path[row] == ahead[0]))
        ahead = ahead[int(rewards[-1]) :]
        assert goals_of(after, row) == ahead
    assert not ahead
    assert after["reward"].tolist() == rewards
    assert after["terminated"].tolist() == [False] * (rows - 1) + [True]
    assert goals[0] != path[0] and all(one != other for one, other in pairwise(goals))
    for name in before.keys() - CHANGED:
        np.testing.assert_array_equal(after[name], before[name][:rows])
    assert {name: column.dtype for name, column in after.items()} == {name: c.dtype for name, c in before.items()}


def test_what_was_stored_is_left_alone() -> None:
    before = walked([0, 1, 2, 3, 4])
    copies = {name: column.copy() for name, column in before.items()}
    InstructionRelabeler(1.0)(before, np.random.default_rng(0))
    for name, column in copies.items():
        np.testing.assert_array_equal(before[name], column)


def test_numbers_of_goals_and_places_are_uniform() -> None:
    rng, relabel = np.random.default_rng(0), InstructionRelabeler(1.0)
    before = walked(list(range(11)))
    found = [goals_of(relabel(before, rng)) for _ in range(3000)]
    numbers = np.bincount([len(goals) for goals in found], minlength=4)[1:]
    places = np.bincount(np.concatenate(found), minlength=11)[1:]
    assert ((numbers - 1000) ** 2 / 1000).sum() < 13.8  # chi-square with 2 degrees of freedom, 0.001
    assert ((places - places.mean()) ** 2 / places.mean()).sum() < 27.9  # with 9
    assert all(goals == sorted(set(goals)) for goals in found)


def test_probability() -> None:
    rng, before = np.random.default_rng(0), walked([0, 1, 2])
    changed = np.mean([InstructionRelabeler(0.3)(before, rng) is not before for _ in range(2000)])
    assert changed == pytest.approx(0.3, abs=0.04)


def test_standing_still_teaches_nothing() -> None:
    before = walked([4, 4, 4])
    assert InstructionRelabeler(1.0)(before, np.random.default_rng(0)) is before


def test_it_says_what_the_maze_itself_would_have_said() -> None:
    """The same moves, in a maze that was given the new instruction, lead to the very same table."""
    env, rng = MazeRunner(5, num_goals=3, horizon=60), np.random.default_rng(1)
    env.reset(seed=3)
    start = env._cell
    env._goals = [-1]  # never there
    moves = rng.integers(5, size=60).tolist()
    seen = [env._observe()] + [env.step(move)[0] for move in moves]
    columns = {f"obs.{key}": np.stack([row[key] for row in seen]) for key in seen[0]}
    columns |= {
        "action": np.array([0, *moves]),
        "reward": np.zeros(61, dtype=np.float32),
        "terminated": np.zeros(61, dtype=bool),
    }
    tables = [InstructionRelabeler(1.0)(columns, rng) for _ in range(20)]
    relabeled = [table for table in tables if table is not columns]
    assert len(relabeled) > 10
    for after in relabeled:
        instruction = after[INSTRUCTION][0]
        goals = instruction[instruction[:, -1] == 1, :-1]
        env._goals = [int((env._places == goal).all(axis=1).argmax()) for goal in goals]
        env._cell, env._reached, env._steps = start, 0, 0
        np.testing.assert_array_equal(env._observe()["instruction"], instruction)
        for row in range(1, len(after["reward"])):
            observation, reward, terminated, *_ = env.step(moves[row - 1])
            np.testing.assert_array_equal(observation["instruction"], after[INSTRUCTION][row])
            assert (reward, terminated) == (after["reward"][row], after["terminated"][row])
        assert terminated


def test_bad_probability_and_observations_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=re.escape("InstructionRelabeler.probability=1.5: it must be between 0 and 1")):
        InstructionRelabeler(1.5)
    columns = walked([0, 1])
    for broken in (
        {INSTRUCTION: columns[INSTRUCTION][:, :, :2]},
        {INSTRUCTION: columns[INSTRUCTION][:, 0]},
        {ACHIEVED: columns[ACHIEVED][:, :, None]},
    ):
        with pytest.raises(ValueError, match=r"observations need an 'achieved_goal'.*'instruction'.*they have \{"):
            InstructionRelabeler()(columns | broken, np.random.default_rng(0))


def test_it_travels_and_can_be_configured() -> None:
    config.load([], ["InstructionRelabeler.probability = 0.25"])
    assert pickle.loads(pickle.dumps(InstructionRelabeler())).probability == 0.25


@pytest.mark.parametrize(
    ("achieved", "dtype", "wrong"),
    [(np.float32(0.5), np.int8, "0.5"), (np.int16(302), np.uint8, "302"), (np.int32(40_001), np.float16, "40001")],
)
def test_goals_that_would_become_others_are_refused(achieved: np.generic, dtype: type, wrong: str) -> None:
    """Also in trajectories that stay as they are."""
    columns = walked([0, 1, 2])
    columns |= {ACHIEVED: columns[ACHIEVED].clip(0).astype(achieved.dtype), INSTRUCTION: np.zeros((3, 3, 3), dtype)}
    assert InstructionRelabeler(1.0)(columns, np.random.default_rng(0))[INSTRUCTION].dtype == dtype
    columns[ACHIEVED][1, 0] = achieved
    with pytest.raises(ValueError, match=rf"'achieved_goal' of .* holds {wrong}, which is no .* as 'instruction' has"):
        InstructionRelabeler(0.0)(columns, np.random.default_rng(0))


def test_goals_that_are_counted_otherwise_are_refused() -> None:
    def space(start: int) -> spaces.Dict:
        achieved = spaces.MultiDiscrete([5, 5], start=[0, start])
        return spaces.Dict(achieved_goal=achieved, instruction=spaces.Box(0, 9, (3, 3), np.int64))

    InstructionRelabeler().check_spaces(space(0))
    with pytest.raises(ValueError, match=r"^Experiment.relabeler_type=InstructionRelabeler: .* 'instruction' is Box\("):
        InstructionRelabeler().check_spaces(space(1))
