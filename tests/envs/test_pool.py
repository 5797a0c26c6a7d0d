"""Pools step environments together: same tables from every kind, and broken ones are rebuilt alone."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from amago_ray.envs.amago_env import AMAGOEnv
from amago_ray.envs.makers import EnvFailure, EnvPool, VectorEnvPool, check_env, env_spaces, make_pool
from amago_ray.envs.tasks import tasks_of
from amago_ray.rollout.evaluate import random_policy

ROOT = Path(__file__).parents[2]


class Counting(gym.Env):
    """Observes (index, rollout, step); rollouts of `index + 1`, `index + 2`, ... steps end in both ways in turn.

    `fault(env)` is called in step and may raise, or return something to observe instead.
    """

    def __init__(self, index: int = 0, fault: Callable[[Counting], Any] = lambda env: None) -> None:
        self.observation_space = spaces.Dict(count=spaces.Box(-1, 1e6, (3,), np.float64), odd=spaces.Discrete(2))
        self.action_space = spaces.Discrete(7, start=2)
        self.index, self.rollout, self.fault = index, -1, fault

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.rollout, self.count = self.rollout + 1, 0
        return self.observe(), {"AMAGO_LOG_METRIC Rollout": self.rollout}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.count += 1
        ended, terminates = self.count > self.index + self.rollout, self.rollout % 2 == 0
        info = {"AMAGO_LOG_METRIC Steps Made": self.count, "other": "text"} if ended else {}
        obs = self.fault(self) or self.observe()
        return obs, 10.0 * self.count + float(action), ended and terminates, ended and not terminates, info

    def observe(self) -> dict[str, Any]:
        return {"count": np.array([self.index, self.rollout, self.count], np.float64), "odd": self.count % 2}


def chosen(obs: dict[str, np.ndarray]) -> np.ndarray:
    """Actions that depend on the observation alone."""
    return (obs["count"].sum(axis=1) % 7).astype(np.int64)


def tables(pool: Any, num_steps: int = 60) -> list[list[list[tuple]]]:
    """For each environment the finished rollouts: rows (observation, action, reward, terminated, truncated, info)."""
    obs = pool.reset()
    done: list[list[list[tuple]]] = [[] for _ in range(pool.num_envs)]
    rows: list[list[tuple]] = [[] for _ in range(pool.num_envs)]
    seen = {name: column.copy() for name, column in obs.items()}
    for _ in range(num_steps):
        actions = chosen(obs)
        result = pool.step(actions)
        for i in np.flatnonzero(result.stepped):
            after = {name: column[i].tolist() for name, column in result.obs.items()}
            before = {name: column[i].tolist() for name, column in seen.items()}
            end = (bool(result.terminated[i]), bool(result.truncated[i]))
            info = result.infos.get(int(i))
            rows[i].append((before, int(actions[i]), float(result.rewards[i]), *end, after, info))
            if any(end):
                done[i].append(rows[i])
        resting = ~result.stepped
        assert not result.rewards[resting].any() and not result.terminated[resting].any()
        assert set(result.infos) <= set(np.flatnonzero(result.stepped).tolist())
        obs, fresh = pool.begin(result.terminated | result.truncated)
        for i in np.flatnonzero(fresh):
            rows[i] = []
        seen = {name: column.copy() for name, column in obs.items()}
    pool.close()
    return done


def counting_makers(num: int) -> list[Callable[[], gym.Env]]:
    return [partial(Counting, index) for index in range(num)]


def vector_maker(mode: AutoresetMode, kind: Any = SyncVectorEnv, num: int = 3) -> Callable[[], Any]:
    return lambda: kind(counting_makers(num), autoreset_mode=mode)


@pytest.mark.processes
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_every_autoreset_mode_gives_the_plain_pools_table(mode: AutoresetMode, kind: Any) -> None:
    plain = tables(EnvPool(counting_makers(3), seed=0))
    vector = tables(VectorEnvPool(vector_maker(mode, kind), seed=0))
    for index, (of_plain, of_vector) in enumerate(zip(plain, vector, strict=True)):
        assert len(of_vector) >= 6
        assert of_vector[:6] == of_plain[:6]
        for rollout, rows in enumerate(of_plain):
            assert len(rows) == index + rollout + 1
            assert rows[-1][3:5] == (rollout % 2 == 0, rollout % 2 == 1)
            assert [row[0]["count"] for row in rows] == [[index, rollout, step] for step in range(len(rows))]
            assert [row[5]["count"] for row in rows] == [[index, rollout, step + 1] for step in range(len(rows))]
            assert all(row[2] == 10 * row[5]["count"][2] + row[1] + 2 for row in rows)
            assert [row[6] for row in rows] == [None] * (len(rows) - 1) + [
                {"Rollout": float(rollout), "Steps Made": len(rows)}
            ]


def test_next_step_rests_for_one_step() -> None:
    pool = VectorEnvPool(vector_maker(AutoresetMode.NEXT_STEP, num=2), seed=0)
    pool.reset()
    history = []
    for _ in range(3):
        result = pool.step(np.zeros(2, np.int64))
        stepped = bool(result.stepped[0])
        _, fresh = pool.begin(result.terminated | result.truncated)
        history.append((stepped, bool(fresh[0])))
    assert history == [(True, False), (False, True), (True, False)]


def test_next_step_needs_no_rest_where_all_rows_end_together() -> None:
    pool = VectorEnvPool(vector_maker(AutoresetMode.NEXT_STEP, num=1), seed=0)
    plain = EnvPool(counting_makers(1), seed=0)
    assert tables(pool, 20) == tables(plain, 20)


def raises_at(step: int, rollout: int = 0) -> Callable[[Counting], None]:
    def fault(env: Counting) -> None:
        if (env.rollout, env.count) == (rollout, step):
            raise RuntimeError("the simulator fell over")

    return fault


def not_a_number(env: Counting) -> Any:
    return {"count": np.array([0, 0, np.nan]), "odd": 0} if (env.rollout, env.count) == (1, 2) else None


def out_of_range(env: Counting) -> Any:
    return {**env.observe(), "odd": 2} if (env.rollout, env.count) == (1, 2) else None


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (raises_at(2, rollout=1), "RuntimeError: the simulator fell over"),
        (not_a_number, "'count' is not finite"),
        (out_of_range, "'odd' is outside its space: 2"),
    ],
)
def test_one_failing_environment_leaves_its_siblings_alone(fault: Any, text: str) -> None:
    built = []

    def make() -> gym.Env:
        built.append(Counting(1, fault if not built else lambda env: None))
        return built[-1]

    pool = EnvPool([partial(Counting, 0), make, partial(Counting, 2)], seed=0)
    expected, found = tables(EnvPool(counting_makers(3), seed=0)), tables(pool)
    assert (found[0], found[2]) == (expected[0], expected[2])
    assert found[1][:1] == expected[1][:1]  # the rollout before the failure
    assert found[1][1:] == expected[1][: len(found[1]) - 1]  # then a new environment, from its start
    assert len(built) == 2 and pool.failures == 1 and text in pool.last_failure


def test_a_failed_row_is_marked_and_holds_zeros() -> None:
    pool = EnvPool([partial(Counting, 5), partial(Counting, 5, raises_at(2))], seed=0)
    pool.reset()
    ends = np.zeros(2, bool)
    for failed in (False, True):
        pool.begin(ends)
        result = pool.step(np.ones(2, np.int64))
        assert result.failed.tolist() == [False, failed] and result.stepped.tolist() == [True, not failed]
    assert result.rewards.tolist() == [23.0, 0.0] and result.obs["count"][1].tolist() == [0, 0, 0]
    obs, fresh = pool.begin(result.terminated | result.truncated)
    assert fresh.tolist() == [False, True] and obs["count"].tolist() == [[5, 0, 2], [5, 0, 0]]


class Rewarding(Counting):
    reward: Any = 0.0

    def step(self, action: int) -> Any:
        obs, _, terminated, truncated, info = super().step(action)
        return obs, self.reward, terminated, truncated, info


@pytest.mark.parametrize("reward", [np.nan, np.inf, 1e39, np.zeros(2), None, "3", [0.5, 0.5], 1j])
def test_bad_rewards_fail(reward: Any) -> None:
    pool = EnvPool([Rewarding], seed=0)
    pool.reset()
    Rewarding.reward = reward
    with np.errstate(all="ignore"):
        assert pool.step(np.zeros(1, np.int64)).failed.all()
    assert "reward" in pool.last_failure


@pytest.mark.parametrize("reward", [1, True, np.float32(1), np.int64(1), np.array(1.0), np.array([1.0]), torch.ones(1)])
def test_any_scalar_is_a_reward(reward: Any) -> None:
    pool = EnvPool([Rewarding], seed=0)
    pool.reset()
    Rewarding.reward = reward
    assert pool.step(np.zeros(1, np.int64)).rewards.tolist() == [1.0]


@pytest.mark.parametrize("reward", [16_777_217, 100_000.1, np.float64(0.1), np.array([16_777_217])])
def test_rewards_are_as_exact_as_the_environment_gave_them(reward: Any) -> None:
    pool = EnvPool([Rewarding], seed=0)
    pool.reset()
    Rewarding.reward = reward
    assert pool.step(np.zeros(1, np.int64)).rewards.tolist() == [float(np.asarray(reward).item())]


def test_failures_in_constructor_and_reset_are_retried_at_once() -> None:
    log: list[str] = []

    class Fragile(Counting):
        def __init__(self) -> None:
            super().__init__(0)
            log.append("build")
            if len(log) == 4:
                raise OSError("no display")

        def reset(self, **kwargs: Any) -> Any:
            log.append("reset")
            if len(log) in (3, 6):
                raise OSError("no level")
            return super().reset(**kwargs)

    pool = EnvPool([Fragile, partial(Counting, 1)], seed=0)
    pool.reset()
    pool.step(np.zeros(2, np.int64))
    _, fresh = pool.begin(np.array([True, False]))
    assert log == ["build", "reset", "reset", "build", "build", "reset", "build", "reset"]
    assert pool.failures == 3 and fresh.tolist() == [True, False]


def test_too_many_failures_in_a_row_stop_with_the_last_traceback() -> None:
    pool = EnvPool([partial(Counting, 1), partial(Counting, 3, raises_at(2))], seed=0, max_failures_in_a_row=3)
    with pytest.raises(EnvFailure, match="environment Counting failed 3 times in a row.*\n(.*\n)*.*fell over"):
        tables(pool)
    assert pool.failures == 3


def test_finished_rollouts_clear_the_count() -> None:
    # every environment that is built finishes one rollout and fails in the second
    pool = EnvPool([partial(Counting, 1, raises_at(1, rollout=1))], seed=0, max_failures_in_a_row=2)
    tables(pool)
    assert pool.failures > 5


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_failing_vector_env_is_rebuilt_whole(mode: AutoresetMode) -> None:
    built = []

    def make() -> SyncVectorEnv:
        faults = [raises_at(2, rollout=1), lambda env: None][len(built) > 0]
        built.append(mode)
        return SyncVectorEnv([partial(Counting, 0), partial(Counting, 1, faults)], autoreset_mode=mode)

    pool = VectorEnvPool(make, seed=0)
    found, expected = tables(pool), tables(EnvPool(counting_makers(2), seed=0))
    assert len(built) == 2 and pool.failures == 1 and "fell over" in pool.last_failure
    assert found[1][:1] == expected[1][:1] and found[1][1:3] == expected[1][:2]


class Seeded(Counting):
    """Observes random numbers, and logs the seeds that it is given."""

    log: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        Seeded.log.append(seed)
        return super().reset(seed=seed)

    def observe(self) -> dict[str, Any]:
        return {"count": np.floor(1000 * self.np_random.random(3)), "odd": 0}


def test_seeds_depend_on_the_run_seed_and_the_global_index() -> None:
    def first_seeds(seed: int, first_env: int, num: int) -> list[int | None]:
        Seeded.log = []
        make_pool(Seeded, num, first_env, seed).reset()
        return Seeded.log

    together = first_seeds(3, 0, 4)
    assert together == first_seeds(3, 0, 2) + first_seeds(3, 2, 2)
    assert len(set(together + first_seeds(4, 0, 4))) == 8


def test_seeds_are_given_once_and_a_rebuilt_environment_gets_another() -> None:
    Seeded.log = []
    pool = EnvPool([partial(Seeded, 0, raises_at(1, rollout=2))], seed=0)
    first = [[row[0]["count"] for row in rollout] for rollout in tables(pool, 10)[0]]
    log = Seeded.log
    assert [seed is None for seed in log[:6]] == [False, True, True, False, True, True]
    assert log[0] != log[3]
    again = tables(EnvPool([partial(Seeded, 0, raises_at(1, rollout=2))], seed=0), 10)[0]
    assert first == [[row[0]["count"] for row in rollout] for rollout in again]


def named(name: str) -> Callable[[], gym.Env]:
    return lambda: AMAGOEnv(Counting(0), name)


def test_a_list_is_assigned_by_global_index() -> None:
    makers = [named("a"), named("b"), named("c")]
    assert make_pool(makers, 4, first_env=0, seed=0).env_names == ["a", "b", "c", "a"]
    assert make_pool(makers, 3, first_env=4, seed=0).env_names == ["b", "c", "a"]
    assert make_pool("CartPole-v1", 2, first_env=1, seed=0).env_names == ["CartPole-v1"] * 2


def test_names_may_change_at_reset() -> None:
    pool = EnvPool([lambda: (env := AMAGOEnv(Counting(0), lambda: f"task {env.unwrapped.rollout}"))], seed=0)
    pool.reset()
    assert pool.env_names == ["task 0"]
    ended = pool.step(np.zeros(1, np.int64)).terminated
    assert pool.env_names == ["task 0"]
    pool.begin(ended)
    assert pool.env_names == ["task 1"]


def test_a_vector_env_is_given_the_number_asked_for() -> None:
    def make(num_envs: int = 7) -> SyncVectorEnv:
        return SyncVectorEnv(counting_makers(num_envs))

    assert make_pool(make, 3, 0, seed=0).num_envs == 3
    cartpoles = make_pool(partial(gym.make_vec, "CartPole-v1", vectorization_mode="sync"), 2, 0, seed=0)
    assert isinstance(cartpoles, VectorEnvPool) and cartpoles.env_names == ["CartPole-v1"] * 2
    with pytest.raises(ValueError, match="VectorEnv of 2 environments where 3 are needed.*num_envs"):
        make_pool(lambda: make(2), 3, 0, seed=0)
    with pytest.raises(TypeError, match="not one of a list"):
        make_pool([make, Counting], 3, 0, seed=0)
    with pytest.raises(TypeError, match="not one of a list"):
        make_pool([Counting, make], 3, 0, seed=0)


def test_a_vector_env_must_state_its_mode() -> None:
    env = SyncVectorEnv(counting_makers(2))
    env.metadata = {}
    with pytest.raises(ValueError, match="autoreset_mode"):
        make_pool(lambda: env, 2, 0, seed=0)


def test_make_pool_builds_no_environment_twice() -> None:
    built = []
    make_pool(lambda: built.append(0) or Counting(0), 3, 0, seed=0)
    assert len(built) == 3


def test_spaces_must_agree() -> None:
    with pytest.raises(ValueError, match="same observation space: Counting has Dict.*CartPole-v1 has Box"):
        make_pool([Counting, "CartPole-v1"], 2, 0, seed=0)
    with pytest.raises(ValueError, match="same observation space: Counting has.*CartPole-v1 has"):
        check_env([Counting, "CartPole-v1"])


class Pictures(gym.Env[np.ndarray, int]):
    """A black one first, then white ones of `white`."""

    action_space = spaces.Discrete(2)

    def __init__(self, white: float, space: spaces.Box):
        self.white, self.observation_space = white, space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros_like(self.observation_space.low), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.full_like(self.observation_space.low, self.white), 0.0, False, False, {}


def warnings_of_images(white: float, space: spaces.Box) -> list[str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_env(partial(Pictures, white, space))
    return [str(each.message) for each in told if "its image" in str(each.message)]


def test_images_beyond_what_their_space_declares_are_warned_of_once() -> None:
    (text,) = warnings_of_images(255.0, spaces.Box(0.0, 1.0, (4, 5, 3), np.float32))
    assert "its image 'observation' has values of 255 to 255, and its space declares 0 to 1, by which images" in text


@pytest.mark.parametrize(
    ("white", "space"),
    [
        (1.0, spaces.Box(0.0, 1.0, (4, 5, 3), np.float32)),
        (0.1, spaces.Box(-0.42, 0.1, (16, 16, 3), np.float64)),  # stored as float32, which is larger
        (2.0, spaces.Box(-1e300, 1e300, (4, 5, 3), np.float64)),
        (2**62, spaces.Box(-(2**63), 2**63 - 1, (4, 5, 3), np.int64)),
        (5.0, spaces.Box(-1.0, 1.0, (3, 2, 2), np.float32)),  # too small for any encoder of images
    ],
)
def test_what_lies_within_and_what_is_no_image_is_not_warned_of(white: float, space: spaces.Box) -> None:
    assert warnings_of_images(white, space) == []


def test_check_env_returns_what_the_run_needs() -> None:
    obs, action, name = check_env(Counting)
    assert list(obs) == ["count", "odd"] and action.vector_size == 7 and name == "Counting"
    assert check_env(["CartPole-v1", "CartPole-v1"])[2] == "CartPole-v1"
    assert check_env(vector_maker(AutoresetMode.SAME_STEP))[:2] == (obs, action)


class OldApi(Counting):
    def step(self, action: int) -> Any:
        return super().step(action)[:4]


class FailsToClose(Counting):
    closed = 0

    def close(self) -> None:
        FailsToClose.closed += 1
        raise RuntimeError("the simulator is gone already")


class HasNoClose:  # the rest of the interface, and no gymnasium.Env
    def __init__(self) -> None:
        self.env_of = Counting(0)
        self.observation_space, self.action_space = self.env_of.observation_space, self.env_of.action_space
        self.reset, self.step = self.env_of.reset, self.env_of.step


@pytest.mark.parametrize("make", [FailsToClose, HasNoClose])
def test_closing_ends_nothing(make: Any) -> None:
    check_env(make)
    assert env_spaces(make) == (make().observation_space, make().action_space)
    tasks_of([partial(make), Counting])
    assert random_policy(make, episodes=2)
    before = FailsToClose.closed
    make_pool(make, 3, 0, seed=0).close()
    assert make is HasNoClose or FailsToClose.closed == before + 3  # one after the other, whatever they raise


class ReturnsNothing(Counting):
    def step(self, action: int) -> Any:
        super().step(action)


class OldReset(Counting):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]


class Unbounded(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-np.inf, np.inf, (1,))


@pytest.mark.parametrize(
    ("make_env", "message"),
    [
        (object, "object has no reset, step, observation_space, action_space: .*gymnasium"),
        (OldApi, "OldApi failed with TypeError: step must return"),
        (ReturnsNothing, "ReturnsNothing failed with TypeError: step must return"),
        (OldReset, "OldReset failed with TypeError: reset must return"),
        (Unbounded, "environment Unbounded: the action space.*no finite bounds"),
        (partial(Counting, 3, lambda env: {"count": np.full(3, np.nan), "odd": 0}), "Counting failed.*not finite"),
        (lambda: Rewarding(3), "Rewarding failed with ValueError: the reward must be one number"),
        ("NoSuchEnv-v0", "building the environment NoSuchEnv-v0 failed"),
        (3, "make_env is 3"),
        ([], "empty list"),
    ],
)
def test_check_env_says_what_is_wrong_in_one_line(make_env: Any, message: str) -> None:
    Rewarding.reward = np.zeros(2)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        check_env(make_env)
    assert "\n" not in str(caught.value)


@pytest.mark.processes
def test_the_environments_that_ship_with_the_package_need_no_import() -> None:
    # Elsewhere in this process they may have been imported already.
    code = "from amago_ray.envs.makers import make_pool; print(make_pool('amago_ray/TMaze-v0', 1, 0, 0).num_envs)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "1", result.stderr


class Shows(gym.Env):
    """Observes a number of which one entry is `shown`, and gives it as reward."""

    observation_space = spaces.Dict(few=spaces.Box(-np.inf, np.inf, (3,)), many=spaces.Box(-np.inf, np.inf, (5000,)))
    action_space = spaces.Discrete(2)
    shown = 0.0

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        return {"few": np.zeros(3, np.float32), "many": np.zeros(5000, np.float32)}, {}

    def step(self, action: int) -> Any:
        obs, _ = self.reset()
        obs["few"][1] = obs["many"][-1] = self.shown
        return obs, self.shown, False, False, {}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("shown", "fault"),
    [(3e38, ""), (-1e30, ""), (np.inf, "not finite"), (-np.inf, "not finite"), (np.nan, "not finite")],
)
def test_numbers_may_be_as_large_as_they_can_be_stored(shown: float, fault: str) -> None:
    class Calm(Shows):
        pass

    class Bold(Shows):
        def step(self, action: int) -> Any:
            self.shown = shown
            return super().step(action)

    pool = EnvPool([Calm, Bold, Calm], seed=0)
    pool.reset()
    transition = pool.step(np.zeros(3, np.int64))
    assert transition.failed.tolist() == [False, bool(fault), False] and fault in pool.last_failure
    if not fault:
        assert transition.rewards[1] == shown and transition.obs["few"][1, 1] == np.float32(shown)
