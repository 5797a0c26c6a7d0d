"""Double buffering changes when environments are stepped, and nothing of what is collected."""

from __future__ import annotations

import json
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pytest
from process_envs import Drawing, Stumbling
from ring_cases import assert_same_trajectories, tiny_agent

from amago_ray.agent.flat_weights import flatten_state
from amago_ray.envs.builtin.counting import Counting, misaligned
from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.envs.makers import EnvFailure, EnvProcesses
from amago_ray.messages import Trajectory, Weights
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.rollout.assignment import assign, in_order
from amago_ray.rollout.halves import DoubleBufferedWorker, halved, make_worker
from amago_ray.rollout.worker import RolloutConfig, RolloutWorker

pytestmark = pytest.mark.processes

AGENT = tiny_agent(Drawing, partial(GRUTrajEncoder, d_hidden=8, n_layers=1, d_output=8))
EXPLORE = partial(EpsilonGreedy, steps_anneal=20)


def config(num_envs: int = 3, first_env: int = 4, make_env: Any = Drawing, **settings: Any) -> RolloutConfig:
    return RolloutConfig(
        make_env, num_envs, first_env, 7, **{"traj_save_len": 4, "exploration_type": EXPLORE} | settings
    )


def of(run: RolloutConfig, written: list[Trajectory], **settings: Any) -> RolloutWorker:
    return RolloutWorker(run, AGENT, worker=2, write=written.append, **settings)


def test_halves_collect_what_two_workers_do() -> None:
    together: list[Trajectory] = []
    apart: tuple[list[Trajectory], list[Trajectory]] = [], []
    whole = make_worker(config(env_processes=EnvProcesses()), AGENT, worker=2, write=together.append)
    assert isinstance(whole, DoubleBufferedWorker)
    workers = [of(half, written) for half, written in zip(halved(config()), apart, strict=True)]
    assert [(each.config.first_env, each.config.num_envs) for each in workers] == [(4, 2), (6, 1)]
    with closing(whole):
        for version, (timesteps, resets) in enumerate([(3 * 20, 0), (1, 0), (3 * 20, 1)]):
            weights = Weights(version, flatten_state(AGENT.build().policy))
            weights.buffer.view(np.float32)[:] *= 1.0 + version
            steps = -(-timesteps // 3)
            for each in (whole, *workers):
                each.set_weights(weights)
                each.set_exploration_steps(5)
            report = whole.collect(timesteps, resets)
            first, second = (each.collect(steps * each.config.num_envs, resets) for each in workers)
            assert report.timesteps == first.timesteps + second.timesteps == 3 * steps
            assert report.frames_by_env == {"Drawing": 3 * steps} and report.weight_version == version
            assert sorted(map(repr, report.episodes)) == sorted(map(repr, first.episodes + second.episodes))
            assert report.trajectories == first.trajectories + second.trajectories
            eps = [each.exploration["eps"] for each in (report, first, second)]
            assert eps[0] == pytest.approx((2 * eps[1] + eps[2]) / 3)
    assert [t.id.sequence for t in together] == list(range(len(together)))
    # In which order the halves write depends on nothing either: they take turns.
    left = [list(written) for written in apart]
    for trajectory in together:
        index = next(i for i, written in enumerate(left) if written and same(written[0], trajectory))
        left[index].pop(0)
    assert left == [[], []] and len(together) > 20


def same(a: Trajectory, b: Trajectory) -> bool:
    return a.weight_version == b.weight_version and all(
        column.shape == b.columns[name].shape and (column == b.columns[name]).all()
        for name, column in a.columns.items()
    )


def test_an_evaluation_in_halves_is_that_of_two_workers() -> None:
    run = config(5, 0, exploration_type=None)
    workers = [of(half, []) for half in halved(run)]
    written: list[Trajectory] = []
    whole = make_worker(config(5, 0, exploration_type=None, env_processes=EnvProcesses()), AGENT, write=written.append)
    with closing(whole):
        for number, episodes in enumerate([7, 2, 7]):
            (assignment,) = assign([5], episodes, None, number)
            parts = [whole.evaluate(assignment, 0, 0.0)]
            while not parts[-1].finished:
                parts.append(whole.evaluate(assignment, len(parts), 0.0))
            assert len(parts) > 2 and [each.part for each in parts] == list(range(len(parts)))
            found = {origin: result for each in parts for origin, result in each.episodes.items()}
            shares = assign([3, 2], episodes, None, number)
            reports = [each.evaluate(share) for each, share in zip(workers, shares, strict=True)]
            assert found == {origin: result for each in reports for origin, result in each.episodes.items()}
            assert len(in_order(found)) == episodes
            assert sum(each.timesteps for each in parts) == sum(each.timesteps for each in reports)
            again = whole.evaluate(assignment)  # from the beginning, at once
            assert again.finished and again.part == 0 and again.episodes == found


def test_unfinished_rollouts_of_both_halves_are_counted() -> None:
    (assignment,) = assign([3], None, timesteps=2)
    with closing(make_worker(config(3, 0, env_processes=EnvProcesses()), AGENT)) as whole:
        report = whole.evaluate(assignment)
    workers = [of(half, []) for half in halved(config(3, 0))]
    apart = [each.evaluate(share) for each, share in zip(workers, assign([2, 1], None, 2), strict=True)]
    assert report.unfinished == sum(each.unfinished for each in apart)
    assert report.episodes == apart[0].episodes | apart[1].episodes


def test_halves_go_on_from_their_state() -> None:
    """With one reset of all environments between, as if they had never stopped."""
    written: tuple[list[Trajectory], list[Trajectory]] = [], []
    run = config(3, 0, stagger=2, env_processes=EnvProcesses(max_rollouts=3))
    going_on, resumed = (make_worker(run, AGENT, write=each.append) for each in written)
    with closing(going_on), closing(resumed):
        going_on.collect(60)
        state = json.loads(json.dumps(going_on.pause(resets=1)))
        stored = len(written[0])
        resumed.load_state_dict(state, epoch=0)
        for resets in (1, 2):
            reports = [each.collect(60, resets) for each in (going_on, resumed)]
            assert reports[0].episodes == reports[1].episodes
            assert reports[0].trajectories == reports[1].trajectories
        assert_same_trajectories(written[0][stored:], written[1])


@pytest.mark.parametrize("num_before", [1, 3])
def test_a_state_that_does_not_fit_one_half_changes_neither(num_before: int) -> None:
    """Of four environments and three the second halves are alike; a single one has no halves."""
    before = make_worker(config(num_before, 0, env_processes=EnvProcesses()), AGENT, write=[].append)
    now = make_worker(config(4, 0, env_processes=EnvProcesses()), AGENT, incarnation=7, write=[].append)
    with closing(before), closing(now):
        before.collect(60)
        state = json.loads(json.dumps(before.pause(resets=1)))
        if num_before == 3:
            state["halves"].reverse()  # the second fits, the first does not
        untouched = json.dumps(now.pause(resets=0))
        with pytest.raises(ValueError, match="parallel_actors"):
            now.load_state_dict(state, epoch=0)
        assert json.dumps(now.pause(resets=0)) == untouched


def test_after_a_failure_of_one_half_no_step_of_the_other_is_lost_within_a_trajectory() -> None:
    """What the other half was sent is not recorded, so that its rollouts begin anew."""
    written: list[Trajectory] = []
    make_env = [partial(Stumbling, 6), partial(Counting, 6)]
    run = config(2, 0, make_env, exploration_type=None, env_processes=EnvProcesses())
    whole = make_worker(run, tiny_agent(make_env[1]), write=written.append)
    with closing(whole):
        for _ in range(3):
            with pytest.raises(EnvFailure, match="the simulator fell over"):
                whole.collect(1000)
            whole._halves[0]._pool._failures_in_a_row[:] = 0
    assert len(written) >= 3
    for t in written:
        assert misaligned(t.columns, t.first_time_idx, 6, True) == []


def test_one_environment_and_one_process_have_no_halves() -> None:
    alone, whole = EnvProcesses(), EnvProcesses(double_buffer=False)
    for run in (config(1, env_processes=alone), config(2, env_processes=whole), config(2)):
        with closing(make_worker(run, AGENT)) as worker:
            assert isinstance(worker, RolloutWorker)
