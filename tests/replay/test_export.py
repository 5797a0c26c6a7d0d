"""What is exported is what was stored: read again, it is the same."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from ring_cases import trajectory

from amago_ray.messages import Trajectory, TrajectoryId
from amago_ray.replay.datasets.dataset import Episode, RowLayout
from amago_ray.replay.export import action_vectors, export_minari, export_npz, npz_writer, observations
from amago_ray.replay.readers import AmagoDataset, MinariDataset

MADE_UP = RowLayout(
    spaces.Dict({"from": spaces.Box(-999, 999, (4,), np.int16), "pixels": spaces.Box(0, 255, (2, 2), np.uint8)}),
    spaces.Discrete(3),
)  # of `ring_cases.trajectory`
NESTED = spaces.Dict(
    x=spaces.Box(-1, 1, (3,), np.float64),
    kind=spaces.Discrete(4, start=2),
    parts=spaces.Tuple([spaces.MultiBinary(2), spaces.MultiDiscrete([[3, 300]], start=[[1, -5]])]),
    pixels=spaces.Box(0, 255, (4, 4, 3), np.uint8),
)
FLAT = (
    spaces.Box(-1, 1, (3,)),
    spaces.Discrete(4, start=2),
    spaces.Dict(x=spaces.Box(-1, 1, (2, 2), np.float64), kind=spaces.MultiDiscrete([2, 5], start=[7, 0])),
)
ACTIONS = (
    spaces.Box(-1, 1, (2,)),
    spaces.Discrete(3),
    spaces.MultiBinary(2),
    spaces.MultiDiscrete([[2, 3], [4, 1]], start=[[0, 1], [-2, 0]]),
)


def rollouts(observation_space: gym.Space, action_space: gym.Space, num: int = 4) -> tuple[RowLayout, list[Trajectory]]:
    """Rollouts of samples of the spaces, every other one terminated."""
    layout = RowLayout(observation_space, action_space)
    observation_space.seed(0), action_space.seed(0)
    made = []
    for i in range(num):
        length = 3 + i
        sampled = [observation_space.sample() for _ in range(length + 1)]
        actions = np.array([action_space.sample() for _ in range(length)])
        made.append(layout.trajectory(Episode(sampled, actions, np.arange(length) / 3, i % 2 == 0, "walk"), i))
    return layout, made


def pieces() -> list[Trajectory]:
    """A rollout that was stored in three pieces, whose rows follow one another, and one that was truncated."""
    made = [trajectory(i, 4, env_name="maze", first_time_idx=4 * i) for i in range(3)]
    for i, t in enumerate(made):
        t.columns["action"][0] = 0 if i == 0 else 2
        t.columns["reward"][0] = 0.0 if i == 0 else 7.5
        t.columns["terminated"][-1] = i == 2
    made.append(trajectory(3, 6, env_name="maze", truncated=True, weight_version=12))
    made[3].columns["terminated"][-1] = False
    return made


def assert_same_columns(a: list[Trajectory], b: list[Trajectory]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.columns.keys() == y.columns.keys()
        for name, column in x.columns.items():
            assert column.dtype == y.columns[name].dtype
            np.testing.assert_array_equal(column, y.columns[name], err_msg=name)


@pytest.mark.parametrize("action_space", ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("observation_space", FLAT, ids=lambda space: type(space).__name__)
def test_npz_there_and_back(tmp_path: Path, observation_space: gym.Space, action_space: gym.Space) -> None:
    layout, made = rollouts(observation_space, action_space, num=12)
    assert export_npz(iter(made), layout, tmp_path / "out") == 12
    dataset = AmagoDataset(tmp_path / "out")
    read = [dataset.trajectory(i, layout) for i in range(len(dataset))]
    assert_same_columns(made, read)
    assert {t.env_name for t in read} == {"walk"} and {t.first_time_idx for t in read} == {0}


def test_an_evaluation_is_written_as_it_is_played(tmp_path: Path) -> None:
    """Like an export, in the order of environments and rollouts; what is played again takes its own place."""
    layout, made = rollouts(FLAT[0], ACTIONS[0], num=3)
    write = npz_writer((FLAT[0], ACTIONS[0]), tmp_path / "out")
    for t, (env, number) in zip([*made, made[0]], [(11, 0), (2, 1), (2, 0), (11, 0)], strict=True):
        write(replace(t, id=TrajectoryId(env, 0, number)))
    dataset = AmagoDataset(tmp_path / "out")
    assert_same_columns([made[2], made[1], made[0]], [dataset.trajectory(i, layout) for i in range(len(dataset))])
    with pytest.raises(ValueError, match="no place for the nested observations"):
        npz_writer((NESTED, ACTIONS[0]), tmp_path / "other")


def test_pieces_of_a_rollout_in_npz(tmp_path: Path) -> None:
    export_npz(pieces(), MADE_UP, tmp_path / "out")
    dataset = AmagoDataset(tmp_path / "out")
    read = [dataset.trajectory(i, MADE_UP) for i in range(4)]
    assert_same_columns(pieces(), read)
    assert [t.first_time_idx for t in read] == [0, 4, 8, 0]
    with np.load(next((tmp_path / "out").glob("*_00000000_*.npz"))) as file:
        assert not file["rl2s"][0].any()  # no action either, which a one-hot of action 0 would be
        assert {name: (file[name].shape, file[name].dtype.name) for name in file} == {
            "_OBS_KEY_from": ((5, 4), "int16"),
            "_OBS_KEY_pixels": ((5, 2, 2), "uint8"),
            "rl2s": ((5, 4), "float32"),
            "time_idxs": ((5, 1), "int64"),
            "rews": ((4, 1), "float32"),
            "dones": ((4, 1), "bool"),
            "actions": ((4, 3), "float32"),
        }


def test_vectors_of_several_categories() -> None:
    _, (t, *_) = rollouts(spaces.Box(-1, 1, (1,)), spaces.MultiDiscrete([2, 3]))
    vectors = action_vectors(t.columns["action"], RowLayout(FLAT[0], spaces.MultiDiscrete([2, 3])).action.spec)
    for stored, vector in zip(t.columns["action"], vectors, strict=True):
        assert np.flatnonzero(vector).tolist() == [stored[0], 2 + stored[1]] and vector.sum() == 2


@pytest.mark.processes
@pytest.mark.parametrize("action_space", ACTIONS, ids=lambda space: type(space).__name__)
def test_minari_there_and_back(tmp_path: Path, action_space: gym.Space) -> None:
    layout, made = rollouts(NESTED, action_space)
    assert export_minari(iter(made), layout, tmp_path / "my data") == 4
    dataset = MinariDataset(str(tmp_path / "my data"))
    assert dataset.spaces == (NESTED, action_space)
    assert_same_columns(made, [dataset.trajectory(i, layout) for i in range(4)])
    assert dataset.trajectory(0, layout).env_name == "walk"


@pytest.mark.processes
def test_actions_of_other_bounds_are_those_of_the_environment(tmp_path: Path) -> None:
    space = spaces.Box(np.array([-3, 0], np.float32), np.array([5, 10], np.float32))
    layout, made = rollouts(FLAT[0], space)
    export_minari(made, layout, tmp_path / "out")
    dataset = MinariDataset(str(tmp_path / "out"))
    for i, t in enumerate(made):
        actions = dataset.episode(i).actions
        assert all(space.contains(action) for action in actions) and (np.abs(actions) > 1).any()
        np.testing.assert_allclose(dataset.trajectory(i, layout).columns["action"], t.columns["action"], atol=1e-6)


@pytest.mark.processes
def test_pieces_of_a_rollout_are_marked_in_minari(tmp_path: Path) -> None:
    import minari

    export_minari(pieces(), MADE_UP, tmp_path / "out")
    dataset = minari.MinariDataset(tmp_path / "out" / "data")
    told = [
        tuple(episode[name] for name in ("env_name", "first_time_idx", "cut", "weight_version"))
        for episode in dataset.storage.get_episode_metadata(range(4))
    ]
    assert told == [("maze", 0, True, 0), ("maze", 4, True, 0), ("maze", 8, False, 0), ("maze", 0, False, 12)]
    ends = [(bool(e.terminations[-1]), bool(e.truncations[-1])) for e in dataset.iterate_episodes()]
    assert ends == [(False, True), (False, True), (True, False), (False, True)]
    read = [MinariDataset(str(tmp_path / "out")).trajectory(i, MADE_UP) for i in range(4)]
    assert_same_columns(pieces(), read)  # with the action and the reward that led to the first row of a later piece
    for name in ("env_name", "first_time_idx", "truncated", "weight_version"):
        assert [getattr(t, name) for t in read] == [getattr(t, name) for t in pieces()]
    assert dataset.total_steps == 18 and not any(e.truncations[:-1].any() for e in dataset.iterate_episodes())


def test_observations_are_in_their_space() -> None:
    _, made = rollouts(NESTED, ACTIONS[1])
    NESTED.seed(0)
    for t in made:
        found = observations(t.columns, NESTED)
        for row in range(t.num_transitions + 1):
            one: dict[str, Any] = {key: found[key][row] for key in ("x", "kind", "pixels")}
            one["parts"] = tuple(part[row] for part in found["parts"])
            assert NESTED.contains(one)
            sampled = NESTED.sample()
            np.testing.assert_allclose(one["x"], sampled["x"], rtol=1e-6)
            assert one["kind"] == sampled["kind"]
            np.testing.assert_array_equal(one["parts"][1], sampled["parts"][1])


@pytest.mark.processes
def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, made = rollouts(NESTED, ACTIONS[1])
    with pytest.raises(ValueError, match="no place for the nested observations.*--format minari"):
        export_npz(made, layout, tmp_path / "out")
    for export in (export_npz, export_minari):
        with pytest.raises(ValueError, match=r'of other environments than the stored data: \["action"\] differ'):
            export(pieces(), RowLayout(MADE_UP.observation_space, spaces.Box(-1, 1, (3,))), tmp_path / export.__name__)
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"--format minari needs Minari.*install amago_ray\[offline\]"):
        export_minari(made, layout, tmp_path / "out")
    assert not (tmp_path / "out").exists()
