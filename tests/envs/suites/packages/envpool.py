"""EnvPool itself. Procgen wants Qt 5 besides."""

from __future__ import annotations

import numpy as np
import pytest

from amago_ray.envs.makers import check_env, make_pool
from amago_ray.envs.suites import make_envpool


@pytest.mark.parametrize(("env_id", "shape", "num_actions"), [("CartPole-v1", (4,), 2), ("Pong-v5", (4, 84, 84), 6)])
def test_environments_pass_the_check(env_id: str, shape: tuple[int, ...], num_actions: int) -> None:
    obs_spec, action_spec, name = check_env((make_envpool, {"env_id": env_id}))
    assert (obs_spec["observation"].shape, action_spec.nvec, name) == (shape, (num_actions,), env_id)


def test_rows_of_cartpole_follow_its_rules() -> None:
    """Every step is worth 1, and the next rollout begins two steps after the last of one."""
    pool = make_pool(make_envpool, num_envs=4, first_env=0, seed=3)
    pool.reset()
    lengths: list[int] = []
    steps = np.zeros(4, int)
    for _ in range(200):
        made = pool.step(np.zeros(4, dtype=np.int64))
        assert (made.rewards[made.stepped] == 1).all()
        steps += made.stepped
        ended = made.terminated | made.truncated
        lengths += steps[ended].tolist()
        steps[ended] = 0
        pool.begin(ended)
    assert len(lengths) > 60 and 8 <= min(lengths) and max(lengths) <= 11  # pushed to one side
    assert pool.env_names == ["CartPole-v1"] * 4
    pool.close()
