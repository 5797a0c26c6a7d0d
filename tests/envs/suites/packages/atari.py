"""ale-py itself."""

from __future__ import annotations

import numpy as np

from amago_ray.envs.makers import check_env
from amago_ray.envs.suites import atari_games, make_atari


def test_a_game_of_the_protocol() -> None:
    obs_spec, action_spec, name = check_env(make_atari)
    assert (obs_spec["observation"].shape, obs_spec["observation"].dtype) == ((84, 84, 1), "uint8")
    assert (action_spec.nvec, name) == ((6,), "ALE/Pong-v5")


def test_lives_are_rollouts_of_one_game() -> None:
    env = make_atari("Breakout", life_loss=True)
    env.reset(seed=0)
    lives = []
    for _ in range(3):
        terminated = False
        while not terminated:
            *_, terminated, _, info = env.step(np.int64(1))
        lives.append(info["lives"])
        env.reset()
    assert lives == [4, 3, 2]


def test_games_share_their_spaces() -> None:
    assert check_env(atari_games(("Pong", "Seaquest")))[1].nvec == (18,)
