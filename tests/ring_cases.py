"""What the tests of rollout, replay and learner share: small agents, Counting workers, trajectories and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from amago_ray.agent import Agent
from amago_ray.agent.spec import AgentSpec
from amago_ray.envs.builtin.counting import Counting, misaligned
from amago_ray.envs.makers import check_env
from amago_ray.messages import Batch, SampledSequences, Trajectory, TrajectoryId
from amago_ray.nets.actors import Actor
from amago_ray.nets.critics import NCritics
from amago_ray.nets.traj_encoders import FFTrajEncoder, TrajEncoder
from amago_ray.nets.tstep_encoders import FFTstepEncoder
from amago_ray.replay.sampling.selection import SelectionConfig
from amago_ray.replay.shard import BUFFER, ReplayConfig, ReplayShard
from amago_ray.replay.storage.config import StoreConfig
from amago_ray.rollout.worker import RolloutConfig, RolloutWorker

# As in worker processes: with several threads and another process busy, a step of these small policies takes 100 times
# as long.
torch.set_num_threads(1)


ROW_BYTES = 25  # of one timestep of `trajectory`


def trajectory(sequence: int = 0, length: int = 5, worker: int = 0, incarnation: int = 0, **facts: Any) -> Trajectory:
    """A piece of a rollout whose rows say where they are from: obs.from is (worker, incarnation, sequence, row)."""
    row = np.arange(length + 1)
    origin = np.stack([np.full(length + 1, x) for x in (worker, incarnation, sequence)] + [row], axis=1)
    columns = {
        "obs.from": origin.astype(np.int16),
        "obs.pixels": np.full((length + 1, 2, 2), sequence % 256, dtype=np.uint8),
        "action": (row % 3).astype(np.int64),
        "reward": row.astype(np.float32),
        "terminated": row == length,
    }
    facts = {"env_name": "made up", "first_time_idx": 0, "truncated": False, "weight_version": 0} | facts
    return Trajectory(id=TrajectoryId(worker, incarnation, sequence), columns=columns, **facts)


def stored_ids(shards: Iterable[ReplayShard]) -> list[tuple[int, int, int]]:
    """The identities of all visible trajectories, shard by shard, oldest first."""
    rows = np.concatenate([shard.store.table.rows for shard in shards])
    return [(int(row["worker"]), int(row["incarnation"]), int(row["sequence"])) for row in rows]


def stored_trajectories(shard: ReplayShard) -> list[Trajectory]:
    """All visible trajectories of a shard, oldest first."""
    return [shard.store.trajectory(number) for number in range(shard.store.table.first, shard.store.table.end)]


STORE_SETTINGS = {field.name for field in fields(StoreConfig)}
SELECTION_SETTINGS = {field.name for field in fields(SelectionConfig)}


def make_shards(num: int, max_seq_len: int = 4, **settings: Any) -> list[ReplayShard]:
    """Shards of a run; settings: of `ReplayConfig`, `StoreConfig` (each shard's) or `SelectionConfig`."""
    store = StoreConfig(stride=num, **{k: settings.pop(k) for k in list(settings) if k in STORE_SETTINGS})
    selection = SelectionConfig(**{k: settings.pop(k) for k in list(settings) if k in SELECTION_SETTINGS})
    return [ReplayShard(ReplayConfig(max_seq_len, store=store, selection=selection, **settings), i) for i in range(num)]


def sample(shard: ReplayShard, num: int, draw: tuple[int, ...] = (0,)) -> SampledSequences:
    """Draw from one shard as it is now."""
    drawn = shard.sample(num, shard.available()[BUFFER].version, draw)
    assert drawn is not None
    return drawn


def as_batch(drawn: SampledSequences) -> Batch:
    """All of one shard's sequences as a batch."""
    num = len(drawn.lengths)
    return Batch((drawn,), np.zeros(num, dtype=np.int64), np.arange(num), drawn.probability)


def assert_same_batch(a: Batch, b: Batch) -> None:
    for name in ("lengths", "first_time_idx", "shard", "ids", "weight_version"):
        np.testing.assert_array_equal(a.gather(name), b.gather(name), err_msg=name)
    np.testing.assert_array_equal(a.probability, b.probability)
    assert a.column_names == b.column_names
    for name in a.column_names:
        np.testing.assert_array_equal(np.concatenate(a.rows(name)), np.concatenate(b.rows(name)), err_msg=name)


def assert_same_trajectories(a: Sequence[Trajectory], b: Sequence[Trajectory]) -> None:
    assert [t.id for t in a] == [t.id for t in b]
    for x, y in zip(a, b, strict=True):
        assert (x.first_time_idx, x.truncated, x.weight_version) == (y.first_time_idx, y.truncated, y.weight_version)
        for name, column in x.columns.items():
            np.testing.assert_array_equal(column, y.columns[name], err_msg=name)


def assert_uniform(counts: Iterable[float]) -> None:
    """Chi-square: counts are as even as those of uniform draws (five standard deviations)."""
    counts = np.array(list(counts), dtype=np.float64)
    expected = counts.mean()
    assert expected >= 20, "too few draws for the test to mean anything"
    statistic, df = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    assert statistic < df + 5 * np.sqrt(2 * df), f"chi-square {statistic:.1f} with {df} degrees of freedom: {counts}"


def assert_drawn_as(counts: Iterable[float], probabilities: Iterable[float]) -> None:
    """Chi-square: counts are those of draws with these probabilities (five standard deviations)."""
    counts, expected = np.array(list(counts), dtype=np.float64), np.array(list(probabilities), dtype=np.float64)
    assert abs(expected.sum() - 1) < 1e-9 and len(counts) == len(expected)
    expected = expected * counts.sum()
    assert not counts[expected == 0].any(), "something was drawn that has no weight"
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert expected.min() >= 5, "too few draws for the test to mean anything"
    statistic, df = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    assert statistic <= df + 5 * np.sqrt(2 * df), f"chi-square {statistic:.1f} with {df} degrees of freedom: {counts}"


def tiny_agent(make_env: Any, traj_encoder_type: type[TrajEncoder] | None = None, max_seq_len: int = 8) -> AgentSpec:
    """An agent of a few thousand weights for the spaces of `make_env`."""
    obs_spec, action_spec, _ = check_env(make_env)
    return AgentSpec(
        obs_spec=obs_spec,
        action_spec=action_spec,
        max_seq_len=max_seq_len,
        tstep_encoder_type=partial(FFTstepEncoder, n_layers=1, d_hidden=16, d_output=16),
        traj_encoder_type=traj_encoder_type or partial(FFTrajEncoder, d_model=16),
        agent_type=partial(
            Agent,
            actor_type=partial(Actor, n_layers=1, d_hidden=16),
            critic_type=partial(NCritics, n_layers=1, d_hidden=16),
            num_critics=2,
        ),
        seed=0,
    )


class Recorded:
    """A worker whose finished trajectories are kept in `written`."""

    def __init__(self, make_env: Any, worker: int = 0, incarnation: int = 0, **settings: Any):
        agent = settings.pop("agent", None) or tiny_agent(make_env)
        settings = {"num_envs": 2, "first_env": 0, "seed": 0, "traj_save_len": 5, "exploration_type": None} | settings
        self.written: list[Trajectory] = []
        self.agent = agent
        self.worker = RolloutWorker(
            RolloutConfig(make_env, **settings), agent, worker, incarnation, write=self.written.append
        )


def counting(episode_length: int, terminate: bool = True, **settings: Any) -> Callable[[], Counting]:
    return partial(Counting, episode_length, terminate=terminate, **settings)


def rollouts_of(written: Iterable[Trajectory]) -> dict[tuple[int, int], list[Trajectory]]:
    """The pieces of each Counting rollout, in the order of their writing, by (env_id, rollout)."""
    found: dict[tuple[int, int], list[Trajectory]] = {}
    for t in written:
        key = (int(t.columns["obs.env_id"][0, 0]), int(t.columns["obs.rollout"][0, 0]))
        found.setdefault(key, []).append(t)
    return found


def assert_rollouts_whole(
    written: Sequence[Trajectory], episode_length: int, traj_save_len: int, terminate: bool, unfinished: int
) -> None:
    """Every row is right, and the pieces of every rollout join without gap or overlap, from its first row on.

    unfinished: rollouts that may lack their end, because collection stopped.
    """
    for t in written:
        assert misaligned(t.columns, t.first_time_idx, episode_length, terminate) == []
        assert 1 <= t.num_transitions <= traj_save_len
    rollouts = rollouts_of(written)
    incomplete = 0
    for pieces in rollouts.values():
        assert pieces[0].first_time_idx == 0
        for name in ("action", "reward", "terminated"):
            assert not pieces[0].columns[name][0].any(), name
        for piece, following in pairwise(pieces):
            assert piece.num_transitions == traj_save_len and not piece.truncated
            assert following.first_time_idx == piece.first_time_idx + piece.num_transitions
            for name, column in piece.columns.items():
                np.testing.assert_array_equal(following.columns[name][0], column[-1], err_msg=name)
        last = pieces[-1]
        ended = last.first_time_idx + last.num_transitions == last.columns["obs.length"][0, 0]
        incomplete += not ended
        assert last.truncated == (ended and not terminate)
        assert last.columns["terminated"][-1] == (ended and terminate)
    assert incomplete <= unfinished
    for env_id in {env for env, _ in rollouts}:
        numbers = sorted(rollout for env, rollout in rollouts if env == env_id)
        assert numbers == list(range(len(numbers))), "a rollout is missing"
