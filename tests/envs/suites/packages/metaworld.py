"""Meta-World itself."""

from __future__ import annotations

import numpy as np
import pytest

from amago_ray.envs.makers import check_env
from amago_ray.envs.suites import make_metaworld, metaworld_tasks

pytestmark = pytest.mark.processes  # of glfw, which looks for its library in one


def test_a_task_with_hidden_goals() -> None:
    obs_spec, action_spec, name = check_env(make_metaworld)
    assert (obs_spec["observation"].shape, action_spec.shape, name) == ((40,), (4,), "ML1-reach-v3")
    env = make_metaworld(num_episodes=2, episode_steps=20)
    base = env.unwrapped
    goals = []
    for seed in (1, 1, 2, None):
        env.reset(seed=seed)
        goals.append(tuple(base._last_rand_vec))  # type: ignore[attr-defined]
        rewards = []
        for _ in range(40):
            observation, reward, _, truncated, info = env.step(np.full(4, 0.3, dtype=np.float32))
            assert env.observation_space.contains(observation) and not observation[36:39].any()
            rewards.append(reward)
        assert truncated and tuple(base._last_rand_vec) == goals[-1]  # type: ignore[attr-defined]
        np.testing.assert_allclose(rewards[:20], rewards[20:], err_msg="the second episode has another goal")
    assert goals[0] == goals[1] and len(set(goals)) == 3
    assert [name for name in info if "Success" in name] == [f"AMAGO_LOG_METRIC Episode {i} Success" for i in (1, 2)]


def test_splits() -> None:
    for benchmark, sizes in (("ML10", (10, 5)), ("ML45", (45, 5))):
        train, test = (
            {task[1]["task"] for task in metaworld_tasks(benchmark, split)}  # type: ignore[arg-type,index]
            for split in ("train", "test")
        )
        assert (len(train), len(test)) == sizes and not train & test
    for task in metaworld_tasks("ML10", "test"):
        check_env(task, num_steps=3)
