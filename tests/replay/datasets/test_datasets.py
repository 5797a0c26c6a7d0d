"""Datasets as sources: rows, mixtures over several shards, sources that grow, and that nothing of them is evicted."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import dataset_cases
import gymnasium as gym
import numpy as np
import pytest
import ring_cases
import torch
from gymnasium import spaces

from amago_ray.messages import Batch, TrajectoryId
from amago_ray.replay.client import LocalShard, ReplayReader, ReplayWriter
from amago_ray.replay.datasets.dataset import (
    DatasetSource,
    Episode,
    MixtureOfDatasets,
    OnlineReplay,
    RLDataset,
    RowLayout,
    mixture_of,
)
from amago_ray.replay.readers import EpisodeDataset
from amago_ray.replay.sampling.relabeling import Relabeler, categories_of
from amago_ray.replay.sampling.selection import SelectionConfig
from amago_ray.replay.sampling.sources import ReplayEmpty, SliceConfig
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.replay.storage.config import StoreConfig

LAYOUT = RowLayout(spaces.Box(-1e6, 1e6, (2,)), spaces.Discrete(5, start=-2))


def episode(number: int, length: int = 6, **fields: Any) -> Episode:
    """Rows that say where they are from: observation (number, row), reward = row."""
    row = np.arange(length + 1, dtype=np.float32)
    actions = (number + np.arange(length)) % 5 - 2
    return Episode(np.stack([np.full_like(row, number), row], axis=1), actions, row[1:], **fields)


class Growing(RLDataset):
    """Has nothing at first. trajectories: how many it has now."""

    def __init__(self, trajectories: int = 0):
        self.trajectories = trajectories

    def __len__(self) -> int:
        return self.trajectories

    def episode(self, index: int) -> Episode:
        assert index < self.trajectories
        return episode(1000 + index)


def shards_with(datasets: Sequence[RLDataset], num: int = 3, **settings: Any) -> list[ReplayShard]:
    config = ReplayConfig(max_seq_len=4, **settings)
    return [ReplayShard(config, i, [d.source(LAYOUT, i, num) for d in datasets]) for i in range(num)]


def collect(shards: Sequence[ReplayShard], numbers: Sequence[int]) -> None:
    """What a worker of the run would push."""
    writer = ReplayWriter([LocalShard(shard) for shard in shards], message_bytes=1)
    for i in numbers:
        writer.write(replace(LAYOUT.trajectory(episode(i), i), id=TrajectoryId(0, 0, i)))
    writer.flush()
    for shard in shards:
        shard.commit()


def origins(batches: Sequence[Batch]) -> Counter[int]:
    """How often each episode was drawn."""
    found: Counter[int] = Counter()
    for batch in batches:
        found.update(int(rows[0, 0]) for rows in batch.rows("obs.observation"))
    return found


def assert_rows_whole(batches: Sequence[Batch]) -> None:
    """Every sequence is a stretch of its episode: nothing is shifted against anything."""
    for batch in batches:
        columns = [batch.rows(name) for name in ("obs.observation", "reward", "action", "terminated")]
        for first, obs, reward, action, terminated in zip(batch.first_time_idx, *columns, strict=True):
            row = np.arange(first, first + len(obs))
            np.testing.assert_array_equal(obs[:, 1], row)
            np.testing.assert_array_equal(reward, row)
            np.testing.assert_array_equal(action, np.where(row > 0, (obs[:, 0] + row - 1) % 5, 0))
            assert not terminated.any()


def test_the_table_of_an_episode() -> None:
    table = LAYOUT.trajectory(episode(3, length=2, terminated=True, env_name="e"), 7)
    assert (table.id.worker, table.id.sequence, table.env_name, table.truncated) == (-1, 7, "e", False)
    expected = {
        "obs.observation": np.array([[3, 0], [3, 1], [3, 2]], np.float32),
        "action": np.array([0, 3, 4]),  # counted from 0, with a row that no action led to
        "reward": np.array([0, 1, 2], np.float32),
        "terminated": np.array([False, False, True]),
    }
    assert table.columns.keys() == expected.keys() == LAYOUT.empty(0).keys()
    for name, column in expected.items():
        np.testing.assert_array_equal(table.columns[name], column)
        assert table.columns[name].dtype == column.dtype == LAYOUT.empty(0)[name].dtype
    assert LAYOUT.trajectory(episode(0, terminated=[False] * 6), 0).truncated


def test_no_episodes_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match=r"EpisodeDataset\.episodes=\[\]: it must hold one episode or more"):
        EpisodeDataset([])


def test_observations_as_a_list_and_of_nested_spaces() -> None:
    space = spaces.Dict(image=spaces.Box(0, 255, (2, 2), np.uint8), inner=spaces.Tuple([spaces.Discrete(3, start=1)]))
    layout = RowLayout(space, spaces.Box(-2, 2, (2,)))
    rows = [{"image": np.full((2, 2), i, np.uint8), "inner": (1 + i,)} for i in range(3)]
    stacked = {"image": np.stack([r["image"] for r in rows]), "inner": (np.array([1, 2, 3]),)}
    actions = np.array([[-2.0, 1.0], [0.5, 2.0]])
    tables = [layout.trajectory(Episode(obs, actions, [0.0, 1.0]), 0).columns for obs in (rows, stacked)]
    for table in tables:
        np.testing.assert_array_equal(table["obs.image"][:, 0, 0], [0, 1, 2])
        np.testing.assert_array_equal(table["obs.inner/0"], [0, 1, 2])
        np.testing.assert_allclose(table["action"], [[0, 0], [-1, 0.5], [0.25, 1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((6, 2), np.float32)}, r"shape \(6, 2\), its space \(7, 2\)"),
        ({"observations": [np.zeros(2, np.float32)] * 6}, "6 observations for 6 rewards: there must be one more"),
        ({"observations": np.zeros((7, 3), np.float32)}, r"shape \(7, 3\)"),
        ({"observations": {"x": np.zeros(7)}}, r"shape \(\), its|not built like|dtype object"),
        ({"actions": np.zeros(5, np.int64)}, "5 actions and 6 terminations for 6 rewards"),
        ({"actions": np.full(6, 3)}, "action 0 is 3, which is outside the action space"),
        ({"actions": [0, 1, 1.5, 0, 0, 0]}, "action 2 is 1.5, which is outside"),
        ({"actions": [0, 1, 1, 0, np.nan, 0]}, "action 4 is nan, which is outside"),
        ({"actions": ["left"] * 6}, "dtype <U4"),
        ({"terminated": [True]}, "6 actions and 1 terminations"),
        ({"terminated": [False, np.nan]}, "terminated is .*nan.*True or False"),
        ({"terminated": np.arange(6) == 2}, "transition 2 of 6 is terminated and others follow"),
        ({"terminated": np.arange(6)[:, None] == 4}, "transition 4 of 6 is terminated and others follow"),
        ({"rewards": []}, "no transition"),
        ({"rewards": ["a"] * 6}, "rewards are no numbers"),
        ({"rewards": np.ones(6) * 1j}, "rewards are no numbers: their dtype is complex128"),
        ({"rewards": [[0, 1, 2, 3, 4, 5]]}, r"rewards have shape \(1, 6\): there must be one for each transition"),
        ({"rewards": np.zeros((6, 2))}, r"rewards have shape \(6, 2\): there must be one for each transition"),
        ({"rewards": 1.0}, r"rewards have shape \(\): there must be one for each transition"),
        ({"terminated": [[False] * 6]}, r"terminated have shape \(1, 6\): there must be one for each transition"),
        ({"rewards": [0, 1, 2, np.nan, 4, 5]}, "reward 3 is nan; it must be finite"),
        ({"rewards": [0, 1, 2, 3, 4, -1e300]}, "reward 5 is -inf"),
        ({"observations": np.where(np.arange(14).reshape(7, 2) == 9, np.inf, 0)}, r"observation 4: .*\[1\] is inf"),
        ({"observations": [np.full(2, 1e39 * (i == 6)) for i in range(7)]}, r"observation 6: .*\[0\] is inf"),
    ],
)
def test_episodes_that_do_not_fit_are_refused_by_number(changes: dict[str, Any], message: str) -> None:
    good = episode(0)
    fields = {"observations": good.observations, "actions": good.actions, "rewards": good.rewards} | changes
    dataset = EpisodeDataset([good, fields])
    dataset.trajectory(0, LAYOUT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for use in (dataset.check, partial(dataset.trajectory, 1)):
            with pytest.raises(ValueError, match=f"EpisodeDataset, trajectory 1: .*{message}") as refused:
                use(LAYOUT)
            assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("rewards", "rounded"),
    [
        ([1 << 24, -(1 << 24), 0, 1, 2, 3], False),
        ([(1 << 24) + 2, 0, 0, 1, 2, 3], False),  # a float32 like any even number up to twice that
        ([0, 0, 0, 1, 2, (1 << 24) + 1], True),
        (np.array([0, 0, 0, 1, 2, 4294967295], np.uint32), True),
        ([0.1, 0, 0, 1, 2, 16777217.0], False),  # every number with a fraction is rounded
    ],
)
def test_whole_rewards_that_become_others_are_warned_of(rewards: Any, rounded: bool) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = LAYOUT.trajectory(replace(episode(0), rewards=rewards), 0)
    np.testing.assert_array_equal(found.columns["reward"][1:], np.array(rewards, np.float32))
    lines = [str(warning.message) for warning in told]
    assert lines == ["whole rewards above 16,777,216 are rounded: they are stored as float32"] * rounded


def test_whole_observations_that_become_others_are_warned_of() -> None:
    whole = np.zeros((7, 2), np.int64)
    whole[4, 1] = (1 << 24) + 1
    layout = RowLayout(spaces.Box(-np.inf, np.inf, (2,)), spaces.Discrete(5, start=-2))
    line = "observation 'observation': whole numbers, such as 16777217, are rounded to float32"
    for given, rounded in ((whole, True), (list(whole), True), (whole // 2 * 2, False), (whole.astype(float), False)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            layout.trajectory(replace(episode(0), observations=given), 0)
        assert [str(warning.message) for warning in told] == [line] * rounded


@pytest.mark.parametrize("field", ["observations", "actions"])
@pytest.mark.parametrize("make", [torch.Tensor.bfloat16, torch.Tensor.requires_grad_])
def test_tensors_that_are_no_arrays_are_refused_for_what_they_are(field: str, make: Any) -> None:
    tensor = make(torch.as_tensor(getattr(episode(0), field), dtype=torch.float32))
    said = rf"'?{field[:-1]}.* cannot be made a NumPy array \(\w+: .* of a tensor, \.detach\(\)\.cpu\(\)\.float\(\) can"
    for given in (tensor, list(tensor)):
        with pytest.raises(ValueError, match=said):
            EpisodeDataset([replace(episode(0), **{field: given})]).trajectory(0, LAYOUT)


@pytest.mark.parametrize(
    ("space", "good", "bad"),
    [
        (spaces.Box(-1, 1, (2,)), [[1.0, -1.0], [1 + 1e-6, 0.5]], [[90.0, -30.0], [1.001, 0.0], [np.nan, 0.0]]),
        (spaces.Box(0, 255, (1,)), [[255.0], [255.0001], [-1e-4]], [[256.0], [-0.5]]),
        (spaces.Box(-2, 5, (1,), np.int64), [[5], [-2.0]], [[6], [0.5], [-3]]),
        (spaces.Discrete(3, start=4), [4, 6.0], [3, 7, 4.5, -1]),
        (spaces.MultiDiscrete([[2, 3]], start=[[1, 0]]), [[[2, 2]], [[1.0, 0.0]]], [[[0, 0]], [[1, 3]], [[1, 0.5]]]),
        (spaces.MultiBinary(2), [[True, False], [0.0, 1.0]], [[2, 0], [0.5, 0], [-1, 0]]),
    ],
    ids=str,
)
def test_actions_outside_their_space_are_refused(space: gym.Space, good: list[Any], bad: list[Any]) -> None:
    """Neither clipped nor cut: what is stored is what the environment takes, or nothing is."""
    layout = RowLayout(spaces.Box(-1, 1, (1,)), space)

    def dataset(*actions: Any) -> EpisodeDataset:
        return EpisodeDataset([Episode(np.zeros((len(actions) + 1, 1)), np.array(actions), np.zeros(len(actions)))])

    kept = dataset(*good).trajectory(0, layout).columns["action"][1:]
    np.testing.assert_allclose(layout.action.to_env(kept), np.array(good), rtol=1e-5, atol=1e-3)
    for action in bad:
        with pytest.raises(ValueError, match=r"trajectory 0: action 1 is .* outside the action space"):
            dataset(good[0], action).check(layout)


def test_a_category_of_an_observation_is_named_by_its_timestep() -> None:
    layout = RowLayout(spaces.Dict(kind=spaces.Discrete(3), x=spaces.Box(-1, 1, (1,))), spaces.Discrete(2))
    kinds = [0, 1, 2, 3, 2]
    stacked = {"kind": np.array(kinds), "x": np.zeros((5, 1))}
    rows = [{"kind": kind, "x": np.zeros(1)} for kind in kinds]
    for observations in (stacked, rows):
        with pytest.raises(ValueError, match="observation 3: .*'kind' is outside its space: 3$"):
            EpisodeDataset([Episode(observations, [0] * 4, [0.0] * 4)]).check(layout)


def test_what_is_read_lazily_is_checked_when_it_is_drawn() -> None:
    """Only the first bytes are looked at before the start; the reader's caller gets the error of the shard."""

    class Late(Growing):
        checked_bytes = 1

        def episode(self, index: int) -> Episode:
            return replace(
                episode(index), rewards=np.where(np.arange(6) == 5, np.nan, 0.0) if index == 3 else [0.0] * 6
            )

    Late(5).check(LAYOUT)
    with pytest.raises(ValueError, match="Late, trajectory 3: reward 5 is nan"):
        type("Late", (Late,), {"checked_bytes": 1 << 20})(5).check(LAYOUT)
    reader = ReplayReader([LocalShard(s) for s in shards_with([Late(5)])], batch_size=40, seed=0)
    with pytest.raises(ValueError, match="Late, trajectory 3: reward 5 is nan"):
        list(reader.batches(5, 0, mixture=(0, 1)))


def test_a_dataset_of_other_spaces_is_refused() -> None:
    class Knows(Growing):
        spaces = (spaces.Box(-1, 1, (2,)), spaces.Discrete(5, start=-1))

    with pytest.raises(ValueError, match=r"Knows holds data of other environments.*Discrete\(5, start=-1\)"):
        Knows().check(LAYOUT)
    Knows.spaces = (spaces.Box(-1, 1, (2,)), LAYOUT.action_space)
    Knows().check(LAYOUT)  # other bounds of an observation change nothing that is stored


def test_shards_share_a_dataset_evenly() -> None:
    shards = shards_with([EpisodeDataset([episode(i, length=3 + i) for i in range(10)])])
    reader = ReplayReader([LocalShard(s) for s in shards], batch_size=50, seed=0)
    batches = list(reader.batches(40, 0, mixture=(0, 1)))
    counts = origins(batches)
    dataset_cases.assert_distribution(counts, dict.fromkeys(range(10), 1.0))
    assert_rows_whole(batches)
    for batch in batches:
        np.testing.assert_allclose(batch.probability, 0.1)
    again = ReplayReader([LocalShard(s) for s in shards], batch_size=50, seed=0)
    for a, b in zip(batches, again.batches(40, 0, mixture=(0, 1)), strict=True):
        ring_cases.assert_same_batch(a, b)


def test_a_mixture_is_drawn_by_its_weights() -> None:
    """Twelve trajectories of the run, ten of one dataset and three of another, in every epoch's proportions."""
    mixture = MixtureOfDatasets(
        sources=(EpisodeDataset([episode(100 + i) for i in range(10)]), OnlineReplay(), Growing(3)),
        weights=(2, 1, 1),
        final_weights=(0, 3, 1),
        anneal_epochs=(2, 4),
    )
    assert mixture.weights_at(0) == mixture.weights_at(2) == pytest.approx((0.25, 0.5, 0.25))
    assert mixture.weights_at(3) == pytest.approx((0.5, 0.25, 0.25))
    assert mixture.weights_at(4) == mixture.weights_at(9) == pytest.approx((0.75, 0, 0.25))
    shards = shards_with(mixture.datasets)
    collect(shards, range(12))
    reader = ReplayReader([LocalShard(s) for s in shards], batch_size=50, seed=0)
    for epoch in (0, 3, 4):
        weights = mixture.weights_at(epoch)
        batches = list(reader.batches(60, 60 * epoch, weights))
        counts = origins(batches)
        each = [p / n for p, n in zip(weights, (12, 10, 3), strict=True)]
        sources = [range(12), range(100, 110), range(1000, 1003)]
        expected = {number: each[i] for i, numbers in enumerate(sources) for number in numbers if each[i]}
        dataset_cases.assert_distribution(counts, expected)
        for batch in batches:
            drawn = [int(rows[0, 0]) for rows in batch.rows("obs.observation")]
            np.testing.assert_allclose(batch.probability, [expected[number] for number in drawn])
        assert_rows_whole(batches)


def test_a_source_that_becomes_ready_later() -> None:
    growing = Growing()
    shards = shards_with([growing])
    reader = ReplayReader([LocalShard(s) for s in shards], batch_size=40, seed=0, timeout_s=1.0)
    with pytest.raises(ReplayEmpty):
        next(reader.batches(1, 0, mixture=(0.5, 0.5)))
    collect(shards, range(6))
    assert all(number < 6 for number in origins(list(reader.batches(5, 0, mixture=(0.5, 0.5)))))
    growing.trajectories = 1  # of three shards, two still have none
    assert origins(list(reader.batches(5, 5, mixture=(0.5, 0.5))))[1000] == pytest.approx(100, abs=35)
    batches = reader.batches(20, 10, mixture=(0, 1))
    next(batches)
    growing.trajectories = 9  # while requests are in flight
    counts = origins(list(batches))
    assert set(counts) == set(range(1000, 1009))


def test_what_is_protected_is_never_evicted() -> None:
    dataset = EpisodeDataset([episode(100 + i) for i in range(4)])
    shards = shards_with([dataset], num=2, store=StoreConfig(capacity_trajectories=2, stride=2))
    for first in range(0, 40, 10):
        collect(shards, range(first, first + 10))
        assert sum(len(shard.store) for shard in shards) == 4
        assert [shard.available()[1].trajectories for shard in shards] == [2, 2]
    reader = ReplayReader([LocalShard(s) for s in shards], batch_size=40, seed=0)
    assert set(origins(list(reader.batches(20, 0, mixture=(0.5, 0.5))))) == {*range(36, 40), *range(100, 104)}


def test_the_cache_holds_no_more_than_it_may() -> None:
    loaded: list[int] = []

    class Noted(Growing):
        def episode(self, index: int) -> Episode:
            loaded.append(index)
            return super().episode(index)

    one = LAYOUT.trajectory(episode(0), 0).num_bytes
    source = DatasetSource(Noted(8), LAYOUT, shard=1, num_shards=2, cache_bytes=2 * one)
    slices, rng = SliceConfig(4), np.random.default_rng(0)
    assert source.available().trajectories == 4
    for _ in range(10):
        source.draw(8, slices, rng)
    assert set(loaded) == {1, 3, 5, 7} and 10 < len(loaded) < 80
    assert source._cached_bytes == 2 * one
    roomy = DatasetSource(Noted(8), LAYOUT, 0, 1)
    roomy.available()
    loaded.clear()
    roomy.draw(200, slices, rng)
    assert sorted(loaded) == list(range(8)), "each is read once"


def test_datasets_are_relabelled_too() -> None:
    class Doubled(Relabeler):
        def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
            return columns | {"reward": 2 * columns["reward"]}

    (shard,) = shards_with([EpisodeDataset([episode(0)])], num=1, relabeler=Doubled())
    reader = ReplayReader([LocalShard(shard)], batch_size=8, seed=0)
    for batch in reader.batches(2, 0, mixture=(0, 1)):
        for obs, reward in zip(batch.rows("obs.observation"), batch.rows("reward"), strict=True):
            np.testing.assert_array_equal(reward, 2 * obs[:, 1])


class NextAction(Relabeler):
    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return columns | {"action": columns["action"] + 1}


def test_what_datasets_are_relabelled_to_has_their_categories() -> None:
    settings = {"relabeler": NextAction(), "categories": categories_of(LAYOUT.obs.spec, LAYOUT.action.spec)}
    (shard,) = shards_with([EpisodeDataset([episode(0, length=5)])], num=1, **settings)
    reader = ReplayReader([LocalShard(shard)], batch_size=8, seed=0)
    with pytest.raises(ValueError, match="'action' of its answer holds 5; its categories are stored as 0 to 4"):
        list(reader.batches(2, 0, mixture=(0, 1)))


def test_prioritised_replay_beside_a_dataset() -> None:
    """Priorities reach what the run collected, and weights in the loss are of all that could be drawn."""
    settings = {"selection": SelectionConfig("prioritized")}
    shards = shards_with([EpisodeDataset([episode(100 + i) for i in range(3)])], num=2, **settings)
    collect(shards, range(4))
    reader = ReplayReader([LocalShard(s) for s in shards], batch_size=32, seed=0, importance_exponent=1.0)
    batches = list(reader.batches(2, 0, mixture=(0.5, 0.5)))
    reader.update_priorities(batches, np.full((2, 32), 0.25))
    drawn = {n for n in origins(batches) if n < 100}
    for shard in shards:
        table = shard.store.table
        numbers = np.arange(table.first, table.end)
        mine = [n in drawn for n in table.rows["sequence"].tolist()]
        np.testing.assert_allclose(shard.selection.priorities(numbers)[mine], 0.25)
    assert batches[0].weight is not None
    np.testing.assert_allclose(batches[0].weight, 1.0)  # equal priorities: every source is uniform


def test_mixtures_that_cannot_be() -> None:
    data = EpisodeDataset([episode(0)])
    for settings, message in [
        ({"sources": (data,), "weights": (1, 2)}, r"weights=\(1, 2\).*each of the 1 sources"),
        ({"sources": (data,), "weights": (0,)}, "not only zeros"),
        ({"sources": (data, data), "weights": (2, -1)}, "0 or more"),
        ({"sources": (), "weights": ()}, "0 sources"),
        ({"sources": (OnlineReplay(), OnlineReplay()), "weights": (1, 1)}, "one OnlineReplay at most"),
        ({"sources": (OnlineReplay, data), "weights": (1, 1)}, r"neither an RLDataset nor OnlineReplay\(\)"),
        ({"sources": (data,), "weights": (1,), "final_weights": (1, 2)}, "final_weights"),
        ({"sources": (data,), "weights": (1,), "anneal_epochs": (3, 3)}, "the later one last"),
        ({"sources": (data,), "weights": (1,), "anneal_epochs": (1,)}, r"anneal_epochs=\(1,\): two epochs"),
        ({"sources": (data,), "weights": (1,), "anneal_epochs": (0, float("nan"))}, "anneal_epochs=.*two epochs"),
        ({"sources": (data,), "weights": (1,), "anneal_epochs": 5}, "anneal_epochs=5: two epochs"),
        ({"sources": (data,), "weights": (float("nan"),)}, r"weights=\(nan,\): give one number of 0 or more"),
        ({"sources": (data,), "weights": (1,), "final_weights": (float("inf"),)}, r"final_weights=\(inf,\): give one"),
        ({"sources": (data,), "weights": ("a",)}, "weights=.*give one number of 0 or more"),
        ({"sources": (data,), "weights": 1.0}, "weights=1.0: give one number of 0 or more for each of the 1 sources"),
        ({"sources": data, "weights": (1,)}, "sources=.*: give a list of datasets"),
    ]:
        with pytest.raises(ValueError, match=message):
            MixtureOfDatasets(**settings)


def test_what_a_lone_dataset_and_none_stand_for() -> None:
    alone = mixture_of(Growing())
    assert alone.weights_at(0) == (0.0, 1.0) and not alone.learns_from_replay
    none = mixture_of(None)
    assert none.weights_at(5) == (1.0,) and none.learns_from_replay and none.datasets == ()
    assert mixture_of(alone) is alone
    assert pickle.loads(pickle.dumps(EpisodeDataset([episode(4)]))).episode(0).env_name == "dataset"
