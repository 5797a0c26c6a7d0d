"""gymnax and JAX themselves."""

from __future__ import annotations

import gymnax
import numpy as np
import pytest

from amago_ray.envs.makers import check_env
from amago_ray.envs.suites import make_gymnax

LEFT_OUT = {
    "SimpleBandit-bsuite",  # its own step fails in gymnax 0.0.9: the number of an arm is looked up in a single number
    "MNISTBandit-bsuite",  # downloads its images whenever it is made
}


@pytest.mark.parametrize("env_id", sorted(set(gymnax.registered_envs) - LEFT_OUT))
def test_an_environment_passes_the_check(env_id: str) -> None:
    assert check_env((make_gymnax, {"env_id": env_id}), num_steps=3)[2] == env_id


def test_memory_length() -> None:
    env = make_gymnax("MemoryChain-bsuite", num_envs=3, memory_length=7)
    first, _ = env.reset(seed=0)
    bits = first[:, 2]
    for step in range(7):
        observation, reward, terminated, truncated, _ = env.step(np.full(3, 1))
        assert not (terminated.any() or truncated.any() or reward.any())
        assert (observation[:, 2] == (bits if step == 0 else 0)).all()  # it shows the state before the step
    observation, reward, terminated, truncated, _ = env.step(np.full(3, 1))
    assert terminated.all() and not truncated.any()
    np.testing.assert_array_equal(reward, np.where(bits > 0, 1, -1))
