"""What was seen while environments are tried is a table as a run stores it."""

from __future__ import annotations

from functools import partial

import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from amago_ray.envs.builtin import Counting
from amago_ray.envs.builtin.counting import misaligned
from amago_ray.envs.first_rollout import FirstRollout
from amago_ray.envs.makers import MakeEnv, check_env
from amago_ray.replay.datasets.dataset import RowLayout


@pytest.mark.parametrize("mode", [None, AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("length", [1, 6, 100])
def test_it_is_the_first_rollout_as_it_is_stored(length: int, mode: AutoresetMode | None) -> None:
    first, other = (partial(Counting, length, env_id) for env_id in (5, 7))
    made: MakeEnv = [first, other] if mode is None else lambda: SyncVectorEnv([first, other], autoreset_mode=mode)
    check_env(made, rollout=(rollout := FirstRollout()))
    columns, layout = rollout.columns, RowLayout(first().observation_space, first().action_space)
    num_rows = len(columns["reward"])
    assert num_rows == length + 1 or (length == 100 and num_rows == 21), "an environment is tried for 20 steps or more"
    assert misaligned(columns, 0, length) == []
    assert set(columns["obs.env_id"][:, 0]) == {5} and set(columns["obs.rollout"][:, 0]) == {0}
    stored = layout.empty(num_rows)
    assert {n: (c.shape, c.dtype) for n, c in columns.items()} == {n: (c.shape, c.dtype) for n, c in stored.items()}
    layout.check_rows(columns)
