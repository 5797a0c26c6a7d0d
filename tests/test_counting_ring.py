"""The whole path of the data without Ray: environments to workers to replay to training batches, on Counting.

Counting's rows say which environment, rollout and step they are from, so that anything lost, doubled or out of place
between an environment and a training batch shows.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from ring_cases import (
    assert_rollouts_whole,
    assert_uniform,
    counting,
    make_shards,
    stored_ids,
    stored_trajectories,
    tiny_agent,
)

from amago_ray.agent.policy import TrainingBatch
from amago_ray.agent.spec import AgentSpec
from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.learner.batches import Prefetcher, training_batch
from amago_ray.messages import Batch, RolloutReport
from amago_ray.nets.actions import action_vector
from amago_ray.replay.client import LocalShard, ReplayReader, ReplayWriter
from amago_ray.replay.sampling.slices import PaddedSampling
from amago_ray.replay.shard import ReplayShard
from amago_ray.rollout.worker import RolloutConfig, RolloutWorker

NUM_ENVS, STEPS_PER_ENV, EPOCHS = 2, 25, 3


class Ring:
    """Workers that write to shards, and a reader over all of them."""

    def __init__(
        self,
        episode_length: int,
        terminate: bool,
        num_workers: int,
        num_shards: int,
        traj_save_len: int = 5,
        max_seq_len: int = 4,
        padded_sampling: PaddedSampling = "both",
        action: str = "discrete",
    ):
        self.episode_length, self.terminate = episode_length, terminate
        make_env = counting(episode_length, terminate, action=action)
        self.agent: AgentSpec = tiny_agent(make_env)
        self.shards: list[ReplayShard] = make_shards(num_shards, max_seq_len, padded_sampling=padded_sampling)
        handles = [LocalShard(shard) for shard in self.shards]
        self.workers = []
        for worker in range(num_workers):
            config = RolloutConfig(
                make_env,
                NUM_ENVS,
                first_env=worker * NUM_ENVS,
                seed=0,
                traj_save_len=traj_save_len,
                exploration_type=EpsilonGreedy,
            )
            writer = ReplayWriter(handles, message_bytes=2000)
            self.workers.append(
                RolloutWorker(config, self.agent, worker, write=writer.write, flush=partial(flushed, writer))
            )
        self.reader = ReplayReader(handles, batch_size=16, seed=0)

    def collect(self, steps_per_env: int) -> list[RolloutReport]:
        reports = [worker.collect(steps_per_env * NUM_ENVS) for worker in self.workers]
        for shard in self.shards:
            shard.commit()
        return reports

    def batches(self, num: int, first: int = 0) -> list[tuple[Batch, TrainingBatch]]:
        prepare = partial(training_batch, action_spec=self.agent.action_spec, device=torch.device("cpu"))
        with Prefetcher(self.reader.batches(num, first), prepare) as prefetched:
            return list(prefetched)


def flushed(writer: ReplayWriter) -> float:
    writer.flush()
    return writer.wait_s


def assert_aligned(batch: Batch, training: TrainingBatch, ring: Ring) -> None:
    """Within every sequence observations, actions and rewards are those of consecutive steps of one rollout."""
    spec = ring.agent.action_spec
    step, rollout, env_id, length = (training.obs[key][..., 0] for key in ("step", "rollout", "env_id", "length"))
    real = training.timestep_mask
    np.testing.assert_array_equal(real.sum(dim=1).numpy(), batch.lengths + 1)
    expected_step = torch.from_numpy(batch.first_time_idx)[:, None] + torch.arange(step.shape[1])
    assert torch.equal(step[real], expected_step[real])
    assert torch.equal(training.time_idx[real], step[real])
    for same in (rollout, env_id, length):
        assert torch.equal(same[real], same[:, :1].expand_as(same)[real])
    begun = step > 0
    reward = (rollout * (ring.episode_length + 1) + step) * begun
    assert torch.equal(training.rl2[..., 0][real], reward[real].float())
    assert torch.equal(training.rewards[training.mask], reward[:, 1:][training.mask].float())
    echoed = action_vector(training.obs["last_action"], spec) * begun.unsqueeze(-1)
    torch.testing.assert_close(training.rl2[..., 1:][real], echoed[real], atol=1e-6, rtol=0)
    torch.testing.assert_close(training.actions[training.mask], echoed[:, 1:][training.mask], atol=1e-6, rtol=0)
    ended = (step == length)[:, 1:] & ring.terminate
    assert torch.equal(training.terminated[training.mask], ended[training.mask].float())


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("terminate", [True, False], ids=["terminated", "truncated"])
@pytest.mark.parametrize(
    ("episode_length", "traj_save_len", "max_seq_len"), [(3, 5, 4), (12, 5, 4), (12, 5, 8), (12, 20, 8), (12, 20, 30)]
)
def test_nothing_is_lost_repeated_or_misaligned(
    num_workers: int, num_shards: int, terminate: bool, episode_length: int, traj_save_len: int, max_seq_len: int
) -> None:
    ring = Ring(episode_length, terminate, num_workers, num_shards, traj_save_len, max_seq_len)
    reports = [report for _ in range(EPOCHS) for report in ring.collect(STEPS_PER_ENV)]

    ids = stored_ids(ring.shards)
    assert len(set(ids)) == len(ids) == sum(report.trajectories for report in reports)
    stored = [t for shard in ring.shards for t in stored_trajectories(shard)]
    stored.sort(key=lambda t: t.id)
    assert_rollouts_whole(stored, episode_length, traj_save_len, terminate, unfinished=num_workers * NUM_ENVS)
    steps = EPOCHS * STEPS_PER_ENV
    whole, rest = divmod(steps, episode_length)
    assert sum(report.timesteps for report in reports) == num_workers * NUM_ENVS * steps
    assert sum(t.num_transitions for t in stored) == (
        num_workers * NUM_ENVS * (whole * episode_length + rest // traj_save_len * traj_save_len)
    )
    assert len({int(t.columns["obs.env_id"][0, 0]) for t in stored}) == num_workers * NUM_ENVS

    batches = ring.batches(20)
    assert len(batches) == 20
    for batch, training in batches:
        assert batch.lengths.max() <= max_seq_len
        assert_aligned(batch, training, ring)
    assert {tuple(x) for batch, _ in batches for x in batch.gather("ids").tolist()} <= set(ids)


@pytest.mark.parametrize("action", ["continuous", "multibinary", "multidiscrete"])
@pytest.mark.parametrize("padded_sampling", ["none", "left", "right"])
def test_other_actions_and_samplings(action: str, padded_sampling: PaddedSampling) -> None:
    ring = Ring(9, True, 2, 2, padded_sampling=padded_sampling, action=action)
    ring.collect(60)
    for batch, training in ring.batches(8):
        assert_aligned(batch, training, ring)


def test_workers_and_shards_make_no_difference_to_the_odds() -> None:
    ring = Ring(7, True, num_workers=3, num_shards=3)
    ring.collect(21)
    known = sorted(stored_ids(ring.shards))
    drawn = [tuple(x) for batch, _ in ring.batches(120) for x in batch.gather("ids").tolist()]
    assert_uniform(drawn.count(id) for id in known)


def test_a_run_repeats_itself() -> None:
    runs = []
    for _ in range(2):
        ring = Ring(7, True, num_workers=3, num_shards=2)
        batches = []
        for epoch in range(2):
            ring.collect(20)
            batches += ring.batches(4, first=4 * epoch)
        runs.append(batches)
    for (_, a), (_, b) in zip(*runs, strict=True):
        for name in ("rl2", "time_idx", "actions", "rewards", "terminated", "mask"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert all(torch.equal(a.obs[key], b.obs[key]) for key in a.obs)
