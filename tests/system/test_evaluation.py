"""Evaluations on Ray: the same rollouts whoever plays them, saved and drawn where that is asked for, and an end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from conftest import ProcessPool
from PIL import Image

from amago_ray.envs.builtin import TMaze
from amago_ray.envs.makers import env_spaces
from amago_ray.replay.datasets.dataset import RowLayout
from amago_ray.replay.readers import AmagoDataset
from amago_ray.watch.metrics import AVERAGE_RETURN, read_metrics

TMAZE = partial(TMaze, 4)


class Endless(TMaze):
    def step(self, action: Any) -> Any:
        return self._observe(), 0.0, False, False, {}


def test_rollouts_of_evaluations(
    make_experiment: Callable[..., Any], process_pool: ProcessPool, tmp_path: Path
) -> None:
    settings = {
        "make_train_env": TMAZE,
        "parallel_actors": 3,
        "epochs": 2,
        "val_interval": 1,
        "num_replay_shards": 1,
        "force_reset_train_envs_every": 1,
        "train_timesteps_per_epoch": 6,
        "sample_actions_val": False,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amago_ray.driver.topology.spawner", process_pool)
        alone = make_experiment(run_name="alone", num_rollout_workers=1, **settings).start()
        expected = [alone.validate() for _ in range(3)]
        tested = alone.evaluate_test(TMAZE, episodes=8)
        alone.close()

    experiment = make_experiment(run_name="shared", num_rollout_workers=2, **settings).start()
    assert experiment.validate() == expected[0], "who plays an evaluation makes no difference"
    topology = experiment._ring._topology
    # A worker that dies over an evaluation: another plays its share, or the same one after its restart.
    ray.kill(topology._workers[1], no_restart=False)
    assert experiment.validate() == expected[1]
    assert experiment.evaluate_test(TMAZE, episodes=8) == tested
    check_saved_and_drawn(experiment, tmp_path, tested)
    with pytest.raises(ValueError, match="TMaze-Passive-4: a rollout has not ended .*val_timesteps_per_epoch"):
        experiment.call_timeout_s = 6.0
        experiment.evaluate_test(partial(Endless, 4), episodes=2)
    experiment.call_timeout_s = 60.0
    assert experiment.validate() == expected[2], "nobody was killed for it"

    experiment.learn()
    rows = read_metrics(experiment.directory.root)
    assert [row["val/Total Episodes"] for row in rows if row["section"] == "val"] == [3, 3]
    assert [row["val/Unfinished Rollouts"] for row in rows if row["section"] == "val"] == [0, 0]
    # 6 steps of 3 environments in either epoch, and the unfinished ones of the first were stored before the second.
    collected = [row["collect/Trajectories"] for row in rows if row["section"] == "collect"]
    assert len(collected) == 2 and collected[1] >= 3


def check_saved_and_drawn(experiment: Any, tmp_path: Path, tested: dict[str, float]) -> None:
    folder = tmp_path / "saved"
    result = experiment.evaluate_test(TMAZE, episodes=8, render=True, save_trajs_to=folder)
    assert result == tested
    dataset, layout = AmagoDataset(folder), RowLayout(*env_spaces(TMAZE))
    saved = [dataset.trajectory(i, layout) for i in range(len(dataset))]
    assert len(saved) == 8 and all(t.first_time_idx == 0 for t in saved)
    assert sum(t.total_reward for t in saved) / 8 == pytest.approx(tested[AVERAGE_RETURN], abs=1e-5)
    with Image.open(experiment.directory.root / "test.gif") as picture:
        assert picture.format == "GIF"
    with pytest.raises(ValueError, match="does not render"):
        experiment.evaluate_test(partial(WithoutPictures, 4), episodes=1, render=tmp_path / "out.gif")


class WithoutPictures(TMaze):
    def __init__(self, corridor_length: int):
        super().__init__(corridor_length)
