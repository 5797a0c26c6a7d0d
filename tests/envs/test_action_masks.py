"""Illegal actions are taken by nobody who acts at random: the check, exploration, random policies."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ring_cases import Recorded

from amago_ray.envs.exploration import BilevelEpsilonGreedy, EpsilonGreedy, ExplorationWrapper
from amago_ray.envs.makers import check_env
from amago_ray.envs.spaces import action_spec, check_action_mask, is_legal, obs_spec, sample_actions
from amago_ray.rollout.evaluate import random_policy

DISCRETE, MULTI = action_spec(spaces.Discrete(4, start=2)), action_spec(spaces.MultiDiscrete([2, 3]))
LEGAL = {
    "discrete": np.array([[0, 1, 1, 0], [1, 0, 0, 0]], np.int8),
    "multidiscrete": np.array([[0, 1, 1, 0, 1], [1, 1, 0, 1, 0]], np.int8),
}
CHOICES: dict[str, list[set[Any]]] = {
    "discrete": [{1, 2}, {0}],
    "multidiscrete": [{(1, 0), (1, 2)}, {(0, 1), (1, 1)}],
}
SPECS = {"discrete": DISCRETE, "multidiscrete": MULTI}


def choices(draws: list[np.ndarray]) -> list[set[Any]]:
    return [{tuple(x) if np.ndim(x) else int(x) for x in row} for row in np.stack(draws, axis=1)]


class Strict(gym.Env):
    """Refuses illegal actions; a rollout's return is its number of steps."""

    def __init__(self, multi: bool = False) -> None:
        self.action_space = spaces.MultiDiscrete([2, 3]) if multi else spaces.Discrete(5)
        self.observation_space = spaces.Dict(mask=spaces.MultiBinary(5), value=spaces.Box(0, 1, (1,)))
        self.multi = multi

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> dict[str, np.ndarray]:
        self.mask = np.zeros(5, np.int8)
        self.mask[self.np_random.integers(2 if self.multi else 5)] = 1
        if self.multi:
            self.mask[2 + self.np_random.integers(3)] = 1
        return {"mask": self.mask, "value": np.zeros(1, np.float32)}

    def step(self, action: Any) -> Any:
        chosen = [action[0], 2 + action[1]] if self.multi else [action]
        if not self.mask[chosen].all():
            raise ValueError(f"{action} is illegal")
        self.steps += 1
        return self.observe(), 1.0, self.steps == 3, False, {}


@pytest.mark.parametrize("kind", SPECS)
def test_random_actions_are_uniform_among_the_legal_ones(kind: str) -> None:
    rng, spec, legal = np.random.default_rng(0), SPECS[kind], LEGAL[kind]
    draws = [sample_actions(spec, 2, rng, legal) for _ in range(400)]
    assert draws[0].shape == (2, *spec.shape) and draws[0].dtype == spec.dtype
    assert choices(draws) == CHOICES[kind]
    assert all(is_legal(spec, draw, legal).all() for draw in draws)
    counts = np.unique(np.stack(draws)[:, 0], axis=0, return_counts=True)[1]
    assert np.abs(counts - 200).max() < 50  # four standard deviations are 40


def test_a_row_without_a_legal_action_is_named() -> None:
    with pytest.raises(ValueError, match="no action in row 1"):
        sample_actions(DISCRETE, 2, np.random.default_rng(0), np.array([[1, 0, 0, 0], [0, 0, 0, 0]]))


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("wrapper", [EpsilonGreedy, BilevelEpsilonGreedy])
def test_exploration_keeps_to_the_legal_actions(kind: str, wrapper: Any) -> None:
    extra = {"rollout_horizon": 10} if wrapper is BilevelEpsilonGreedy else {}
    explore = wrapper(2, SPECS[kind], seed=0, randomize_eps=False, **extra)
    policy = np.array([1, 0]) if kind == "discrete" else np.array([[1, 0], [0, 1]])
    time_idx = np.zeros(2, np.int64)
    assert choices([explore(policy, time_idx, LEGAL[kind]) for _ in range(200)]) == CHOICES[kind]
    assert (explore.steps == 200).all()


class Careless(ExplorationWrapper):
    def explore(self, actions: np.ndarray, time_idx: np.ndarray) -> np.ndarray:
        return np.full_like(actions, 3)


class InPlace(ExplorationWrapper):
    def explore(self, actions: np.ndarray, time_idx: np.ndarray) -> np.ndarray:
        actions[:] = 3
        return actions


@pytest.mark.parametrize("wrapper", [Careless, InPlace])
def test_exploration_that_knows_no_mask_is_overruled_by_the_policy(wrapper: type[ExplorationWrapper]) -> None:
    explore = wrapper(2, DISCRETE, seed=0)
    actions, time_idx = np.array([1, 0]), np.zeros(2, np.int64)
    assert explore(actions, time_idx).tolist() == [3, 3]
    assert explore(actions, time_idx, LEGAL["discrete"]).tolist() == [1, 0]
    assert explore(actions, time_idx, np.array([[0, 0, 0, 1], [1, 0, 0, 0]])).tolist() == [3, 0]


@pytest.mark.parametrize("multi", [False, True])
def test_the_check_and_the_random_policy_obey_the_mask(multi: bool) -> None:
    def make() -> gym.Env:
        return Strict(multi)

    with pytest.raises(ValueError, match="is illegal"):
        check_env(make, num_steps=200)
    assert check_env(make, num_steps=200, action_mask_key="mask")[2] == "Strict"
    results = random_policy(make, 20, action_mask_key="mask")
    assert len(results) >= 20 and {result.total_reward for result in results} == {3.0}


@pytest.mark.parametrize(
    ("name", "space", "message"),
    [
        ("masc", spaces.Discrete(5), "action_mask_key='masc': no observation is named so; there are 'mask', 'value'"),
        ("value", spaces.Discrete(5), r"of shape \(5,\), .* not of shape \(1,\)"),
        ("mask", spaces.MultiDiscrete([2, 2]), r"of shape \(4,\)"),
        ("mask", spaces.Box(-1, 1, (5,)), "only Discrete and MultiDiscrete.*not continuous"),
        ("mask", spaces.MultiBinary(5), "only Discrete and MultiDiscrete.*not multibinary"),
    ],
)
def test_a_mask_that_does_not_fit_the_action_is_refused(name: str, space: gym.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_action_mask(name, obs_spec(Strict().observation_space), action_spec(space))


class Over(gym.Env):
    """Rollouts of `length` steps, whose last observation allows nothing, as games end."""

    observation_space = spaces.Dict(mask=spaces.MultiBinary(3), value=spaces.Box(0, 1, (1,)))
    action_space = spaces.Discrete(3)

    def __init__(self, length: int) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> dict[str, np.ndarray]:
        mask = np.array([0, self.steps < self.length, 0], np.int8)
        return {"mask": mask, "value": np.zeros(1, np.float32)}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observe(), float(action == 1), self.steps == self.length, False, {}


@pytest.mark.parametrize("mode", [*AutoresetMode, None], ids=str)
def test_the_end_of_a_rollout_may_allow_nothing(mode: AutoresetMode | None) -> None:
    """mode: of a VectorEnv, whose rows in NEXT_STEP are asked for an action all the same; None for plain ones."""

    def make(num_envs: int) -> SyncVectorEnv:
        return SyncVectorEnv([partial(Over, 3 + number) for number in range(num_envs)], autoreset_mode=mode)

    make_env = make if mode else partial(Over, 3)
    lengths = [3, 4] if mode else [3, 3]
    assert check_env(make_env, action_mask_key="mask")[1].nvec == (3,)
    played = random_policy(make_env, 6, num_envs=2, action_mask_key="mask")
    assert [result.total_reward for result in played] == [lengths[0]] * 3 + [lengths[1]] * 3
    run = Recorded(make_env, action_mask_key="mask", exploration_type=EpsilonGreedy, traj_save_len=8)
    run.worker.collect(80)
    assert {trajectory.num_transitions for trajectory in run.written} == set(lengths)
