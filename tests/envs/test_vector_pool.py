"""VectorEnvs of other packages: what they leave out, name otherwise or lay out otherwise."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import DictInfoToList

from amago_ray.envs.makers import check_env, make_pool


class Spec:
    """A specification of another package, without gymnasium's id."""

    config = {"num_envs": 2}


class Batched(VectorEnv):
    """Rollouts of `lengths[i]` steps in row i; observes (rollout, step); alike in every way of laying out results.

    final: "dict", "array of dicts", "list" or "none": the form of final_obs. ends: "terminated" or "truncated".
    """

    def __init__(self, num_envs: int = 2, mode: AutoresetMode = AutoresetMode.SAME_STEP, **options: Any) -> None:
        self.num_envs, self.metadata, self.spec = num_envs, {"autoreset_mode": mode}, Spec()  # type: ignore[assignment]
        self.single_observation_space = spaces.Dict(
            at=spaces.Box(0, 255, (2,), np.uint8), pair=spaces.Tuple([spaces.Discrete(99)])
        )
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.final, self.ends = options.get("final", "dict"), options.get("ends", "truncated")
        self.lengths = np.array(options.get("lengths", range(2, 2 + num_envs)))
        self.reward: Callable[[np.ndarray], Any] = options.get("reward", lambda steps: steps)
        self.flags: Callable[[np.ndarray], Any] = options.get("flags", lambda flags: flags)

    def reset(self, *, seed: Any = None, options: dict | None = None) -> Any:
        self.rollout, self.steps = np.zeros((2, self.num_envs), int)
        return self.observe(), {"AMAGO_LOG_METRIC rollout": self.rollout.copy()}

    def observe(self) -> dict[str, Any]:
        return {"at": np.stack([self.rollout % 9, self.steps], axis=1), "pair": (self.steps.copy(),)}

    def step(self, actions: np.ndarray) -> Any:
        self.steps += 1
        ended, rewards = self.steps == self.lengths, self.reward(self.steps.copy())
        info: dict[str, Any] = {"AMAGO_LOG_METRIC steps": self.steps.copy(), "_AMAGO_LOG_METRIC steps": ~ended}
        if ended.any():
            info |= self.finals(self.observe())
            info["final_info"] = {"AMAGO_LOG_METRIC steps": self.steps.copy(), "_AMAGO_LOG_METRIC steps": ended}
            info |= {"AMAGO_LOG_METRIC rollout": self.rollout + 1, "_AMAGO_LOG_METRIC rollout": ended}
        self.rollout[ended] += 1
        self.steps[ended] = 0
        no = np.zeros(self.num_envs, bool)
        terminated, truncated = (ended, no) if self.ends == "terminated" else (no, ended)
        return self.observe(), rewards, self.flags(terminated), self.flags(truncated), info

    def finals(self, obs: dict[str, Any]) -> dict[str, Any]:
        rows = [{"at": at, "pair": (pair,)} for at, pair in zip(obs["at"], obs["pair"][0], strict=True)]
        match self.final:
            case "dict":
                return {"final_obs": obs}
            case "list":
                return {"final_obs": rows}
            case "array of dicts":
                array = np.empty(self.num_envs, object)
                array[:] = rows
                return {"final_obs": array}
        return {}


def history(env: Batched, steps: int = 7) -> list[tuple]:
    pool = make_pool(lambda: env, env.num_envs, 0, seed=0)
    pool.reset()
    found = []
    for _ in range(steps):
        step = pool.step(np.zeros(env.num_envs, np.int64))
        after, rewards = step.obs["at"].tolist(), step.rewards.tolist()
        assert not step.failed.any(), pool.last_failure
        obs, fresh = pool.begin(step.terminated | step.truncated)
        assert obs["at"][:, 1].tolist() == obs["pair/0"].tolist()
        found.append((after, rewards, step.infos, fresh.tolist(), obs["at"].tolist()))
    return found


@pytest.mark.parametrize("final", ["dict", "list", "array of dicts"])
def test_last_observations_are_found_in_every_layout(final: str) -> None:
    first, second, *_ = history(Batched(final=final))
    assert first == ([[0, 1], [0, 1]], [1, 1], {}, [False, False], [[0, 1], [0, 1]])
    ended = {0: {"rollout": 0.0, "steps": 2.0}}
    assert second == ([[0, 2], [0, 2]], [2, 2], ended, [True, False], [[1, 0], [0, 2]])


def test_metrics_of_reset_come_with_the_end_of_the_rollout_that_they_begin() -> None:
    ends = [infos[0] for *_, infos, fresh, _ in history(Batched()) if fresh[0]]
    assert ends == [{"rollout": float(number), "steps": 2.0} for number in range(3)]


def test_a_terminated_rollout_needs_no_last_observation_and_a_truncated_one_does() -> None:
    _, second, *_ = history(Batched(final="none", ends="terminated"))
    assert second[0][0] == [0, 1] and second[4] == [[1, 0], [0, 2]]  # the row keeps what it saw before
    with pytest.raises(ValueError, match="SAME_STEP needs the last observation.*final_obs.*NEXT_STEP"):
        check_env(lambda: Batched(final="none", lengths=(50, 60)))  # later than the steps of an ordinary check
    check_env(lambda: Batched(final="none", ends="terminated"))


def test_a_specification_without_an_id_leaves_the_name_of_the_class() -> None:
    assert make_pool(Batched, 2, 0, seed=0).env_names == ["Batched"] * 2


@pytest.mark.parametrize("reward", [lambda x: x[:, None], lambda x: x.astype(np.float16), lambda x: x.tolist()])
def test_rewards_of_any_number_type_and_of_shape_n_1(reward: Any) -> None:
    assert history(Batched(reward=reward), 1)[0][1] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda x: np.where(x == 1, np.nan, 0), "environment 0 of 2: its reward is not finite"),
        (lambda x: x.astype(str), "must be numbers"),
        (lambda x: x[:1], r"must have shape \(2,\)"),
    ],
)
def test_rewards_that_are_none_fail_all_rows(reward: Any, message: str) -> None:
    pool = make_pool(lambda: Batched(reward=reward), 2, 0, seed=0)
    pool.reset()
    step = pool.step(np.zeros(2, np.int64))
    assert step.failed.all() and not step.stepped.any()
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(pool.last_failure)


@pytest.mark.parametrize(
    "flags", [lambda x: x.astype(np.int8), lambda x: x.astype(float), lambda x: x[:, None].tolist()]
)
def test_flags_may_be_ones_and_zeros(flags: Any) -> None:
    assert history(Batched(flags=flags)) == history(Batched())


@pytest.mark.parametrize("bad", [np.nan, 2, -1, 0.5])
def test_flags_that_are_neither_fail_all_rows(bad: float) -> None:
    pool = make_pool(lambda: Batched(flags=lambda x: np.where([False, True], bad, x.astype(float))), 2, 0, seed=0)
    pool.reset()
    step = pool.step(np.zeros(2, np.int64))
    assert step.failed.all() and not (step.terminated | step.truncated).any()
    assert f"environment 1 of 2: terminated and truncated must be True or False, or 1 or 0, not {float(bad)}" in (
        pool.last_failure
    )


def test_a_step_that_returns_nothing_says_what_it_must_return() -> None:
    class Silent(Batched):
        def step(self, actions: np.ndarray) -> Any:
            super().step(actions)

    pool = make_pool(Silent, 2, 0, seed=0)
    pool.reset()
    assert pool.step(np.zeros(2, np.int64)).failed.all()
    assert "TypeError: step must return (observation, reward," in pool.last_failure


def test_integers_that_do_not_fit_fail_the_vector_env() -> None:
    class Overflowing(Batched):
        def observe(self) -> dict[str, Any]:
            return {**super().observe(), "at": np.stack([self.rollout, 255 + self.steps], axis=1)}

    pool = make_pool(Overflowing, 2, 0, seed=0)
    pool.reset()
    assert pool.step(np.zeros(2, np.int64)).failed.all()
    assert "'at' is outside its space: 256 is not between 0 and 255" in pool.last_failure


def test_a_function_of_num_envs_and_seed_is_given_both() -> None:
    seeds: list[int] = []

    def make(num_envs: int, seed: int) -> VectorEnv:
        seeds.append(seed)
        return Batched(num_envs)

    for first_env in (0, 3):
        assert make_pool(make, 3, first_env, seed=5).num_envs == 3
    make_pool(make, 3, 0, seed=5)
    assert seeds[0] != seeds[1] and seeds[2] == seeds[0]


class Exiting(Batched):
    def step(self, actions: np.ndarray) -> Any:
        raise SystemExit(0)


def test_a_vector_env_that_exits_has_failed() -> None:
    with pytest.raises(ValueError, match="Exiting failed with SystemExit: 0"):
        check_env(Exiting)


def test_a_vector_env_without_a_mode_is_told_what_to_set() -> None:
    env = Batched()
    env.metadata = {}
    with pytest.raises(ValueError, match="AutoresetMode.SAME_STEP.*NEXT_STEP.*DISABLED"):
        make_pool(lambda: env, 2, 0, seed=0)


@pytest.mark.processes
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_async_vector_envs_run_as_they_come(mode: AutoresetMode) -> None:
    def make(num_envs: int) -> AsyncVectorEnv:
        return AsyncVectorEnv([lambda: gym.make("CartPole-v1")] * num_envs, autoreset_mode=mode)

    def make_sync(num_envs: int) -> SyncVectorEnv:
        return SyncVectorEnv([lambda: gym.make("CartPole-v1")] * num_envs, autoreset_mode=mode)

    def rollouts(make_env: Any) -> list[list[float]]:
        pool, found = make_pool(make_env, 2, 0, seed=0), []
        pool.reset()
        for _ in range(60):
            step = pool.step(np.ones(2, np.int64))
            found.append([*step.obs["observation"].ravel().tolist(), *step.rewards.tolist(), *step.stepped.tolist()])
            pool.begin(step.terminated | step.truncated)
        pool.close()
        assert pool.failures == 0
        return found

    assert rollouts(make) == rollouts(make_sync)


class Counting(gym.Env):
    """Rollouts that are longer each time: what they log as they begin, in every step, and as they end."""

    observation_space, action_space = spaces.Dict(at=spaces.Box(0, 99, (2,))), spaces.Discrete(2)

    def __init__(self, number: int) -> None:
        self.number, self.rollout, self.step_number = number, 0, 0

    def observe(self) -> dict[str, np.ndarray]:
        return {"at": np.array([self.rollout, self.step_number], np.float32)}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.rollout, self.step_number = self.rollout + 1, 0
        return self.observe(), {"AMAGO_LOG_METRIC began": self.rollout} if self.number else {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.step_number += 1
        ends = self.step_number == self.rollout + self.number
        info = {"AMAGO_LOG_METRIC steps": self.step_number, **({"AMAGO_LOG_METRIC end": 7.0} if ends else {})}
        return self.observe(), float(self.step_number), ends and bool(self.rollout % 2), ends, info


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_infos_may_be_one_for_each_row(mode: AutoresetMode) -> None:
    """What is collected is what infos of arrays say."""

    def collected(*wrappers: Callable[[VectorEnv], VectorEnv]) -> list[Any]:
        env: VectorEnv = SyncVectorEnv([partial(Counting, number) for number in range(3)], autoreset_mode=mode)
        for wrapper in wrappers:
            env = wrapper(env)
        check_env(lambda: env)
        pool, found = make_pool(lambda: env, 3, 0, seed=0), []
        pool.reset()
        for _ in range(20):
            step = pool.step(np.zeros(3, np.int64))
            found.append([step.obs["at"].tolist(), step.rewards.tolist(), step.stepped.tolist(), step.infos])
            obs, fresh = pool.begin(step.terminated | step.truncated)
            found.append([obs["at"].tolist(), fresh.tolist()])
        assert pool.failures == 0, pool.last_failure
        return found

    with_arrays = collected()
    assert any(infos for *_, infos in with_arrays[::2])
    assert collected(DictInfoToList) == with_arrays
    assert collected(DictInfoToList, NoneForEmpty) == with_arrays


class NoneForEmpty(VectorWrapper):
    def reset(self, **kwargs: Any) -> Any:
        obs, infos = self.env.reset(**kwargs)
        return obs, tuple(info or None for info in infos)

    def step(self, actions: Any) -> Any:
        *rest, infos = self.env.step(actions)
        return *rest, tuple(info or None for info in infos)


class EndsItsProcess(gym.Env):
    """Rollouts of three steps. The second of its kind ends its process in its seventh step, as long as it may."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)

    def __init__(self, number: int, may: Any) -> None:
        self.number, self.may, self.steps = number, may, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        if self.number == 1 and self.steps == 7 and self.may.exists():
            self.may.unlink()
            os._exit(3)
        return np.zeros(2, np.float32), 1.0, self.steps % 3 == 0, False, {}


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_a_process_of_an_async_vector_env_that_dies_is_a_failure(tmp_path: Path) -> None:
    """Gymnasium's own `close` waits for its answer for good."""
    may = tmp_path / "may"
    may.touch()
    make = partial(AsyncVectorEnv, [partial(EndsItsProcess, number, may) for number in range(2)])
    with closing(make_pool(make, 2, 0, seed=0)) as pool:
        pool.reset()
        steps = 0
        for _ in range(40):
            transition = pool.step(np.zeros(2, np.int64))
            steps += int(transition.stepped.sum())
            pool.begin(transition.terminated | transition.truncated)
        assert pool.failures == 1 and steps > 40


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_one_that_is_broken_is_closed(tmp_path: Path) -> None:
    may = tmp_path / "may"
    may.touch()
    pool = make_pool(partial(AsyncVectorEnv, [partial(EndsItsProcess, n, may) for n in range(2)]), 2, 0, seed=0)
    pool.reset()
    while not pool.failures:
        transition = pool.step(np.zeros(2, np.int64))
        if not pool.failures:
            pool.begin(transition.terminated | transition.truncated)
    pool.close()
    assert not multiprocessing.active_children()
