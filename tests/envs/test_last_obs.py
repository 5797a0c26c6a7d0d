"""Autoreset in SAME_STEP: what a rollout ended with is told from what the next one begins with, or else refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from amago_ray.envs.last_obs import SUSPICIOUS, overwrites
from amago_ray.envs.makers import check_env, make_pool

OVERWRITTEN = r"was overwritten by the first one.*obs\.copy\(\), or choose AutoresetMode\.NEXT_STEP"


class Writing(gym.Env):
    """Observes (rollout, step) in an array of its own, of which it returns what `returns` makes of it."""

    observation_space, action_space = spaces.Box(-1e6, 1e6, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, returns: Callable[[np.ndarray], Any] = lambda own: own, length: int = 3) -> None:
        self.own, self.returns, self.length = np.zeros((4, 2), np.float32), returns, length
        self.rollout = self.at = 0

    def observe(self) -> Any:
        self.own[:] = self.rollout, self.at
        return self.returns(self.own)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.rollout, self.at = self.rollout + 1, 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.at += 1
        return self.observe(), 0.0, False, self.at == self.length, {}


def row(own: np.ndarray) -> np.ndarray:
    return own[0]


def view(own: np.ndarray) -> np.ndarray:
    return own[::2][1]


def new(own: np.ndarray) -> np.ndarray:
    return own[0].copy()


def listed(own: np.ndarray) -> list[float]:
    return own[0].tolist()


def vector_env(
    returns: Callable[[np.ndarray], Any],
    kind: Any = SyncVectorEnv,
    mode: AutoresetMode = AutoresetMode.SAME_STEP,
    length: int = 3,
) -> VectorEnv:
    return kind([partial(Writing, returns, length + number) for number in range(2)], autoreset_mode=mode)


def ends(make: Callable[[], VectorEnv], steps: int = 12) -> list[tuple[int, list[float], list[float]]]:
    """Of rollouts that end: the row, the last observation, and the next one's first."""
    pool, found = make_pool(make, 2, 0, seed=0), []
    pool.reset()
    for _ in range(steps):
        transition = pool.step(np.zeros(2, np.int64))
        ended, last = transition.terminated | transition.truncated, transition.obs["observation"].copy()
        assert not transition.failed.any(), pool.last_failure
        obs, _ = pool.begin(ended)
        found += [(int(i), last[i].tolist(), obs["observation"][i].tolist()) for i in np.flatnonzero(ended)]
    pool.close()
    return found


@pytest.mark.parametrize("kind", [SyncVectorEnv, pytest.param(AsyncVectorEnv, marks=pytest.mark.processes)])
@pytest.mark.parametrize("returns", [row, view])
def test_the_check_refuses_environments_that_overwrite_their_last_observations(kind: Any, returns: Any) -> None:
    with pytest.raises(ValueError, match=f"environment .*: autoreset in SAME_STEP: .*{OVERWRITTEN}"):
        check_env(partial(vector_env, returns, kind))
    with pytest.raises(ValueError, match=OVERWRITTEN):  # rollouts that end later than any check looks
        check_env(partial(vector_env, returns, kind, length=5000))


@pytest.mark.parametrize("returns", [row, view])
def test_a_run_fails_where_nothing_was_checked(returns: Any) -> None:
    pool = make_pool(partial(vector_env, returns), 2, 0, seed=0)
    pool.reset()
    for _ in range(3):
        transition = pool.step(np.zeros(2, np.int64))
    assert transition.failed.all() and "was overwritten by the first one" in pool.last_failure


@pytest.mark.parametrize("kind", [SyncVectorEnv, pytest.param(AsyncVectorEnv, marks=pytest.mark.processes)])
@pytest.mark.parametrize("returns", [new, listed])
def test_environments_that_return_new_arrays_are_taken_and_their_last_observations_are_right(
    kind: Any, returns: Any
) -> None:
    check_env(partial(vector_env, returns, kind))
    first, second, *_ = ends(partial(vector_env, returns, kind))
    assert first == (0, [1.0, 3.0], [2.0, 0.0]) and second == (1, [1.0, 4.0], [2.0, 0.0])


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_the_other_modes_take_both(mode: AutoresetMode) -> None:
    check_env(partial(vector_env, row, mode=mode))
    assert [last for _, last, _ in ends(partial(vector_env, row, mode=mode))][:2] == [[1.0, 3.0], [1.0, 4.0]]


class Blank(Writing):
    """The first and the last observation of every rollout are alike."""

    def observe(self) -> Any:
        self.own[:] = self.at % self.length
        return self.returns(self.own)


class Constant(Writing):
    """Returns one array, in which nothing ever changes."""

    def observe(self) -> Any:
        return self.own[0]


@pytest.mark.parametrize("make", [partial(Blank, new), Constant])
def test_observations_that_are_really_alike_are_no_error(make: Callable[[], gym.Env]) -> None:
    def build() -> VectorEnv:
        return SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(build)
        assert all(last == first for _, last, first in ends(build, 60))


class Batched(VectorEnv):
    """Writes into one array (2, 2). final: what it keeps of it where rollouts end."""

    single_observation_space, single_action_space = Writing.observation_space, Writing.action_space
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, final: str) -> None:
        self.num_envs, self.final = 2, final
        self.observation_space = batch_space(self.single_observation_space, 2)
        self.action_space = batch_space(self.single_action_space, 2)

    def reset(self, *, seed: Any = None, options: dict | None = None) -> Any:
        self.own, self.at = np.zeros((2, 2), np.float32), 0
        return self.own, {}

    def step(self, actions: np.ndarray) -> Any:
        self.at += 1
        self.own[:] = self.at
        ended, kept = np.full(2, self.at % 3 == 0), self.own.copy()
        if ended.all():
            self.own[:] = 100
        final = {"right": kept, "same array": self.own, "late copy": self.own.copy()}[self.final]
        return self.own, np.zeros(2), np.zeros(2, bool), ended, {"final_obs": final} if ended.all() else {}


def test_a_vector_env_of_ones_own_whose_last_observations_are_in_the_array_that_it_returns_is_refused() -> None:
    assert ends(partial(Batched, "right"))[0] == (0, [3.0, 3.0], [100.0, 100.0])
    with pytest.raises(ValueError, match=OVERWRITTEN):
        check_env(lambda num_envs: Batched("same array"))


def test_a_vector_env_of_ones_own_that_copied_too_late_is_told_of_once() -> None:
    with pytest.warns(UserWarning, match=f"{SUSPICIOUS} rollouts ended with the very observation") as told:
        ends(partial(Batched, "late copy"), 60)
    assert len(told) == 1


class Closing(Writing):
    """Cannot be stepped once it is closed, as a simulator whose window is gone."""

    closed = False

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert not self.closed, "the simulator is closed"
        return super().step(action)

    def close(self) -> None:
        self.closed = True


def test_environments_that_are_in_use_are_not_tried() -> None:
    """`env_fns` may give those that there are: to step and to close them would be the user's own."""
    envs = [Closing(new), Closing(new)]

    def make() -> VectorEnv:
        return SyncVectorEnv([lambda env=env: env for env in envs], autoreset_mode=AutoresetMode.SAME_STEP)

    assert overwrites(make(), 0) is None
    assert not any(env.closed for env in envs)
