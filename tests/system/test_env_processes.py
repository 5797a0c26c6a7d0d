"""Runs on Ray whose environments have processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from process_envs import Freezing
from system.processes import stored_trajectories

from amago_ray.envs.builtin.counting import Counting, misaligned
from amago_ray.watch.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("shared_processes")


def test_environments_that_hang_cost_their_rollouts_and_nothing_else(make_experiment: Callable[..., Any]) -> None:
    experiment = make_experiment(
        make_train_env=partial(Freezing, 7),
        make_val_env=partial(Counting, 6),
        env_mode="processes",
        env_timeout_s=1.0,
        env_max_rollouts=20,
        env_double_buffer=True,
        num_rollout_workers=1,
        parallel_actors=3,
        train_timesteps_per_epoch=30,
        epochs=2,
        traj_save_len=7,
        val_interval=1,
    )
    experiment.learn()
    rows = read_metrics(experiment.directory.root)
    collected = [row for row in rows if row["section"] == "collect"]
    # 60 steps of each: 3 rollouts of 7, one step and one that hangs; the same again; and 2 rollouts of 7.
    assert sum(row["collect/Environment Failures"] for row in collected) == 3 * 2
    assert [row["total_frames"] for row in collected] == [3 * 29, 3 * 58]
    stored = [t for shard in stored_trajectories(experiment) for t in shard]
    assert [t.num_transitions for t in stored] == [7] * (3 * 8)
    for t in stored:
        assert misaligned(t.columns, t.first_time_idx, 7, True) == []
    assert all(row["val/Average Episode Length in Counting"] == 6 for row in rows if row["section"] == "val")
    assert experiment.evaluate_test(partial(Counting, 5), episodes=4)["Average Episode Length in Counting"] == 5
