"""Box2D itself."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from amago_ray.envs.suites.no_velocities import VELOCITIES, make_no_velocities


@pytest.mark.parametrize("env_id", ["LunarLander-v3", "LunarLanderContinuous-v3"])
def test_the_lander_moves_and_turns_unseen(env_id: str) -> None:
    plain, masked = gym.make(env_id), make_no_velocities(env_id)
    seen, hidden = plain.reset(seed=0)[0], masked.reset(seed=0)[0]
    velocities = list(VELOCITIES[env_id.partition("-")[0]])
    np.testing.assert_array_equal(np.delete(seen, velocities), np.delete(hidden, velocities))
    assert seen[velocities].all() and not hidden[velocities].any()
