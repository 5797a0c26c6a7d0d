"""The check before the start is as patient with environments that fail as a run is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from amago_ray.envs.first_rollout import FirstRollout
from amago_ray.envs.makers import check_env
from amago_ray.envs.pool import MAX_FAILURES_IN_A_ROW
from amago_ray.envs.processes import EnvProcesses

Fails = Callable[[int, int], bool]  # of the number of the environment, as it was built, and of the step in its rollout


class Fragile(gym.Env):
    """Rollouts of `length` steps, which observe their number; one fails where `fails` says so. Step 0 is the reset."""

    observation_space, action_space = spaces.Box(0, 999, (1,), np.float32), spaces.Discrete(2)
    built = 0

    def __init__(self, fails: Fails, length: int = 30) -> None:
        Fragile.built += 1
        self.number, self.fails, self.length, self.at = Fragile.built, fails, length, 0

    def observe(self) -> np.ndarray:
        if self.fails(self.number, self.at):
            raise OSError(f"no connection at step {self.at}")
        return np.array([self.at], np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.at = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.at += 1
        return self.observe(), float(self.at), self.at == self.length, False, {}


@pytest.fixture(autouse=True)
def none_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fragile, "built", 0)


def alone(fails: Fails, length: int = 30) -> Callable[[], Any]:
    return partial(Fragile, fails, length)


def in_vector_env(fails: Fails, length: int = 30) -> Callable[[], Any]:
    return lambda: SyncVectorEnv([partial(Fragile, fails, length)], autoreset_mode=AutoresetMode.NEXT_STEP)


@pytest.mark.parametrize("make", [alone, in_vector_env])
@pytest.mark.parametrize("step", [0, 1, 7])
def test_one_that_fails_now_and_then_is_taken_and_told_of(make: Any, step: int) -> None:
    times = MAX_FAILURES_IN_A_ROW - 1
    with pytest.warns(UserWarning, match="before the start environment .* failed with OSError: no connection") as told:
        check_env(make(lambda number, at: number <= times and at == step), rollout=(rollout := FirstRollout()))
    assert len(told) == 1 and f"at step {step} ({times} times)" in str(told[0].message)
    seen = rollout.columns["obs.observation"][:, 0].tolist()
    assert seen == list(range(7 if step == 7 else 31)), "whatever of it came before the failure"


@pytest.mark.parametrize("make", [alone, in_vector_env])
@pytest.mark.parametrize("step", [0, 1, 7, 19])
def test_one_that_always_fails_is_refused_with_what_it_says(make: Any, step: int) -> None:
    with pytest.raises(ValueError, match=f"environment .* failed with OSError: no connection at step {step}$"):
        check_env(make(lambda number, at: at == step))
    assert Fragile.built == MAX_FAILURES_IN_A_ROW


@pytest.mark.processes
def test_in_processes_of_their_own_it_is_the_same() -> None:
    same = EnvProcesses(double_buffer=False)
    with pytest.warns(UserWarning, match="failed with OSError: no connection at step 7: the rollout is lost"):
        check_env(alone(lambda number, at: number == 1 and at == 7), processes=same)
    with pytest.raises(ValueError, match="environment Fragile failed with OSError: no connection at step 7$"):
        check_env(alone(lambda number, at: at == 7), processes=same)


def test_rollouts_that_last_long_are_not_played_to_their_end() -> None:
    steps = []

    def fails(number: int, at: int) -> bool:
        steps.append(at)
        return number == 1 and at == 3

    with pytest.warns(UserWarning, match="failed with OSError"):
        check_env(alone(fails, length=10**9))
    assert len(steps) < 1100


@pytest.mark.parametrize("kind", [np.float64, np.float16])
def test_numbers_that_are_too_large_are_told_of_in_words_alone(kind: Any) -> None:
    class Large(Fragile):
        observation_space = spaces.Box(-np.inf, np.inf, (1,), kind)

        def observe(self) -> Any:
            return np.array([1e300])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="its observation 'observation' is not finite"):
            check_env(partial(Large, lambda number, at: False))
