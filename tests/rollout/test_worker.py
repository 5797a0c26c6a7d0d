"""A worker on Counting environments: no step is lost, repeated or credited to another, whatever the environments do."""

from __future__ import annotations

import copy
import json
import math
import pickle
import random
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ring_cases import (
    Recorded,
    as_batch,
    assert_rollouts_whole,
    assert_same_trajectories,
    counting,
    rollouts_of,
    sample,
    tiny_agent,
)

from amago_ray.agent.flat_weights import flatten_state
from amago_ray.envs.amago_env import AMAGOEnv
from amago_ray.envs.builtin.action_spaces import make_action_space
from amago_ray.envs.builtin.counting import Counting, misaligned
from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.envs.makers import EnvFailure
from amago_ray.envs.spaces import action_spec, sample_actions
from amago_ray.learner.batches import training_batch
from amago_ray.messages import EpisodeResult, Weights
from amago_ray.nets.actions import action_vector
from amago_ray.nets.traj_encoders import GRUTrajEncoder, TformerTrajEncoder
from amago_ray.pending import ShardAway
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.replay.storage.trajectory_pack import pack
from amago_ray.rollout.assignment import Assignment, assign, in_order
from amago_ray.rollout.random_stream import RandomStream, TorchRandomStream
from amago_ray.rollout.worker import EVALUATED, RESET, RESUMED, PreviousStep, env_seed
from amago_ray.specs import ActionKind

KINDS = get_args(ActionKind)


def stored_transitions(steps: int, episode_length: int, traj_save_len: int) -> int:
    """Of `steps` steps of one environment, those in finished trajectories."""
    whole, rest = divmod(steps, episode_length)
    return whole * episode_length + rest // traj_save_len * traj_save_len


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("terminate", [True, False], ids=["terminated", "truncated"])
@pytest.mark.parametrize(("episode_length", "traj_save_len"), [(3, 5), (5, 5), (12, 5), (10, 5), (1, 1)])
def test_nothing_is_lost_repeated_or_misaligned(
    episode_length: int, traj_save_len: int, terminate: bool, num_envs: int
) -> None:
    run = Recorded(counting(episode_length, terminate), num_envs=num_envs, traj_save_len=traj_save_len, worker=4)
    reports = [run.worker.collect(timesteps) for timesteps in (1, 7 * num_envs, 29 * num_envs + 1)]
    steps_per_env = 1 + 7 + 30
    assert [report.timesteps for report in reports] == [num_envs, 7 * num_envs, 30 * num_envs]
    assert all(report.frames_by_env == {"Counting": report.timesteps} for report in reports)
    assert_rollouts_whole(run.written, episode_length, traj_save_len, terminate, unfinished=num_envs)
    stored = sum(t.num_transitions for t in run.written)
    assert stored == num_envs * stored_transitions(steps_per_env, episode_length, traj_save_len)
    assert len({env for env, _ in rollouts_of(run.written)}) == num_envs
    assert [(t.id.worker, t.id.incarnation, t.id.sequence) for t in run.written] == [
        (4, 0, i) for i in range(len(run.written))
    ]
    assert sum(report.trajectories for report in reports) == len(run.written)
    episodes = [episode for report in reports for episode in report.episodes]
    assert len(episodes) == num_envs * (steps_per_env // episode_length)
    assert {episode.length for episode in episodes} <= {episode_length}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_action_comes_back_as_it_was_stored(kind: ActionKind) -> None:
    run = Recorded(counting(9, action=kind, random_lengths=True), exploration_type=EpsilonGreedy)
    run.worker.collect(200)
    assert_rollouts_whole(run.written, 9, 5, True, unfinished=2)
    actions = np.concatenate([t.columns["action"][1:] for t in run.written])
    assert len(np.unique(actions, axis=0)) > 1


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("terminate", [True, False])
def test_vector_envs_give_the_same_tables(mode: AutoresetMode, terminate: bool) -> None:
    def make(num_envs: int) -> SyncVectorEnv:
        return SyncVectorEnv([counting(7, terminate)] * num_envs, autoreset_mode=mode)

    vector = Recorded(make, num_envs=3, agent=tiny_agent(counting(7)))
    report = vector.worker.collect(3 * 40)
    assert_rollouts_whole(vector.written, 7, 5, terminate, unfinished=3)
    assert report.timesteps == report.frames_by_env["Counting"] == 3 * 40
    assert sum(t.num_transitions for t in vector.written) == 3 * stored_transitions(40, 7, 5)


def test_rows_that_only_reset_are_not_counted_in_the_quota() -> None:
    def make(num_envs: int) -> SyncVectorEnv:
        return SyncVectorEnv([counting(2), counting(3)][:num_envs], autoreset_mode=AutoresetMode.NEXT_STEP)

    vector = Recorded(make, num_envs=2, agent=tiny_agent(counting(2)))
    report = vector.worker.collect(100)
    assert report.timesteps in (100, 101)  # of two rows that rest at every third and every fourth step
    assert report.timesteps == sum(report.frames_by_env.values())


@pytest.mark.parametrize(
    "encoder",
    [
        partial(GRUTrajEncoder, d_hidden=8, n_layers=1, d_output=8),
        partial(TformerTrajEncoder, d_model=8, n_heads=2, d_ff=8, n_layers=1),
    ],
    ids=["GRU", "Transformer"],
)
def test_acting_sees_what_training_will_see(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two environments whose rollouts end at different times, so that one's memory is cleared while the other's is not.
    lengths = (5, 7)
    make_env = [counting(length, env_id=i) for i, length in enumerate(lengths)]
    agent = tiny_agent(make_env, encoder)
    run = Recorded(make_env, agent=agent, traj_save_len=7)
    policy, states = run.worker._policy, []
    act = policy.actor.main_gamma
    monkeypatch.setattr(
        policy.actor, "main_gamma", lambda state, *rest: (states.append(state.clone()), act(state, *rest))[1]
    )
    run.worker.collect(2 * 35)
    assert len(run.written) == 7 + 5
    for t in run.written:
        env, rollout = (int(t.columns[f"obs.{key}"][0, 0]) for key in ("env_id", "rollout"))
        shard = ReplayShard(ReplayConfig(max_seq_len=7), 0)
        shard.push(pack([t]))
        shard.commit()
        batch = training_batch(as_batch(sample(shard, 1)), agent.action_spec, torch.device("cpu"))
        with torch.no_grad():
            in_training = policy.encode(batch.obs, batch.rl2, batch.time_idx, batch.timestep_mask)[0]
        acted = torch.stack([states[rollout * lengths[env] + i][env] for i in range(lengths[env])])
        torch.testing.assert_close(in_training[:-1], acted, atol=1e-4, rtol=1e-4)
    assert torch.stack(states).flatten(0, 1).std(dim=0).max() > 1e-2  # states differ at all


# Weights


def test_weight_versions_are_those_of_the_first_action() -> None:
    episode_length, steps_per_chunk = 7, 4
    run = Recorded(counting(episode_length), num_envs=1)
    buffer = flatten_state(run.agent.build().policy)
    for version in range(10):
        run.worker.set_weights(Weights(version, buffer))
        report = run.worker.collect(steps_per_chunk)
        assert report.weight_version == version
    for t in run.written:
        first_step = int(t.columns["obs.rollout"][0, 0]) * episode_length + t.first_time_idx
        assert t.weight_version == first_step // steps_per_chunk
    assert len({t.weight_version for t in run.written}) > 5


def test_weights_are_taken_once_per_version_and_decide_the_actions() -> None:
    run = Recorded(counting(5), sample_actions=False)
    other = run.agent.build().policy
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        other.actor.base.out_layer.bias[-3:] = torch.tensor([0.0, 0.0, 9.0])  # always action 2
    run.worker.set_weights(Weights(5, flatten_state(other)))
    run.worker.set_weights(Weights(5, np.zeros(3, np.float32)))  # the version in use: not even looked at
    run.worker.collect(20)
    assert all((t.columns["action"][1:] == 2).all() for t in run.written)
    with pytest.raises(ValueError, match="configurations differ"):
        run.worker.set_weights(Weights(6, np.zeros(3, np.float32)))


# Failures


class Breaking(Counting):
    """Fails in step 4 of its second rollout, unless it was built to replace one that did."""

    built = 0

    def __init__(self, episode_length: int):
        super().__init__(episode_length)
        self._breaks = Breaking.built == 1  # the second of a worker's environments
        Breaking.built += 1

    def step(self, action: Any) -> Any:
        if self._breaks and (self._rollout, self._step) == (1, 3):
            raise RuntimeError("the simulator fell over")
        return super().step(action)


@pytest.mark.parametrize("traj_save_len", [2, 10])
def test_a_failure_costs_only_the_unfinished_trajectory_of_its_environment(traj_save_len: int) -> None:
    settings = {"num_envs": 3, "traj_save_len": traj_save_len, "agent": tiny_agent(counting(6))}
    whole = Recorded(counting(6), **settings)
    whole.worker.collect(3 * 30)
    Breaking.built = 0
    broken = Recorded(partial(Breaking, 6), **settings)
    report = broken.worker.collect(3 * 30)
    assert report.env_failures == 1 and Breaking.built == 4
    assert report.env_failed == "environment Counting failed with RuntimeError: the simulator fell over"
    assert report.timesteps == report.frames_by_env["Counting"] == 3 * 30 - 1
    expected, found = rollouts_of(whole.written), rollouts_of(broken.written)
    first, second, third = sorted({env for env, _ in expected}, key=lambda env: min_sequence(whole, env))
    (rebuilt,) = {env for env, _ in found} - {first, second, third}
    for env in (first, third):  # the siblings' rollouts are all there
        assert [key for key in found if key[0] == env] == [key for key in expected if key[0] == env]
    assert [rollout for env, rollout in found if env == second] == ([0, 1] if traj_save_len == 2 else [0])
    assert sum(t.num_transitions for t in found[second, 0]) == 6
    if traj_save_len == 2:
        assert [t.first_time_idx for t in found[second, 1]] == [0]  # the piece that had been finished
    # 6 + 3 steps and the failed one went before: 20 are left for the new environment.
    assert sum(t.num_transitions for t in broken.written if t.columns["obs.env_id"][0, 0] == rebuilt) == (
        stored_transitions(20, 6, traj_save_len)
    )
    assert_rollouts_whole(broken.written, 6, traj_save_len, True, unfinished=4)
    assert len(report.episodes) == 5 + 5 + 1 + 3 and {episode.length for episode in report.episodes} == {6}
    assert broken.worker.collect(3).env_failed == "", "it was told"


def min_sequence(run: Recorded, env_id: int) -> int:
    return min(t.id.sequence for t in run.written if t.columns["obs.env_id"][0, 0] == env_id)


class Hopeless(Counting):
    def step(self, action: Any) -> Any:
        raise RuntimeError("never works")


def test_too_many_failures_stop_the_worker() -> None:
    run = Recorded(partial(Hopeless, 6), agent=tiny_agent(counting(6)))
    with pytest.raises(EnvFailure, match="never works"):
        run.worker.collect(100)


# Seeds


def collected(make_env: Callable[[], Counting], timesteps: int = 120, **settings: Any) -> Recorded:
    run = Recorded(make_env, **settings)
    run.worker.collect(timesteps)
    return run


def test_equal_configurations_make_equal_trajectories() -> None:
    make = counting(9, random_lengths=True)
    settings = {"num_envs": 3, "exploration_type": partial(EpsilonGreedy, eps_start=0.5)}
    first = collected(make, **settings)
    torch.manual_seed(5)  # whatever else the process draws
    np.random.seed(5)
    second = collected(make, **settings)
    assert_same_trajectories(first.written, second.written)
    for other in ({"seed": 1}, {"first_env": 3}, {"incarnation": 1}):
        run = collected(make, **settings | other)
        actions = [np.concatenate([t.columns["action"] for t in r.written])[:80].tolist() for r in (first, run)]
        assert actions[0] != actions[1], other
        assert not {env for env, _ in rollouts_of(first.written)} & {env for env, _ in rollouts_of(run.written)}, other


def test_chunks_do_not_change_what_is_collected() -> None:
    make = counting(9, random_lengths=True)
    whole = collected(make, 240, exploration_type=EpsilonGreedy)
    chunks = Recorded(make, exploration_type=EpsilonGreedy)
    for timesteps in (2, 38, 100, 100):
        chunks.worker.collect(timesteps)
    assert_same_trajectories(whole.written, chunks.written)


def test_it_does_not_matter_how_workers_share_the_environments() -> None:
    def streams(num_workers: int) -> list[list[int]]:
        """The lengths of the rollouts of each of 6 environments, in the order of environments."""
        found = []
        for worker in range(num_workers):
            num_envs = 6 // num_workers
            run = Recorded(
                counting(9, random_lengths=True),
                worker,
                num_envs=num_envs,
                first_env=worker * num_envs,
                traj_save_len=9,
            )
            run.worker.collect(100 * num_envs)
            lengths: dict[int, list[int]] = {}
            for (env_id, _), pieces in sorted(rollouts_of(run.written).items()):
                lengths.setdefault(env_id, []).append(int(pieces[0].columns["obs.length"][0, 0]))
            found += [(env_id, lengths[env_id][:10]) for env_id in lengths]
        return sorted(found)

    together = streams(1)
    assert len(together) == 6 and together == streams(3) == streams(6)


# What the policy is told of the step before


@pytest.mark.parametrize("kind", KINDS)
def test_previous_step_is_what_training_makes_of_the_stored_action(kind: ActionKind) -> None:
    spec = action_spec(make_action_space(kind, 4))
    rng = np.random.default_rng(0)
    previous = PreviousStep(3, spec)
    assert previous.rl2.shape == (3, 1 + spec.vector_size) and not previous.rl2.any()
    for _ in range(10):
        actions, rewards = sample_actions(spec, 3, rng), rng.standard_normal(3).astype(np.float32)
        previous.set(actions, rewards)
        np.testing.assert_array_equal(previous.rl2[:, 0], rewards)
        np.testing.assert_array_equal(previous.rl2[:, 1:], action_vector(torch.from_numpy(actions), spec).numpy())
        assert previous.rl2.dtype == np.float32
    previous.begin(np.array([True, False, True]))
    assert not previous.rl2[[0, 2]].any() and previous.rl2[1].any()


class Told(Counting):
    """Keeps the actions that it was given, by rollout."""

    taken: list[list[int]] = []

    def reset(self, **kwargs: Any) -> Any:
        Told.taken.append([])
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        Told.taken[-1].append(int(action))
        return super().step(action)


def taken(seed: int, exploration_type: Any, agent: Any) -> list[list[int]]:
    """The actions of one evaluated environment."""
    run = Recorded(
        partial(Told, 8, env_id=0),
        num_envs=1,
        seed=seed,
        agent=agent,
        sample_actions=False,
        exploration_type=exploration_type,
    )
    Told.taken = []
    run.worker.evaluate(limited(1, timesteps=40))
    return Told.taken


def limited(num_envs: int, episodes: int | None = None, timesteps: int | None = None, number: int = 0) -> Assignment:
    """The only share of an evaluation."""
    return assign([num_envs], episodes, timesteps, number)[0]


def test_validation_acts_by_the_policy_alone_and_stores_nothing() -> None:
    agent = tiny_agent(counting(8))
    # Environment and policy are deterministic here: where nothing explores, seeds make no difference.
    assert taken(0, None, agent) == taken(1, None, agent)
    assert taken(0, EpsilonGreedy, agent) != taken(1, EpsilonGreedy, agent)
    run = Recorded(counting(8), agent=agent)
    worker = type(run.worker)(run.worker.config, agent)  # as for validation: without a place to write to
    report = worker.evaluate(limited(2, timesteps=40))
    assert run.written == [] and report.timesteps == 80 and len(report.episodes) == 10


def test_evaluation_starts_anew_and_counts_whole_rollouts_only() -> None:
    run = Recorded(counting(8), num_envs=3)
    first = run.worker.evaluate(limited(3, timesteps=3))
    second = run.worker.evaluate(limited(3, timesteps=4))
    third = run.worker.evaluate(limited(3, timesteps=9))
    assert [report.timesteps for report in (first, second, third)] == [3 * 6, 3 * 8, 3 * 16]
    assert [(len(report.episodes), report.unfinished) for report in (first, second, third)] == [(0, 3), (3, 0), (6, 0)]
    assert {episode.length for report in (second, third) for episode in report.episodes.values()} == {8}
    assert all(misaligned(t.columns, t.first_time_idx, 8) == [] for t in run.written)


def test_an_environment_that_is_early_does_not_count_again() -> None:
    lengths = (2, 9)
    run = Recorded([counting(length, env_id=i) for i, length in enumerate(lengths)], traj_save_len=9)
    report = run.worker.evaluate(limited(2, episodes=4))
    assert {key: result.length for key, result in report.episodes.items()} == {
        (env, number): lengths[env] for env in (0, 1) for number in (0, 1)
    }
    # What is written is what counts, under the numbers of environment, evaluation and rollout.
    written = {(t.id.worker, t.id.incarnation, t.id.sequence): t.num_transitions for t in run.written}
    assert written == {(env, 0, number): lengths[env] for env in (0, 1) for number in (0, 1)}


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_envs_count_the_same_rollouts(mode: AutoresetMode) -> None:
    def make(num_envs: int) -> SyncVectorEnv:
        return SyncVectorEnv([counting(2 + 3 * i) for i in range(num_envs)], autoreset_mode=mode)

    vector = Recorded(make, num_envs=3, agent=tiny_agent(counting(7)))
    found = vector.worker.evaluate(limited(3, episodes=7)).episodes
    assert {key: result.length for key, result in found.items()} == {
        (0, 0): 2, (0, 1): 2, (0, 2): 2, (1, 0): 5, (1, 1): 5, (2, 0): 8, (2, 1): 8,
    }  # fmt: skip
    found = vector.worker.evaluate(limited(3, timesteps=5)).episodes
    assert sorted(found) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]


class Drawn(gym.Env):
    """A rollout's length and return are drawn at its start; actions do nothing."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.length, self.step_number = int(self.np_random.integers(1, 30)), 0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.step_number += 1
        return 1, float(self.np_random.random()), self.step_number == self.length, False, {}


DRAWN = tiny_agent(Drawn)


def evaluated(num_envs: list[int], time_s: float = math.inf, worker: int = 0, **limits: Any) -> list[EpisodeResult]:
    """All rollouts of an evaluation by workers of `num_envs` environments each, in parts of `time_s`."""
    found: dict[tuple[int, int], EpisodeResult] = {}
    for share in assign(num_envs, **{"episodes": None, "timesteps": None} | limits):
        settings = {"num_envs": len(share.rollouts), "first_env": share.first_env, "sample_actions": False}
        played = Recorded(Drawn, worker, agent=DRAWN, **settings).worker
        part, report = 0, None
        while report is None or not report.finished:
            report = played.evaluate(share, part, time_s)
            assert report.part == part
            part, found = part + 1, found | report.episodes
    return in_order(found)


@pytest.mark.parametrize("limits", [{"episodes": 17}, {"timesteps": 40}, {"episodes": 17, "timesteps": 25}])
def test_who_plays_an_evaluation_makes_no_difference(limits: dict[str, int]) -> None:
    alone = evaluated([6], **limits)
    assert len({result.total_reward for result in alone}) == len(alone) > 6
    assert alone == evaluated([2, 2, 2], **limits) == evaluated([4, 1, 1], worker=7, **limits)
    assert alone == evaluated([3, 3], time_s=1e-9, **limits), "in parts of one step each"
    assert not set(map(repr, alone)) & set(map(repr, evaluated([6], number=1, **limits)))


def test_a_worker_that_is_kept_plays_as_one_that_is_new() -> None:
    """Validations go on with fresh rollouts, and one that must be played again is the same again."""
    kept = Recorded(Drawn, agent=DRAWN, num_envs=3)
    found = [in_order(kept.worker.evaluate(limited(3, 6, number=i)).episodes) for i in (0, 1, 2, 1)]
    assert found[1] == found[3] and len({result.total_reward for each in found[:3] for result in each}) == 18
    new = Recorded(Drawn, agent=DRAWN, num_envs=3)
    assert in_order(new.worker.evaluate(limited(3, 6, number=1)).episodes) == found[1]


def test_a_part_that_nobody_has_begun_is_played_from_the_start() -> None:
    whole = in_order(Recorded(Drawn, agent=DRAWN).worker.evaluate(limited(2, 4)).episodes)
    run = Recorded(Drawn, agent=DRAWN)
    report = run.worker.evaluate(limited(2, 4), part=3)  # those before were another worker's, which died
    assert report.part == 0 and in_order(report.episodes) == whole
    run.worker.evaluate(limited(2, 4), 0, time_s=1e-9)
    other = run.worker.evaluate(limited(2, 4, number=1), part=1)  # what is under way is another evaluation
    assert other.part == 0 and other.finished and len(other.episodes) == 4


def test_a_rollout_that_is_lost_to_a_failure_is_played_again() -> None:
    Breaking.built = 0
    run = Recorded(partial(Breaking, 6), num_envs=3, agent=tiny_agent(counting(6)))
    report = run.worker.evaluate(limited(3, episodes=6))
    assert sorted(report.episodes) == [(env, number) for env in range(3) for number in (0, 1)]
    assert {result.length for result in report.episodes.values()} == {6}


def test_a_forced_reset_stores_what_was_unfinished_as_truncated() -> None:
    run = Recorded(counting(8), num_envs=2, traj_save_len=5)
    first = run.worker.collect(2 * 11)  # each: a rollout of 8, in two pieces, and 3 steps of the next
    assert first.trajectories == 4
    second = run.worker.collect(2 * 8, resets=1)
    third = run.worker.collect(2 * 1, resets=1)  # only once
    assert [report.trajectories for report in (second, third)] == [2 + 4, 0]
    cut = run.written[4:6]
    assert [(t.num_transitions, t.truncated, t.first_time_idx) for t in cut] == [(3, True, 0)] * 2
    assert [episode.length for episode in second.episodes] == [8, 8] and not third.episodes
    assert [t.first_time_idx for t in run.written[6:]] == [0, 0, 5, 5]
    new = Recorded(counting(8))
    assert new.worker.collect(2 * 8, resets=4).trajectories == 4, "there is nothing to reset in a worker that is new"


def named(name: str, length: int) -> gym.Env:
    return AMAGOEnv(Counting(length), name)


def test_every_task_has_its_turn_however_few_rollouts_there_are_between_resets() -> None:
    """And after a resume, and in evaluations that a limit of timesteps cuts short."""
    makers = [partial(named, f"task {number}", 8) for number in range(6)]
    run = Recorded(makers, num_envs=2)
    frames: Counter[str] = Counter()
    for resets in range(6):
        frames.update(run.worker.collect(2 * 8, resets).frames_by_env)
    assert frames == {f"task {number}": 2 * 8 for number in range(6)}

    run.worker.load_state_dict(run.worker.pause(resets=5) | {"begun": True}, epoch=3)
    assert set(run.worker.collect(2 * 8, resets=5).frames_by_env) == {"task 2", "task 3"}

    (shares,) = zip(*(assign([2], None, 8, number) for number in range(3)), strict=True)
    played = [run.worker.evaluate(share).episodes.values() for share in shares]
    names = {result.env_name for results in played for result in results}
    assert names == {f"task {number}" for number in range(6)}


def test_pieces_are_staggered_where_that_is_asked_for() -> None:
    run = Recorded(counting(200), traj_save_len=20, stagger=8)
    run.worker.collect(2 * 600)
    pieces = rollouts_of(run.written)
    assert {sum(t.num_transitions for t in found) for found in pieces.values()} == {200}
    assert {t.num_transitions for found in pieces.values() for t in found[:-1]} <= set(range(12, 29))
    assert len({t.first_time_idx for t in run.written}) > 30
    assert all(misaligned(t.columns, t.first_time_idx, 200) == [] for t in run.written)


def test_flush_is_called_at_the_end_of_a_chunk_and_its_waits_are_reported() -> None:
    waited = iter([1.5, 1.5, 4.0])
    run = Recorded(counting(8))
    worker = type(run.worker)(run.worker.config, run.agent, write=run.written.append, flush=lambda: next(waited))
    assert [worker.collect(10).wait_s for _ in range(3)] == [1.5, 0.0, 2.5]


def test_exploration_goes_on_where_it_is_told_to() -> None:
    run = Recorded(counting(8), exploration_type=partial(EpsilonGreedy, steps_anneal=100, randomize_eps=False))
    run.worker.set_exploration_steps(50)
    run.worker.set_exploration_steps(10)  # never back
    report = run.worker.collect(2)
    assert report.exploration["eps"] == pytest.approx(1 - 0.95 * 0.5)


# Random numbers


def test_a_stream_neither_disturbs_nor_is_disturbed() -> None:
    torch.manual_seed(0)
    expected_outer = torch.rand(4).tolist()
    expected_inner = torch.rand(6, generator=torch.Generator().manual_seed(7)).tolist()
    torch.manual_seed(0)
    stream, inner, outer = TorchRandomStream(7), [], []
    for i in range(4):
        with stream:
            inner += torch.rand(3).tolist() if i in (0, 2) else []
        outer.append(float(torch.rand(1)))
    assert outer == expected_outer
    assert inner == expected_inner


def test_a_stream_gives_the_outer_state_back_after_an_error() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with pytest.raises(KeyError), TorchRandomStream(7):
        torch.rand(5)
        raise KeyError
    assert torch.rand(1) == expected


def test_a_copy_of_a_stream_goes_on_by_itself() -> None:
    """Also one that was sent to another process, where nothing else has the generator that it drew from."""
    stream = TorchRandomStream(7)
    with stream:
        torch.rand(3)
    copies = [copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))]
    drawn = []
    for number, each in enumerate((stream, *copies)):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        with each:
            drawn.append(torch.rand(5))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_streams_of_several_threads_do_not_mix() -> None:
    interval = sys.getswitchinterval()

    def draw(seed: int) -> list[float]:
        stream, drawn = TorchRandomStream(seed), []
        for _ in range(200):
            with stream:
                drawn += [torch.rand(()).item(), torch.rand(()).item()]
        return drawn

    alone, before = [draw(seed) for seed in (1, 2)], torch.get_rng_state()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            together = list(threads.map(draw, (1, 2)))
    finally:
        sys.setswitchinterval(interval)
    assert together == alone and torch.equal(torch.get_rng_state(), before)


class Gambling(gym.Env):
    """Draws from what is global: when it is built, in resets and in steps."""

    observation_space, action_space = gym.spaces.Box(-9.0, 9.0, (1,)), gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.bonus = random.random()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.random.normal(size=1).clip(-9, 9).astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs = np.random.normal(size=1).clip(-9, 9).astype(np.float32)
        return obs, self.bonus + random.random(), random.random() < 0.3, False, {}


def gambled(disturbed: int) -> list[Recorded]:
    """A worker that was told to reset, and one that went on from its state."""
    made = []
    for state in (None, {"resets": 2}):
        random.seed(disturbed)
        np.random.seed(disturbed)
        run = Recorded(Gambling, num_envs=3, seed=5)
        for resets in (0, 1, 1):
            run.worker.collect(30, resets)
            random.random(), np.random.random()
        if state is not None:
            paused = run.worker.pause(1)
            run = Recorded(Gambling, num_envs=3, seed=5)
            run.worker.load_state_dict(paused, epoch=4)
            run.worker.collect(60, 2)
        made.append(run)
    return made


def test_environments_that_draw_from_what_is_global_repeat() -> None:
    for first, again in zip(gambled(1), gambled(2), strict=True):
        assert first.written
        assert_same_trajectories(first.written, again.written)


def test_evaluations_of_such_environments_repeat() -> None:
    (assignment,) = assign([3], 9, None, 7)
    run = Recorded(Gambling, num_envs=3, seed=5)
    found = []
    for timesteps in (20, 50):
        run.worker.collect(timesteps)
        np.random.random()
        found.append([result.total_reward for result in in_order(run.worker.evaluate(assignment).episodes)])
    assert found[0] == found[1] and len(set(found[0])) == 9


def test_what_is_global_is_left_as_it_was() -> None:
    agent = tiny_agent(Gambling)
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    Recorded(Gambling, num_envs=3, agent=agent).worker.collect(30)
    stream = RandomStream(4)
    with pytest.raises(KeyError), stream:
        random.random(), np.random.random()
        raise KeyError
    assert (random.random(), np.random.random()) == expected


def test_acting_leaves_the_global_random_state_alone() -> None:
    run = Recorded(counting(8), exploration_type=EpsilonGreedy)
    before = torch.get_rng_state()
    run.worker.collect(20)
    assert torch.equal(before, torch.get_rng_state())


def test_a_shard_that_is_away_costs_no_step_and_no_trajectory() -> None:
    """The chunk is reported as it was made: a worker whose shard is away is none that died."""
    run = Recorded(counting(5), num_envs=2)
    away = iter([ShardAway("replay shard 1 has been away for 120 s"), None, None])

    def flush() -> float:
        if (error := next(away)) is not None:
            raise error
        return 7.0

    worker = type(run.worker)(run.worker.config, run.agent, write=run.written.append, flush=flush)
    reports = [worker.collect(24) for _ in range(2)]
    assert [report.timesteps for report in reports] == [24, 24]
    assert [report.shard_away for report in reports] == ["replay shard 1 has been away for 120 s", ""]
    assert sum(report.trajectories for report in reports) == len(run.written) > 0
    assert [report.wait_s for report in reports] == [0.0, 7.0]


def test_evaluations_are_played_in_other_environments_than_training() -> None:
    """Also where seed and number are both 0."""
    worker = collected(lambda: Counting(6)).worker
    whys = (EVALUATED, RESET, RESUMED)
    moments = [(), *((number, why) for number in range(5) for why in whys)]
    seeds = [env_seed(worker.config, 0, *moment) for moment in moments]
    assert len(set(seeds)) == 16


def test_a_worker_goes_on_from_its_state_as_it_would_have() -> None:
    """Where all environments are reset: the same rollouts, names and pieces, bit for bit."""
    settings: dict[str, Any] = {"num_envs": 3, "traj_save_len": 5, "stagger": 2, "exploration_type": EpsilonGreedy}
    env = counting(9, random_lengths=True)
    going_on, resumed = Recorded(env, **settings), Recorded(env, **settings)
    going_on.worker.collect(60)
    under_way = len(going_on.written)
    state = json.loads(json.dumps(going_on.worker.pause(resets=1)))
    stored = len(going_on.written)
    assert state["cut"] == stored - under_way > 0
    resumed.worker.load_state_dict(state, epoch=0)
    for resets in (1, 1, 2):
        both = [run.worker.collect(60, resets) for run in (going_on, resumed)]
        reports = [replace(report, act_s=0.0, step_s=0.0, idle_s=0.0, total_s=0.0) for report in both]
        assert reports[0] == reports[1] and reports[0].episodes
    assert_same_trajectories(resumed.written, going_on.written[stored:])
    assert len({t.id for t in going_on.written}) == len(going_on.written)


def test_rollouts_under_way_begin_anew_in_streams_of_their_own() -> None:
    """Without a reset: two that go on from one state are alike, and repeat nothing of before."""
    env = counting(40, random_lengths=True)
    runs = [Recorded(env, num_envs=3) for _ in range(3)]
    runs[0].worker.collect(60)
    state = runs[0].worker.pause(resets=0)
    assert state["begun"] and not state["cut"]
    for run in runs[1:]:
        run.worker.load_state_dict(state, epoch=4)
        run.worker.collect(300)
    assert_same_trajectories(runs[1].written, runs[2].written)
    assert runs[1].written[0].id.sequence == len(runs[0].written)
    first = [t.columns["action"] for t in runs[0].written[:3]]
    assert not all(np.array_equal(a, b.columns["action"]) for a, b in zip(first, runs[1].written, strict=False))


class Picky(EpsilonGreedy):
    """Takes no state but one of its own."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.eps_end = state["eps_end"]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"eps_end": self.eps_end}


@pytest.mark.parametrize(
    ("now", "why"),
    [
        ({"num_envs": 4}, "it had 3 environments and has 4 now"),
        ({"exploration_type": Picky}, "the state lacks 'eps_end'"),
        ({"halves": True}, "environments were stepped in halves, or are now"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing_and_names_settings(now: dict[str, Any], why: str) -> None:
    settings: dict[str, Any] = {"num_envs": 3, "exploration_type": EpsilonGreedy}
    before = Recorded(lambda: Counting(6), **settings)
    before.worker.collect(60)
    state = json.loads(json.dumps(before.worker.pause(resets=1)))
    if now.pop("halves", False):
        state = {"halves": [state, state]}
    other = Recorded(lambda: Counting(6), incarnation=7, **settings | now)
    untouched = json.dumps(other.worker.pause(resets=0))
    with pytest.raises(
        ValueError, match=f"^{why}.*: parallel_actors, num_rollout_workers, env_mode or exploration_wra"
    ):
        other.worker.load_state_dict(state, epoch=0)
    assert json.dumps(other.worker.pause(resets=0)) == untouched
    other.worker.collect(60)
    assert {t.id.incarnation for t in other.written} == {7}
