"""Shares of an evaluation on the workers that are there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import pytest
from fake_topology import FakeCall, wait_any

from amago_ray.driver.evaluation import Evaluation, shares_of_a_test
from amago_ray.driver.jobs import run_jobs
from amago_ray.envs.builtin import Bandit, TMaze
from amago_ray.envs.makers import env_spaces
from amago_ray.messages import EpisodeResult, EvaluationReport
from amago_ray.pending import ProcessDied
from amago_ray.replay.datasets.dataset import RowLayout
from amago_ray.settings import ExperimentSettings


class Call:
    def __init__(self) -> None:
        self.report: EvaluationReport | Exception | None = None

    def done(self) -> bool:
        return self.report is not None

    def result(self, timeout_s: float | None = None) -> EvaluationReport:
        assert self.report is not None
        if isinstance(self.report, Exception):
            raise self.report
        return self.report


class Here:
    """A liveness of some workers."""

    def __init__(self, *here: int):
        self.here = list(here)

    def look(self) -> None:
        pass

    def worked(self, worker: int) -> None:
        pass

    def hangs(self, worker: int) -> bool:
        return True

    def lost(self, worker: int, death: ProcessDied) -> bool:
        self.here.remove(worker)
        return True


class Rollouts:
    """A job, and what it has started: (worker, share, part), with their calls."""

    def __init__(self, liveness: Here, num_shares: int, timeout_s: float = 60.0):
        self.started: list[tuple[int, int, int]] = []
        self.calls: dict[tuple[int, int, int], Call] = {}
        self.restarted: list[int] = []
        any_liveness: Any = liveness
        self.job = Evaluation(any_liveness, num_shares, self.start, self.restarted.append, timeout_s)

    def start(self, worker: int, share: int, part: int) -> Any:
        key = (worker, share, part)
        self.started.append(key)
        self.calls[key] = Call()
        return self.calls[key]

    def answer(self, key: tuple[int, int, int], report: EvaluationReport | Exception) -> list[tuple[int, int, int]]:
        """Let a call be answered; returns what is started then."""
        self.calls[key].report = report
        call: Any = self.calls[key]
        self.job.take(call)
        before = len(self.started)
        self.job.calls()
        return self.started[before:]


def report(part: int = 0, finished: bool = True, unfinished: int = 0, **episodes: float) -> EvaluationReport:
    """episodes: returns, such as e1r0=3.0 of environment 1, rollout 0."""
    results = {(int(key[1]), int(key[3])): EpisodeResult("a", total, 1) for key, total in episodes.items()}
    return EvaluationReport(part, results, unfinished, finished, 1)


def returns(job: Evaluation) -> list[float]:
    return [result.total_reward for result in job.episodes]


def test_a_worker_gets_one_share_at_a_time_and_its_own_first() -> None:
    rollouts = Rollouts(Here(1, 3), num_shares=4)
    rollouts.job.calls()
    assert rollouts.started == [(1, 1, 0), (3, 3, 0)], "those of workers 0 and 2 wait until somebody is free"
    assert rollouts.answer((1, 1, 0), report()) == [(1, 0, 0)]


def test_only_who_has_not_answered_is_restarted() -> None:
    rollouts = Rollouts(Here(0, 1), num_shares=2, timeout_s=0.0)
    rollouts.job.calls()
    rollouts.restarted.clear()
    rollouts.calls[0, 0, 0].report = report()  # there, but nobody has looked at it yet
    rollouts.job.calls()
    assert rollouts.restarted == [1]


def test_parts_are_added_up_and_rollouts_are_in_the_order_of_environments() -> None:
    rollouts = Rollouts(Here(0, 1), num_shares=2)
    rollouts.job.calls()
    assert rollouts.answer((1, 1, 0), report(e3r0=30.0, e2r0=20.0, unfinished=2)) == []
    assert rollouts.answer((0, 0, 0), report(finished=False, e1r0=10.0)) == [(0, 0, 1)]
    assert not rollouts.job.finished
    assert rollouts.answer((0, 0, 1), report(part=1, e0r0=0.0, e1r1=11.0, unfinished=1)) == []
    assert rollouts.job.finished and returns(rollouts.job) == [0.0, 10.0, 11.0, 20.0, 30.0]
    assert rollouts.job.unfinished == 3
    summary = rollouts.job.summary()
    assert summary["Total Episodes"] == 5 and summary["Unfinished Rollouts"] == 3


def test_the_first_failure_of_an_environment_is_kept() -> None:
    rollouts = Rollouts(Here(0, 1), num_shares=2)
    rollouts.job.calls()
    for worker, text in ((1, "environment a failed with E: 1"), (0, "environment a failed with E: 0")):
        rollouts.answer((worker, worker, 0), replace(report(), env_failed=text))
    assert rollouts.job.env_failed == (
        "rollout worker 1, evaluating: environment a failed with E: 1; it was built anew"
    )


def test_a_begun_share_stays_with_its_worker() -> None:
    """A worker has environments for one share of others at a time."""
    rollouts = Rollouts(Here(2), num_shares=3)
    rollouts.job.calls()
    assert rollouts.started == [(2, 2, 0)]
    assert rollouts.answer((2, 2, 0), report()) == [(2, 0, 0)]
    assert rollouts.answer((2, 0, 0), report(finished=False)) == [(2, 0, 1)]
    assert rollouts.answer((2, 0, 1), report(part=1)) == [(2, 1, 0)]


def test_what_a_worker_had_played_goes_down_with_it_and_is_played_again() -> None:
    rollouts = Rollouts(Here(0, 1), num_shares=2)
    rollouts.job.calls()
    rollouts.answer((0, 0, 0), report(e0r0=1.0))
    assert rollouts.answer((1, 1, 0), report(finished=False, e1r0=5.0)) == [(1, 1, 1)]
    assert rollouts.answer((1, 1, 1), ProcessDied("worker 1")) == [(0, 1, 0)]
    assert rollouts.answer((0, 1, 0), report(e1r0=5.0, e1r1=6.0)) == []
    assert rollouts.job.finished and returns(rollouts.job) == [1.0, 5.0, 6.0]


def test_a_worker_that_begins_anew_replaces_what_it_had_said() -> None:
    rollouts = Rollouts(Here(0), num_shares=1)
    rollouts.job.calls()
    rollouts.answer((0, 0, 0), report(finished=False, e0r0=1.0))
    rollouts.answer((0, 0, 1), report(part=0, finished=False, e0r0=2.0))  # it was restarted in between
    rollouts.answer((0, 0, 1), report(part=1, e0r1=3.0))
    assert rollouts.job.finished and returns(rollouts.job) == [2.0, 3.0]


def test_a_rollout_without_end_ends_the_evaluation() -> None:
    rollouts = Rollouts(Here(0), num_shares=1)
    rollouts.job.calls()
    with pytest.raises(ValueError, match="has not ended"):
        rollouts.answer((0, 0, 0), ValueError("environment a: a rollout has not ended"))


class Wider(TMaze):
    """With a key that training lacks."""

    def __init__(self) -> None:
        super().__init__(4)
        self.observation_space = gym.spaces.Dict(
            {"observation": self.observation_space, "extra": gym.spaces.Discrete(2)}
        )


class Freer(TMaze):
    """With more actions."""

    def __init__(self) -> None:
        super().__init__(4)
        self.action_space = gym.spaces.Discrete(9)


@pytest.mark.parametrize("make_env", [Wider, Freer, Bandit, [partial(TMaze, 4), Freer]])
def test_an_environment_of_other_spaces_is_refused_before_anything_is_played(make_env: Any) -> None:
    settings, layout = ExperimentSettings("a", TMaze, 4), RowLayout(*env_spaces(TMaze))
    with pytest.raises(ValueError, match=r"^evaluate_test: make_env has other spaces than make_train_env: [^\n]*$"):
        shares_of_a_test(settings, layout, make_env, 2, None, 8, None, True)
    shares = shares_of_a_test(settings, layout, partial(TMaze, 6), 2, None, 8, None, True)
    assert [rollout.num_envs for rollout, _ in shares] == [4, 4]


def test_where_one_share_fails_nobody_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amago_ray.driver.jobs.wait_any", wait_any)
    calls = [FakeCall(ValueError("a rollout has not ended")), FakeCall(ValueError("nor has this one"), delay=9)]
    here: Any = Here(0, 1)

    def start(worker: int, share: int, part: int) -> Any:
        return calls[share]

    with pytest.raises(ValueError, match="^a rollout has not ended$"):
        run_jobs([Evaluation(here, 2, start, pytest.fail, 60.0)], lambda: None)
    assert calls[1].forgotten, "Ray would print its error with a traceback"
