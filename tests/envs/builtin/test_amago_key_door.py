"""What AMAGOKeyDoor does otherwise than DarkKeyDoor."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import amago_ray.envs.builtin  # noqa: F401 - registers the ids
from amago_ray.envs.builtin.amago_key_door import AMAGOKeyDoor
from amago_ray.envs.builtin.grid import LEFT, RIGHT, STAY


def in_a_row(**kwargs: Any) -> AMAGOKeyDoor:
    """A room whose start, key and door are the first three cells of the first row."""
    env = AMAGOKeyDoor(**{"size": 4, "max_episode_steps": 5, "horizon": 9} | kwargs)
    env.reset(seed=0)
    env._start, env._key, env._door = 0, 1, 2
    env._start_attempt()
    return env


def test_observes_key_and_time() -> None:
    env = in_a_row()
    seen = [env.step(move)[0].tolist() for move in (STAY, RIGHT, LEFT)]
    np.testing.assert_allclose(seen, [[0, 0, 0, 0.2], [0.25, 0, 1, 0.4], [0, 0, 1, 0.6]], rtol=1e-6)


def test_light_shows_door_then_key() -> None:
    env = in_a_row(dark=False)
    observation = env.step(STAY)[0]
    np.testing.assert_allclose(observation, [0, 0, 0, 0.2, 0.5, 0, 0.25, 0], rtol=1e-6)
    assert env.observation_space.contains(observation)


def test_a_step_of_its_own_leads_to_the_next_attempt() -> None:
    env = in_a_row()
    steps = [env.step(move) for move in (RIGHT, RIGHT, RIGHT, RIGHT, STAY)]
    assert [reward for _, reward, *_ in steps] == [1, 1, 0, 1, 0]
    np.testing.assert_allclose(steps[1][0], [0.5, 0, 1, 0.4], rtol=1e-6)  # at the door
    assert steps[2][0].tolist() == [0, 0, 0, 0]  # back, whatever the action


def test_time_out_and_end_of_the_rollout() -> None:
    env = in_a_row()
    steps = [env.step(STAY) for _ in range(9)]
    times = [observation[3] for observation, *_ in steps]
    np.testing.assert_allclose(times, [0.2, 0.4, 0.6, 0.8, 1.0, 0.0, 0.2, 0.4, 0.6], rtol=1e-6)
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * 8 + [True]
    assert not any(truncated for _, _, _, truncated, _ in steps)
    assert steps[-1][4] == {"AMAGO_LOG_METRIC Successes": 0.0, "AMAGO_LOG_METRIC Keys Found": 0.0}


def test_start_key_and_door_are_independent() -> None:
    env = AMAGOKeyDoor(2)
    env.reset(seed=0)
    seen = []
    for _ in range(2000):
        env.reset()
        seen.append((env._start, env._key, env._door))
    assert len(set(seen)) == 4**3
    together = np.mean([start == key == door for start, key, door in seen])
    assert together == pytest.approx(1 / 16, abs=0.022)  # four standard errors


def test_key_and_door_in_one_cell_take_two_steps() -> None:
    env = in_a_row()
    env._door = 1
    assert [env.step(move)[1] for move in (RIGHT, STAY)] == [1, 1]


@pytest.mark.parametrize("kwargs", [{}, {"dark": False, "randomize_actions": True}])
@pytest.mark.filterwarnings("error")
def test_follows_gymnasium(kwargs: dict[str, Any]) -> None:
    check_env(gym.make("amago_ray/AMAGOKeyDoor-v0", render_mode="rgb_array", **kwargs).unwrapped)


def test_name() -> None:
    assert AMAGOKeyDoor().env_name == "AMAGODarkKeyDoor-9x9"


def test_bad_action() -> None:
    with pytest.raises(ValueError, match="action=5: must be an integer from 0 to 4"):
        in_a_row().step(5)
