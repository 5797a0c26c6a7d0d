"""What is read is what was written, row by row: AMAGO's files, Minari's, those of a run; and `import-data`."""

from __future__ import annotations

import errno
import os
import pickle
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dataset_cases
import gin
import gymnasium as gym
import numpy as np
import pytest
import ring_cases
import torch
from conftest import TESTS
from gymnasium import spaces

from amago_ray import config, train
from amago_ray.commands.import_data import dataset_of, write_dataset
from amago_ray.learner.batches import training_batch
from amago_ray.messages import Trajectory
from amago_ray.replay.client import LocalShard, ReplayReader
from amago_ray.replay.datasets.dataset import Episode, RLDataset, RowLayout
from amago_ray.replay.datasets.stored_source import UNBOUNDED
from amago_ray.replay.export import export_npz
from amago_ray.replay.inspection import find_stored_data
from amago_ray.replay.readers import AmagoDataset, EpisodeDataset, MinariDataset, StoredDataset
from amago_ray.replay.sampling.selection import SamplingMode
from amago_ray.replay.sampling.sources import ReplayEmpty
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.replay.storage.config import StoreConfig
from amago_ray.replay.storage.folders import shard_folder
from amago_ray.replay.storage.segments import StorageError, segment_path
from amago_ray.replay.storage.store import TrajectoryStore
from amago_ray.replay.storage.trajectory_pack import pack

MADE_UP = RowLayout(
    spaces.Dict({"from": spaces.Box(-999, 999, (4,), np.int16), "pixels": spaces.Box(0, 255, (2, 2), np.uint8)}),
    spaces.Discrete(3),
)  # of `ring_cases.trajectory`


@gin.configurable(module="test_readers")
class MadeUp(gym.Env):
    """Of the spaces of `ring_cases.trajectory`."""

    observation_space, action_space = MADE_UP.observation_space, MADE_UP.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, True, False, {}


class Walk(gym.Env):
    """Random observations of every kind, rollouts of 2 to 6 steps; every third one is truncated."""

    def __init__(self, action_space: gym.Space):
        self.observation_space = spaces.Dict(
            x=spaces.Box(-1, 1, (3,), np.float64),
            kind=spaces.Discrete(4, start=2),
            parts=spaces.Tuple([spaces.MultiBinary(2), spaces.Box(0, 255, (2,), np.uint8)]),
        )
        self.action_space = action_space
        self._rollouts = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(self._rollouts)
        self._length, self._time, self._rollouts = 2 + self._rollouts % 5, 0, self._rollouts + 1
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self._time += 1
        over, cut = self._time == self._length, self._rollouts % 3 == 0
        return self.observation_space.sample(), self._time / 2, over and not cut, over and cut, {}


@pytest.fixture
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def record(env: gym.Env, dataset_id: str, rollouts: int = 6) -> list[Trajectory]:
    """Make a Minari dataset of random actions; returns what a run would have stored of the same rollouts."""
    env.action_space.seed(0)
    played = dataset_cases.play(env, lambda observation: env.action_space.sample(), rollouts)
    dataset_cases.write_minari(env, played, dataset_id)
    layout = RowLayout(env.observation_space, env.action_space)
    return [layout.trajectory(episode, i) for i, episode in enumerate(played)]


def assert_same(dataset: RLDataset, layout: RowLayout, expected: Sequence[Trajectory]) -> None:
    dataset.check(layout)
    ring_cases.assert_same_trajectories([dataset.trajectory(i, layout) for i in range(len(dataset))], expected)


@pytest.mark.processes
@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(3, start=-1),
        spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)),
        spaces.MultiBinary(3),
        spaces.MultiDiscrete([2, 3]),
    ],
    ids=lambda space: type(space).__name__,
)
def test_minari_rows(action_space: gym.Space, minari_folder: Path) -> None:
    env = Walk(action_space)
    expected = record(env, "walk/random-v0")
    layout = RowLayout(env.observation_space, env.action_space)
    by_id = MinariDataset("walk/random-v0")
    sent: MinariDataset = pickle.loads(pickle.dumps(by_id))
    for dataset in (by_id, sent, MinariDataset(str(minari_folder / "walk" / "random-v0"))):
        assert_same(dataset, layout, expected)
    assert by_id.trajectory(0, layout).env_name == "walk/random-v0"
    with pytest.raises(ValueError, match="data of other environments"):
        by_id.check(RowLayout(env.observation_space, spaces.Discrete(9)))


@pytest.mark.processes
def test_minari_knows_the_environment(minari_folder: Path) -> None:
    record(gym.make("CartPole-v1"), "cartpole/random-v0", rollouts=2)
    dataset = MinariDataset("cartpole/random-v0")
    assert dataset.trajectory(0, RowLayout(*dataset.spaces)).env_name == "CartPole-v1"


@pytest.mark.processes
def test_minari_data_that_cannot_be_learned_from(minari_folder: Path, tmp_path: Path) -> None:
    """As a run reads it, and as it is imported: the same line, and nothing is left behind."""
    env = Walk(spaces.Discrete(3))
    played = dataset_cases.play(env, lambda observation: 1, 3)
    played[2].rewards[1] = float("nan")
    dataset_cases.write_minari(env, played, "walk/nan-v0")
    dataset, layout = MinariDataset("walk/nan-v0"), RowLayout(env.observation_space, env.action_space)
    with pytest.raises(ValueError, match="MinariDataset, trajectory 2: reward 1 is nan; it must be finite"):
        dataset.check(layout)
    with pytest.raises(ValueError, match="MinariDataset, trajectory 2: reward 1 is nan; it must be finite"):
        write_dataset(dataset, layout, tmp_path / "out", show=False)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.processes
def test_mistakes_with_minari(minari_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"='no/such-v0': there is no such folder, .* = True fetches one$"):
        len(MinariDataset("no/such-v0"))
    with pytest.raises(
        ValueError, match="='no such id': there is no such folder, and no Minari data set of that id here$"
    ):
        len(MinariDataset("no such id"))
    for missing in ("minari", "h5py"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)  # an import now fails as where it is not installed
            with pytest.raises(ImportError, match=r"install amago_ray\[offline\]"):
                len(MinariDataset("walk/random-v0"))


def save_amago(path: Path, t: Trajectory, layout: RowLayout, compressed: bool = False) -> None:
    """A file with the arrays that AMAGO 3.x saves of a trajectory."""
    spec, rows = layout.action.spec, t.num_transitions + 1
    stored = t.columns["action"]
    vectors = np.eye(spec.vector_size)[stored] if spec.kind == "discrete" else stored.astype(np.float32)
    vectors[: int(t.first_time_idx == 0)] = 0
    named = isinstance(layout.observation_space, spaces.Dict)
    arrays = {
        f"_OBS_KEY_{name.removeprefix('obs.') if named else 'observation'}": column
        for name, column in t.columns.items()
        if name.startswith("obs.")
    } | {
        "rl2s": np.concatenate([t.columns["reward"][:, None], vectors], axis=1).astype(np.float32),
        "time_idxs": t.first_time_idx + np.arange(rows)[:, None],
        "rews": t.columns["reward"][1:, None],
        "dones": t.columns["terminated"][1:, None],
        "actions": vectors[1:].astype(np.float32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, **arrays)


def amago_files(folder: Path) -> list[Trajectory]:
    """The files of two rollouts, of which one was saved in two pieces, as AMAGO lays them out."""
    made = [ring_cases.trajectory(i, 4 + i, env_name="maze", incarnation=0, worker=-1) for i in range(2)]
    made.append(ring_cases.trajectory(2, 3, worker=-1, env_name="maze", first_time_idx=9))
    for t in made:
        t.columns["action"][0] = 2 if t.first_time_idx else 0
        t.columns["reward"][0] = 7.5 if t.first_time_idx else 0.0
    for t, kind in zip(made, ("fifo", "fifo", "protected"), strict=True):
        save_amago(folder / "buffer" / kind / f"maze_{t.id.sequence:08x}_1712.5", t, MADE_UP, kind == "protected")
    return made


def test_amago_rows(tmp_path: Path) -> None:
    expected = amago_files(tmp_path)
    dataset = AmagoDataset(tmp_path)
    assert_same(dataset, MADE_UP, expected)
    assert {dataset.trajectory(i, MADE_UP).env_name for i in range(3)} == {"maze"}


@pytest.mark.parametrize("action_space", [spaces.Box(-3, 3, (2,)), spaces.MultiBinary(2)], ids=["Box", "MultiBinary"])
def test_amago_actions_and_plain_observations(tmp_path: Path, action_space: gym.Space) -> None:
    layout = RowLayout(spaces.Box(-1, 1, (3,)), action_space)
    action_space.seed(0)
    actions = np.array([action_space.sample() for _ in range(4)])
    made = layout.trajectory(Episode(np.linspace(-1, 1, 15).reshape(5, 3), actions, [1.0, 2.0, 3.0, 4.0], True), 0)
    save_amago(tmp_path / "env_0_1.npz", made, layout)
    assert_same(AmagoDataset(tmp_path), layout, [made])


def test_mistakes_with_amago_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no .npz files below it"):
        len(AmagoDataset(tmp_path / "nowhere"))
    (tmp_path / "a_b_1.traj").touch()
    with pytest.raises(ValueError, match="pickles.*save npz"):
        len(AmagoDataset(tmp_path))
    good = ring_cases.trajectory(0)
    save_amago(tmp_path / "good_0_1.npz", good, MADE_UP)
    dataset = AmagoDataset(tmp_path)
    for layout, message in [
        (RowLayout(MADE_UP.observation_space, spaces.Discrete(4)), r"vectors of shape \(3,\)"),
        (RowLayout(MADE_UP.observation_space, spaces.MultiBinary(3)), None),
        (RowLayout(MADE_UP.observation_space, spaces.MultiDiscrete([2, 2])), "vectors of shape"),
        (RowLayout(MADE_UP.observation_space, spaces.MultiDiscrete([2, 1])), "action 0 is .*one-hot in .*2, 1"),
        (
            RowLayout(spaces.Dict(other=spaces.Discrete(2)), MADE_UP.action_space),
            "'other': it has from, pixels",
        ),
        (RowLayout(spaces.Box(-1, 1, (4,)), MADE_UP.action_space), "no observation 'observation'"),
    ]:
        if message is None:
            dataset.check(layout)  # a one-hot is a valid set of bits
        else:
            with pytest.raises(ValueError, match=f"AmagoDataset, trajectory 0: .*{message}"):
                dataset.check(layout)
    (tmp_path / "good_0_1.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"trajectory 0: .*good_0_1.npz cannot be read"):
        dataset.check(MADE_UP)
    np.savez(tmp_path / "good_0_1.npz", actions=np.zeros(3))
    with pytest.raises(ValueError, match="lacks rl2s, time_idxs, rews, dones"):
        dataset.check(MADE_UP)
    spoilt: list[tuple[dict[str, Any], str]] = [
        ({"rews": np.array([1, 2, np.nan, 4, 5.0])}, "reward 2 is nan"),
        ({"rews": np.zeros(0)}, "no transition"),
        ({"actions": np.eye(3)[[0]]}, r"actions of shape \(1, 3\) for 5 rewards: 5 rows of vec"),
        ({"rews": np.ones((5, 2))}, r"good_0_1.npz has rews of shape \(5, 2\) for 5 rewards: 5 rows of one number"),
        ({"rews": np.array([1, 2, 3, 4.5, 5])}, "good_0_1.npz: rl2s has the reward 4.0 in row 4, and rews has 4.5"),
        ({"time_idxs": np.array([0, 1, 2, 9, 10, 11])[:, None]}, "good_0_1.npz: time_idxs is 9 in row 3"),
        ({"time_idxs": np.array([0, 1, 2, 0, 1, 2])}, "good_0_1.npz: time_idxs is 0 in row 3"),
        ({"time_idxs": np.arange(-3, 3)[:, None]}, "good_0_1.npz: time_idxs is -3 in row 0"),
        ({"time_idxs": np.zeros((6, 2), int)}, r"time_idxs of shape \(6, 2\) for 5 rewards: 6 rows of one number"),
        ({"actions": np.eye(3)[[0, 1, 2, 0, 1]] * [[1], [1], [1], [0.5], [1]]}, r"action 3 is \[0.5, 0.0, 0.0\]"),
        ({"actions": np.eye(3)[[0, 1, 2, 0, 1]] * [[1], [np.nan], [1], [1], [1]]}, "action 1 is .nan"),
        ({"actions": np.ones((5, 3))}, "action 0 is .*one-hot"),
        ({"dones": np.arange(5) == 1}, "transition 1 of 5 is terminated"),
    ]
    for arrays, message in spoilt:
        save_amago(tmp_path / "good_0_1.npz", good, MADE_UP)
        with np.load(tmp_path / "good_0_1.npz") as file:
            saved = dict(file)
        np.savez(tmp_path / "good_0_1.npz", **(saved | arrays))
        with pytest.raises(ValueError, match=f"AmagoDataset, trajectory 0: .*{message}"):
            dataset.check(MADE_UP)


def run_folder(folder: Path, num_shards: int = 2, commits: int = 3) -> list[Trajectory]:
    """The replay folder of a run: five trajectories at each commit, of which shard i stores every second, and more
    that were not committed."""
    made = []
    for i in range(num_shards):
        config = StoreConfig(shard_folder(folder, i), capacity_bytes=UNBOUNDED, segment_bytes=2000, stride=num_shards)
        store = TrajectoryStore(config)
        for commit in range(commits + 1):
            pushed = [ring_cases.trajectory(n, 2 + n) for n in range(5 * commit, 5 * commit + 5) if n % num_shards == i]
            store.push(pack(pushed))
            if commit < commits:
                made += pushed
                store.commit()
        store.close()
    return made


def test_stored_rows(tmp_path: Path) -> None:
    expected = run_folder(tmp_path)
    dataset = StoredDataset(tmp_path)
    for reader in (dataset, pickle.loads(pickle.dumps(dataset))):
        assert_same(reader, MADE_UP, expected)
    with pytest.raises(ValueError, match="of other environments.*from"):
        dataset.check(RowLayout(spaces.Box(-1, 1, (2,)), MADE_UP.action_space))


@pytest.mark.parametrize("mode", ["trajectories", "timesteps", "recent"])
def test_stored_data_are_drawn_by_weight(tmp_path: Path, mode: SamplingMode) -> None:
    """Three shards read what two wrote; the writers still have it open, and nothing there changes."""
    made = run_folder(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    writing = TrajectoryStore(StoreConfig(shard_folder(tmp_path, 0), capacity_bytes=UNBOUNDED, stride=2))
    dataset = StoredDataset(tmp_path, mode, half_life=2.0)
    shards = [ReplayShard(ReplayConfig(max_seq_len=4), i, [dataset.source(MADE_UP, i, 3)]) for i in range(3)]
    reader = ReplayReader([LocalShard(s) for s in shards], batch_size=100, seed=0)
    assert sum(shard.available()[1].trajectories for shard in shards) == 15
    batches = list(reader.batches(40, 0, mixture=(0, 1)))
    drawn = np.concatenate([batch.gather("ids")[:, 2] for batch in batches])
    weight = {
        "trajectories": {t.id.sequence: 1.0 for t in made},
        "timesteps": {t.id.sequence: float(t.num_transitions) for t in made},
        "recent": {t.id.sequence: 2.0 ** (t.id.sequence // 5 / 2.0) for t in made},
    }[mode]
    total = sum(weight.values())
    dataset_cases.assert_distribution(Counter(drawn.tolist()), weight)
    numbers = {}
    for batch in batches:
        probability = [weight[n] / total for n in batch.gather("ids")[:, 2].tolist()]
        np.testing.assert_allclose(batch.probability, probability)
        for rows, first in zip(batch.rows("obs.from"), batch.first_time_idx, strict=True):
            np.testing.assert_array_equal(rows[:, 3], np.arange(first, first + len(rows)))
        for shard, number, id in zip(
            *(batch.gather(name).tolist() for name in ("shard", "number", "ids")), strict=True
        ):
            assert numbers.setdefault((shard, number), id) == id, "a number means one trajectory"
    writing.close()
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def damage_records(folder: Path, which: Sequence[int]) -> Path:
    """Change one byte in the columns of some records of the only shard there; returns the first one's segment."""
    (store,) = find_stored_data(folder).open()
    records = [store._records[number] for number in which]
    paths = [segment_path(store.folder, record.segment) for record in records]
    for path, record in zip(paths, records, strict=True):
        stored = bytearray(path.read_bytes())
        stored[record.columns_at] ^= 1
        path.write_bytes(stored)
    store.close()
    return paths[0]


def test_stored_data_with_damage_are_drawn_around(tmp_path: Path) -> None:
    made = run_folder(tmp_path, num_shards=1)
    segment = damage_records(tmp_path, [0])
    shard = ReplayShard(ReplayConfig(max_seq_len=4), 0, [StoredDataset(tmp_path).source(MADE_UP, 0, 1)])
    reader = ReplayReader([LocalShard(shard)], batch_size=50, seed=0)
    drawn = {n for batch in reader.batches(10, 0, mixture=(0, 1)) for n in batch.gather("ids")[:, 2].tolist()}
    assert drawn < {t.id.sequence for t in made} and len(drawn) >= 5
    (damage,) = shard.report().damage
    assert damage.startswith(f"StoredDataset: {segment}, byte ") and "checksum" in damage
    dataset = StoredDataset(tmp_path)
    dataset.check(MADE_UP)  # what is never drawn does not stop a run
    assert {dataset.trajectory(i, MADE_UP).id.sequence for i in dataset.readable()} >= drawn
    damaged = next(i for i in range(len(made)) if i not in set(dataset.readable()))
    with pytest.raises(ValueError, match=f"StoredDataset, trajectory {damaged}: it is damaged .*--verify"):
        dataset.trajectory(damaged, MADE_UP)


def test_stored_data_of_which_nothing_can_be_read_are_refused(tmp_path: Path) -> None:
    made = run_folder(tmp_path, num_shards=1)
    segment = damage_records(tmp_path, range(3))
    with pytest.raises(ValueError, match=f"^StoredDataset: none of its {len(made)} .* {segment}, byte .* checksum"):
        StoredDataset(tmp_path).check(MADE_UP)
    shard = ReplayShard(ReplayConfig(max_seq_len=4), 0, [StoredDataset(tmp_path).source(MADE_UP, 0, 1)])
    with pytest.raises(ReplayEmpty, match=r"^Experiment\.dataset holds nothing that can be drawn$"):
        list(ReplayReader([LocalShard(shard)], batch_size=50, seed=0).batches(4, 0, mixture=(0, 1)))
    assert len(shard.report().damage) == 3
    for path in tmp_path.rglob("*.segment"):
        path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(ValueError, match=f"no trajectories are stored there that can be read: {segment}.* its header"):
        StoredDataset(tmp_path).check(MADE_UP)


def test_stored_data_that_cannot_be_learned_from_are_refused_as_they_are_drawn(tmp_path: Path) -> None:
    """What an earlier version imported without a look: the trajectory and the timestep are named."""
    store = TrajectoryStore(StoreConfig(shard_folder(tmp_path, 0), capacity_bytes=UNBOUNDED))
    made = [ring_cases.trajectory(n, 8, weight_version=n) for n in range(4)]
    made[2].columns["reward"][6] = np.inf
    store.push(pack(made))
    store.commit()
    store.close()
    dataset = StoredDataset(tmp_path)
    with pytest.raises(ValueError, match="StoredDataset, trajectory 2: reward 5 is inf; it must be finite"):
        dataset.check(MADE_UP)
    shard = ReplayShard(ReplayConfig(max_seq_len=8), 0, [dataset.source(MADE_UP, 0, 1)])
    reader = ReplayReader([LocalShard(shard)], batch_size=50, seed=0)
    with pytest.raises(ValueError, match=r"StoredDataset, trajectory 2 of worker 0 \(life 0\).*reward 5 is inf"):
        list(reader.batches(4, 0, mixture=(0, 1)))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (spaces.Box(-1, 1, (2,)), spaces.Box(-2, 2, (2,))),
        (spaces.Box(-1, 1, (2,)), spaces.Box(-1, np.array([1, 1.5], np.float32))),
        (spaces.Box(0, 9, (1,), np.int64), spaces.Box(0, 9, (1,), np.float32)),
        (spaces.Discrete(3), spaces.Discrete(3, start=1)),
        (spaces.MultiDiscrete([2, 2]), spaces.MultiDiscrete([2, 2], start=[0, 1])),
    ],
    ids=str,
)
def test_imported_actions_mean_nothing_in_other_bounds(tmp_path: Path, before: gym.Space, now: gym.Space) -> None:
    observations = spaces.Box(-1, 1, (2,))
    before.seed(0)
    actions = np.array([before.sample() for _ in range(4)])
    made = EpisodeDataset([Episode(np.zeros((5, 2)), actions, np.zeros(4))])
    write_dataset(made, RowLayout(observations, before), tmp_path / "out", show=False)
    dataset = StoredDataset(tmp_path / "out")
    dataset.check(RowLayout(spaces.Box(-5, 5, (2,)), before))  # bounds of observations change nothing that is stored
    with pytest.raises(ValueError, match=r"StoredDataset.path=.*: the action space was .* is now") as refused:
        dataset.check(RowLayout(observations, now))
    assert "\n" not in str(refused.value)


@pytest.mark.processes
def test_nothing_is_looked_for_before_it_is_used(tmp_path: Path) -> None:
    """A configuration can be loaded, and its policy evaluated, where the data are not."""
    away = tmp_path / "away"
    datasets = [AmagoDataset(away), MinariDataset(str(away)), StoredDataset(away)]
    for dataset in datasets:
        with pytest.raises(ValueError, match="away"):
            dataset.check(MADE_UP)


def test_mistakes_with_stored_data(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="no trajectories are stored there"):
            len(StoredDataset(path))
    with pytest.raises(ValueError, match="'prioritized'.*use 'trajectories'"):
        StoredDataset(tmp_path, "prioritized")
    with pytest.raises(ValueError, match="'oldest'"):
        StoredDataset(tmp_path, "oldest")  # type: ignore[arg-type]


@pytest.mark.parametrize("compressed", [(), ("pixels",)])
def test_import_keeps_every_row(tmp_path: Path, compressed: tuple[str, ...]) -> None:
    run_folder(tmp_path / "run")
    dataset = StoredDataset(tmp_path / "run")
    written = write_dataset(dataset, MADE_UP, tmp_path / "out", compressed, show=False)
    again = StoredDataset(tmp_path / "out")
    made = [dataset.trajectory(i, MADE_UP) for i in range(15)]
    assert (written.trajectories, written.timesteps) == (15, sum(t.num_transitions for t in made))
    assert written.mean_return == pytest.approx(np.mean([t.total_reward for t in made]))
    for i, t in enumerate(sorted(made, key=lambda t: (t.id.sequence // 5, t.id.sequence % 2))):  # by commit and shard
        read = again.trajectory(i, MADE_UP)
        assert read.id.sequence == i and read.env_name == t.env_name
        assert again.commit_of(i) == 1 + t.id.sequence // 5
        for name, column in t.columns.items():
            np.testing.assert_array_equal(read.columns[name], column)


def drawn_from(dataset: StoredDataset) -> dict[int, float]:
    """How often each trajectory is to be drawn, by the number of the run's worker, which obs.from tells."""
    shard = ReplayShard(ReplayConfig(max_seq_len=4), 0, [dataset.source(MADE_UP, 0, 1)])
    (batch,) = ReplayReader([LocalShard(shard)], batch_size=500, seed=0).batches(1, 0, mixture=(0, 1))
    numbers = [int(rows[0, 2]) for rows in batch.rows("obs.from")]
    return dict(zip(numbers, batch.probability.tolist(), strict=True))


def test_an_import_keeps_the_ages_of_a_run(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    write_dataset(StoredDataset(tmp_path / "run"), MADE_UP, tmp_path / "out", show=False)
    before, after = (drawn_from(StoredDataset(tmp_path / name, "recent", half_life=1.0)) for name in ("run", "out"))
    assert before == pytest.approx(after) and len(before) == 15
    assert before[10] == pytest.approx(2 * before[9]) == pytest.approx(4 * before[0])


def test_an_import_that_finds_no_room_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a run have no bearing on it."""
    run_folder(tmp_path / "run")
    dataset = StoredDataset(tmp_path / "run")
    assert len(dataset) == 15

    def refuse(code: int, *args: Any) -> int:
        raise OSError(code, os.strerror(code))

    for code, hint in (
        (errno.ENOSPC, "No space left on device; free some space, or name a folder on another disk"),
        (errno.EROFS, "Read-only file system; name a folder that can be written to"),
    ):
        monkeypatch.setattr(os, "pwritev", partial(refuse, code))
        with pytest.raises(StorageError) as caught:
            write_dataset(dataset, MADE_UP, tmp_path / "out", show=False)
        assert str(caught.value).endswith(hint)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot use the folder .*; name a folder that can be written to$"):
        write_dataset(dataset, MADE_UP, tmp_path / "file" / "out", show=False)


def test_damaged_records_are_left_out_of_an_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is readable is there, what is not is named, and the exit status says so."""
    run = tmp_path / "run"
    made = run_folder(run / "replay", num_shards=1)
    (store,) = find_stored_data(run).open()
    segment = sorted(run.rglob("*.segment"))[0]
    stored = bytearray(segment.read_bytes())
    stored[store._records[0].columns_at] ^= 1
    segment.write_bytes(stored)
    (run / "env.gin").write_text(
        "Experiment.run_name = 'x'\nExperiment.max_seq_len = 4\nExperiment.make_train_env = @MadeUp"
    )
    assert import_data(run / "replay", "--out", tmp_path / "out", "--config", run / "env.gin") == 1
    out = capsys.readouterr().out
    assert out.count("damaged: ") == 1 and re.search(rf"^damaged: {segment}, byte \d+: .*checksum", out, re.MULTILINE)
    assert re.search("^10 trajectories, ", out, re.MULTILINE)
    again = StoredDataset(tmp_path / "out")
    read = [again.trajectory(i, MADE_UP) for i in range(len(again))]
    assert [int(t.columns["obs.from"][0, 2]) for t in read] == [t.id.sequence for t in made[5:]]
    assert again.damage == []


def test_a_dataset_that_grows_while_it_is_imported(tmp_path: Path) -> None:
    """What was there at the beginning is imported, and none of it is lost."""

    class Growing(EpisodeDataset):
        def episode(self, index: int) -> Episode:
            self.episodes.append(self.episodes[0])
            return super().episode(index)

    layout = RowLayout(spaces.Box(-1, 1, (2,)), spaces.Discrete(2))
    dataset = Growing([Episode(np.zeros((3, 2)), np.zeros(2, np.int64), np.full(2, float(i))) for i in range(5)])
    written = write_dataset(dataset, layout, tmp_path / "out", show=False)
    assert (written.trajectories, written.mean_return) == (5, 4.0) and len(StoredDataset(tmp_path / "out")) == 5


def test_a_dataset_without_trajectories_is_not_imported(tmp_path: Path) -> None:
    dataset = EpisodeDataset([Episode(np.zeros((3, 2)), np.zeros(2, np.int64), np.ones(2))])
    dataset.episodes.clear()
    layout = RowLayout(spaces.Box(-1, 1, (2,)), spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"^EpisodeDataset holds no trajectories$"):
        write_dataset(dataset, layout, tmp_path / "out", show=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("written_down", [True, False])
def test_what_a_run_has_evicted_is_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_down: bool) -> None:
    """The writer says so in its files; in those of before, the capacities of the run do."""
    run, layout = tmp_path / "run", MADE_UP
    if not written_down:
        monkeypatch.setattr(TrajectoryStore, "_note_eviction", lambda self: None)
    store = TrajectoryStore(StoreConfig(shard_folder(run / "replay", 0), capacity_trajectories=10))
    for n in range(40):
        store.push(pack([ring_cases.trajectory(n)]))
        store.commit()
    store.close()
    if not written_down:
        (run / "config.txt").write_text(
            "Experiment.num_replay_shards = 1\nExperiment.replay_capacity_gb = 4.0\n"
            "Experiment.replay_capacity_trajectories = 10\n"
        )
    for path in (run, run / "replay"):
        dataset = StoredDataset(path)
        dataset.check(layout)
        assert [dataset.trajectory(i, layout).id.sequence for i in range(len(dataset))] == list(range(30, 40))
    assert dataset.source(layout, 0, 1).available().trajectories == 10
    assert write_dataset(dataset, layout, tmp_path / "out", show=False).trajectories == 10


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("space", "stored"),
    [
        (spaces.Box(0, 65535, (2,), np.uint16), np.uint16),
        (spaces.Box(0, 2**32 - 1, (2,), np.uint32), np.uint32),
        (spaces.Box(-128, 127, (2,), np.int8), np.int8),
        (spaces.Box(0, 60000, (2,), np.float16), np.float16),
        (spaces.Box(0, 200, (2,), np.float64), np.float32),
        (spaces.Box(0, 200, (2,), np.longdouble), np.float32),
        (spaces.Box(-1, 1, (0,), np.float32), np.float32),
        (spaces.Box(0, 255, (0, 3), np.uint8), np.uint8),
    ],
    ids=str,
)
def test_rare_dtypes_and_empty_arrays_keep_their_values(
    tmp_path: Path, space: spaces.Box, stored: type, compress: bool
) -> None:
    """From an episode to segments, to a batch on the device, and to AMAGO's files and back."""
    whole = spaces.Dict(rare=space, x=spaces.Box(0, 8, (1,)))
    layout = RowLayout(whole, spaces.Discrete(2))
    x = np.arange(9, dtype=np.float32)[:, None]
    low, high = (bound.astype(np.longdouble) for bound in (space.low, space.high))
    rare = (low + (high - low) * np.arange(9).reshape(-1, *[1] * len(space.shape)) / 8).astype(space.dtype)
    made = EpisodeDataset([Episode({"rare": rare, "x": x}, [0, 1] * 4, np.ones(8), True)])
    made.check(layout)
    write_dataset(made, layout, tmp_path / "out", ("rare",) if compress else (), show=False)
    dataset = StoredDataset(tmp_path / "out")
    found = dataset.trajectory(0, layout)
    assert found.columns["obs.rare"].dtype == stored
    np.testing.assert_array_equal(found.columns["obs.rare"], rare.astype(stored))
    shard = ReplayShard(ReplayConfig(4), 0, [dataset.source(layout, 0, 1)])
    (batch,) = ReplayReader([LocalShard(shard)], 6, 0).batches(1, 0, (0, 1))
    tensors = training_batch(batch, layout.action.spec, torch.device("cpu"))
    rows = tensors.obs["x"][..., 0].long().numpy()
    np.testing.assert_array_equal(tensors.obs["rare"].float().numpy(), rare[rows].astype(np.float32))
    export_npz([found], layout, tmp_path / "npz")
    assert_same(AmagoDataset(tmp_path / "npz"), layout, [found])


class Interrupted(EpisodeDataset):
    """Ends the process, or fails, at its third trajectory."""

    def __init__(self, kill: bool):
        super().__init__([Episode(np.zeros((3, 2), np.float32), np.zeros(2, np.int64), np.ones(2)) for _ in range(5)])
        self.kill = kill

    def episode(self, index: int) -> Episode:
        if index == 3 and self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 3:
            raise ValueError("torn")
        return super().episode(index)


@pytest.mark.processes
def test_an_import_that_ends_early_leaves_nothing_that_passes_for_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, layout = tmp_path / "out", RowLayout(spaces.Box(-1, 1, (2,)), spaces.Discrete(2))
    with pytest.raises(ValueError, match="Interrupted, trajectory 3: torn"):
        write_dataset(Interrupted(kill=False), layout, out, show=False)
    assert list(tmp_path.iterdir()) == []
    code = (
        "import test_readers as t; from amago_ray.commands import import_data as d; d.MESSAGE_BYTES = 1\n"
        f"d.write_dataset(t.Interrupted(True), t.RowLayout(t.spaces.Box(-1, 1, (2,)), t.spaces.Discrete(2)), "
        f"t.Path({str(out)!r}), show=False)"
    )
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), str(Path(__file__).parent)])
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = tmp_path.iterdir()
    assert left != out and list(left.rglob("*.segment"))
    with pytest.raises(ValueError, match="no trajectories are stored"):
        len(StoredDataset(left))
    whole = Interrupted(kill=False)
    monkeypatch.setattr(Interrupted, "episode", EpisodeDataset.episode)
    assert write_dataset(whole, layout, out, show=False).trajectories == 5
    assert list(tmp_path.iterdir()) == [out] and len(StoredDataset(out)) == 5


@gin.configurable(module="test_readers")
class Ones(EpisodeDataset):
    def __init__(self) -> None:
        super().__init__([Episode(np.ones((3, 2), np.float32), np.zeros(2, np.int64), np.ones(2)) for _ in range(4)])


@pytest.mark.processes
def test_what_a_source_stands_for(tmp_path: Path, minari_folder: Path) -> None:
    config.load([])
    amago_files(tmp_path / "amago")
    run_folder(tmp_path / "run")
    record(gym.make("CartPole-v1"), "cart/random-v0", rollouts=1)
    for source, kind in [
        (str(tmp_path / "amago"), AmagoDataset),
        (str(tmp_path / "run"), StoredDataset),
        ("cart/random-v0", MinariDataset),
        (str(minari_folder / "cart" / "random-v0"), MinariDataset),
        ("@Ones", Ones),
        ("@Ones()", Ones),
    ]:
        assert type(dataset_of(source)) is kind
    with pytest.raises(ValueError, match="@MinariDatast: .*did you mean 'MinariDataset'"):
        dataset_of("@MinariDatast")
    with pytest.raises(ValueError, match="no RLDataset"):
        dataset_of("@TMaze")


def import_data(*arguments: str | Path) -> int:
    gin.clear_config()
    return train.main(["import-data", *map(str, arguments)])


@pytest.mark.processes
def test_the_command(tmp_path: Path, minari_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = record(gym.make("CartPole-v1"), "cart/random-v0", rollouts=4)
    gin_file = tmp_path / "cart.gin"
    gin_file.write_text(
        "Experiment.run_name = 'cart'\nExperiment.make_train_env = 'CartPole-v1'\nExperiment.max_seq_len = 8\n"
        f"Experiment.dataset = @StoredDataset()\nStoredDataset.path = '{tmp_path / 'made'}'\n"
    )
    for out, options in ((tmp_path / "made", ["--config", gin_file]), (tmp_path / "deep" / "er", [])):
        assert import_data("cart/random-v0", "--out", out, *options) == 0
        printed = capsys.readouterr().out
        steps = sum(t.num_transitions for t in expected)
        assert f"4 trajectories, {steps} timesteps, mean return {steps / 4:.4g}" in printed
        assert f'StoredDataset.path = "{out}"' in printed
        assert_same(StoredDataset(out), RowLayout(*MinariDataset("cart/random-v0").spaces), expected)
    amago_files(tmp_path / "amago")
    for arguments, message in [
        (["cart/random-v0", "--out", tmp_path / "made"], "exists already"),
        ([tmp_path / "amago", "--out", tmp_path / "x"], "add --config FILE"),
        ([tmp_path / "amago", "--out", tmp_path / "x", "--config", gin_file], "AmagoDataset, trajectory 0"),
        (["no/such-v0", "--out", tmp_path / "x"], "no/such-v0"),
        (["@Nobody", "--out", tmp_path / "x"], "Nobody"),
    ]:
        assert import_data(*arguments) == 2
        out, err = capsys.readouterr()
        assert err.count("\n") == 1 and message in err, err
        assert not (tmp_path / "x").exists()
