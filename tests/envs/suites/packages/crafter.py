"""Crafter itself."""

from __future__ import annotations

import numpy as np

from amago_ray.envs.makers import check_env
from amago_ray.envs.suites import make_crafter


def test_a_world_is_drawn_from_its_seed() -> None:
    obs_spec, action_spec, name = check_env((make_crafter, {"max_episode_steps": 10}))
    assert (obs_spec["observation"].shape, action_spec.nvec, name) == ((64, 64, 3), (17,), "Crafter")
    env = make_crafter()
    first, second, again = (env.reset(seed=seed)[0] for seed in (1, 2, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()


def test_achievements_are_logged() -> None:
    env = make_crafter(max_episode_steps=3)
    env.reset(seed=0)
    *_, truncated, info = [env.step(np.int64(6)) for _ in range(3)][-1]  # sleeping
    unlocked = [name for name in info if name.startswith("AMAGO_LOG_METRIC Unlocked ")]
    assert truncated and len(unlocked) == 22 and info["AMAGO_LOG_METRIC Achievements"] <= 1
