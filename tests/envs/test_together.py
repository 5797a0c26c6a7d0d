"""Environments that are stepped at once do, to the last bit, what they do one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import amago_ray.envs.together
from amago_ray.envs.builtin import AMAGOKeyDoor, DarkKeyDoor, MetaFrozenLake, TMaze
from amago_ray.envs.makers import EnvPool, make_pool
from amago_ray.envs.together import LEAST_ENVS, step_together

NUM_ENVS, STEPS = 8, 300
KINDS: dict[str, Callable[[], gym.Env]] = {
    "lake": partial(MetaFrozenLake, size=3, k_episodes=4),
    "lake with limits": partial(MetaFrozenLake, size=3, k_episodes=3, max_episode_steps=7, show_k_progress=False),
    "lake that is kind": partial(MetaFrozenLake, size=3, k_episodes=3, recover_mode=True),
    "lake by its id": partial(gym.make, "amago_ray/MetaFrozenLake-v0", size=3, k_episodes=4),
    "maze": partial(TMaze, corridor_length=2),
    "maze to explore": partial(TMaze, corridor_length=3, active=True, penalty=-0.3),
    "dark room": partial(DarkKeyDoor, size=3, max_episode_steps=9, horizon=25),
    "light room": partial(DarkKeyDoor, size=3, max_episode_steps=9, horizon=25, dark=False, randomize_actions=True),
}


def played(make_env: Any, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], bool]:
    """Everything that a pool gives in a while of random actions, and whether it stepped its environments at once."""
    monkeypatch.setattr(amago_ray.envs.together, "LEAST_ENVS", LEAST_ENVS if at_once else NUM_ENVS + 1)
    pool = make_pool(make_env, NUM_ENVS, first_env=2, seed=3)
    assert isinstance(pool, EnvPool)
    rng, seen = np.random.default_rng(0), []
    obs = pool.reset()
    for _ in range(STEPS):
        actions = rng.integers(pool.action_spec.nvec[0], size=NUM_ENVS)
        step = pool.step(actions)
        arrays = (step.obs["observation"], step.rewards, step.terminated, step.truncated, step.stepped)
        seen.append((*(array.tobytes() for array in arrays), step.infos, obs["observation"].tobytes()))
        obs, fresh = pool.begin(step.terminated | step.truncated)
        seen.append((obs["observation"].tobytes(), fresh.tolist(), pool.env_names.copy()))
    return seen, pool.steps_together


@pytest.mark.parametrize("kind", KINDS)
def test_at_once_equals_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, together = played(KINDS[kind], True, monkeypatch)
    one_by_one, alone = played(KINDS[kind], False, monkeypatch)
    assert together and not alone
    assert at_once == one_by_one
    assert any(step[4] for step in at_once[::2] if step[5]), "some rollout ended"


def test_what_draws_in_a_step_or_differs_is_stepped_one_by_one() -> None:
    def lakes(**settings: Any) -> list[gym.Env]:
        return [MetaFrozenLake(size=3, **settings) for _ in range(LEAST_ENVS)]

    assert step_together(lakes()) is not None
    assert step_together(lakes(hard_mode=True)) is None
    assert step_together(lakes(slip_chance=0.1)) is None
    assert step_together([*lakes(), MetaFrozenLake(size=4)]) is None
    assert step_together([*lakes(), TMaze()]) is None
    assert step_together(lakes()[1:]) is None, "so few are faster one by one"
    assert step_together([gym.wrappers.TimeLimit(lake, 3) for lake in lakes()]) is None
    assert step_together([AMAGOKeyDoor() for _ in range(LEAST_ENVS)]) is None, "a subclass has rules of its own"
