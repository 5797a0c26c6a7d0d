"""Which rollouts an evaluation counts: averages are exact whatever the lengths of rollouts have to do with returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from amago_ray.messages import EpisodeResult
from amago_ray.rollout.assignment import UNLIMITED, Assignment, Tally, assign, in_order, rollouts_of_a_round


def play(
    assignment: Assignment, rollout_of: Callable[[int, int], tuple[int, float]], patience: int = 10**5
) -> tuple[dict[tuple[int, int], EpisodeResult], int]:
    """Play rollouts of (length, return) by (environment, number) until all is done: what counts, and what is left out.

    An environment goes on with its next rollout as long as others are not done, as in a worker.
    """
    num = len(assignment.rollouts)
    tally, found = Tally(assignment), {}
    number, step = np.zeros((2, num), np.int64)
    tally.begin(np.ones(num, bool))
    for _ in range(patience):
        if tally.done:
            return found, tally.unfinished
        step += 1
        finished, fresh = {}, np.zeros(num, bool)
        for row in range(num):
            length, total = rollout_of(assignment.first_env + row, int(number[row]))
            if step[row] == length:
                finished[row] = EpisodeResult(f"env{row}", total, length)
                fresh[row] = True
        tally.add(finished, np.ones(num, bool), [f"env{row}" for row in range(num)])
        tally.begin(fresh)
        number[fresh] += 1
        step[fresh] = 0
        found |= tally.take()
    raise AssertionError("it does not end")


def half_long(seed: int) -> Callable[[int, int], tuple[int, float]]:
    """Half of the rollouts last one step and return 0, half of them 40 and return 1: the mean return is 1/2."""

    def rollout(env: int, number: int) -> tuple[int, float]:
        long = bool(np.random.default_rng((seed, env, number)).integers(2))
        return (40, 1.0) if long else (1, 0.0)

    return rollout


@pytest.mark.parametrize("num_envs", [[5], [2, 2, 1], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("episodes", [1, 3, 5, 13])
def test_every_rollout_of_the_list_is_played_once_by_whoever_it_falls_to(num_envs: list[int], episodes: int) -> None:
    shares = assign(num_envs, episodes, None)
    assert [share.first_env for share in shares] == [sum(num_envs[:i]) for i in range(len(num_envs))]
    counted: dict[tuple[int, int], EpisodeResult] = {}
    for share in shares:
        found, unfinished = play(share, half_long(0))
        assert not unfinished and not set(counted) & set(found)
        counted |= found
    assert sorted(counted) == sorted((k % 5, k // 5) for k in range(episodes))
    assert [r.total_reward for r in in_order(counted)] == [half_long(0)(*key)[1] for key in sorted(counted)]


def test_the_average_is_exact_where_long_rollouts_are_the_good_ones() -> None:
    """The exact mean over the fixed list, and so 1/2 but for the draws of the 800 rollouts themselves."""
    returns = []
    for seed in range(50):
        found, _ = play(assign([16], 16, None)[0], half_long(seed))
        returns += [result.total_reward for result in found.values()]
    drawn = [half_long(seed)(env, 0)[1] for seed in range(50) for env in range(16)]
    assert np.mean(returns) == np.mean(drawn)
    assert abs(np.mean(returns) - 0.5) < 4 * 0.5 / np.sqrt(800)


@pytest.mark.parametrize("timesteps", [40, 100])
def test_a_limit_of_timesteps_has_the_same_mean(timesteps: int) -> None:
    """What *finishes* within them has a mean far below 1/2: the share of long rollouts that fit in."""
    returns: list[float] = []
    for seed in range(100):
        found, unfinished = play(assign([16], None, timesteps)[0], half_long(seed))
        assert not unfinished, "what lasts no longer than the limit is never left out"
        returns += [result.total_reward for result in found.values()]
    assert abs(np.mean(returns) - 0.5) < 4 * 0.5 / np.sqrt(1600)


def test_a_limit_counts_what_was_begun_within_it_and_says_what_it_left_out() -> None:
    lengths = (3, 4, 8, 9)

    def fixed(env: int, number: int) -> tuple[int, float]:
        return lengths[env], float(env)

    found, unfinished = play(assign([4], None, 4)[0], fixed)
    # Rollouts of 3: begun at steps 0 and 3. Of 4: at step 4 it is too late. Of 8: to its end. Of 9: not within 8.
    assert sorted(found) == [(0, 0), (0, 1), (1, 0), (2, 0)] and unfinished == 1
    found, unfinished = play(assign([4], 4, 4)[0], fixed)  # whichever comes first
    assert sorted(found) == [(0, 0), (1, 0), (2, 0)] and unfinished == 1


def test_what_was_lost_is_played_again() -> None:
    tally = Tally(Assignment(0, 3, (2,)))
    yes = np.ones(1, bool)
    tally.begin(yes)
    tally.add({}, yes, ["a"])
    tally.begin(yes)  # the environment broke and was rebuilt
    for length in (5, 6):
        tally.add({0: EpisodeResult("a", 1.0, length)}, yes, ["a"])
    assert {key: result.length for key, result in tally.take().items()} == {(3, 0): 5, (3, 1): 6}
    assert tally.done and tally.take() == {}


def test_a_rollout_without_end_is_named_with_the_remedy() -> None:
    now = [100.0]
    both = np.ones(2, bool)
    tally = Tally(Assignment(0, 0, (1, 2), rollout_limit_s=6.0), clock=lambda: now[0])
    with pytest.warns(UserWarning, match=r"environment b: a rollout has gone on .* than 0\.3 s, .*up to 6 s") as told:
        for _ in range(3):
            tally.add({0: EpisodeResult("a", 0.0, 1)}, both, ["a", "b"])
            tally.begin(np.array([True, False]))
            now[0] += 2.0  # environment a has done its share, and however long it goes on does not matter
    assert len(told) == 1
    now[0] += 0.5
    with pytest.raises(ValueError, match=r"environment b: a rollout has not ended after 4 steps and 6 s") as error:
        tally.add({}, both, ["a", "b"])
    assert "val_timesteps_per_epoch" in str(error.value) and "time limit" in str(error.value)
    within = Tally(Assignment(0, 0, (UNLIMITED,), timesteps=3, rollout_limit_s=0.0), clock=lambda: now[0])
    for _ in range(6):
        now[0] += 1.0  # a limit of timesteps takes the time that it takes
        within.add({}, np.ones(1, bool), ["a"])
    assert within.done and within.unfinished == 1


@pytest.mark.parametrize(
    ("episodes", "timesteps", "message"),
    [
        (None, None, r"needs timesteps \(per environment\), episodes \(in all\), or both"),
        (0, None, "episodes=0: it must be 1 or more"),
        (5, -1, "timesteps=-1: it must be 1 or more"),
    ],
)
def test_limits_that_are_none(episodes: int | None, timesteps: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assign([2], episodes, timesteps)


@pytest.mark.parametrize(("make_env", "num_envs", "expected"), [("id", 12, 12), ([1, 2], 12, 12), ([0] * 20, 12, 20)])
def test_a_round_has_every_environment_and_every_task(make_env: str | Sequence, num_envs: int, expected: int) -> None:
    assert rollouts_of_a_round(make_env, num_envs) == expected
