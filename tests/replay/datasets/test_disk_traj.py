"""AMAGO's DiskTrajDataset is this run's own replay, as large and where it says."""

from __future__ import annotations

from pathlib import Path

import gin
import pytest

from amago_ray import Experiment, config
from amago_ray.envs.builtin import Counting
from amago_ray.replay.datasets import DiskTrajDataset
from amago_ray.replay.sampling.relabeling import HindsightRelabeler
from amago_ray.settings import replay_folder


def test_it_stands_for_the_settings_of_replay(tmp_path: Path) -> None:
    relabeler = HindsightRelabeler(probability=0.5)
    elsewhere = Experiment(
        "run", Counting, 8, ckpt_base_dir=tmp_path, dataset=DiskTrajDataset(tmp_path / "data", "maze", 500, relabeler)
    )
    assert elsewhere.dataset is None and elsewhere.replay_capacity_trajectories == 500
    assert replay_folder(elsewhere) == tmp_path / "data" / "maze" / "run"
    assert elsewhere.relabeler_type is not None and elsewhere.relabeler_type() is relabeler
    own = Experiment("run", Counting, 8, ckpt_base_dir=tmp_path, dataset=DiskTrajDataset(tmp_path, "run", 500))
    assert replay_folder(own) == tmp_path / "run" / "replay" and own.relabeler_type is None


def test_it_is_known_to_gin(tmp_path: Path) -> None:
    gin.clear_config()
    settings = {"dset_root": str(tmp_path), "dset_name": "run", "dset_max_size": 70}
    config.load(
        [], ["Experiment.dataset = @DiskTrajDataset()"] + [f"DiskTrajDataset.{k} = {v!r}" for k, v in settings.items()]
    )
    assert Experiment("run", Counting, 8, ckpt_base_dir=tmp_path).replay_capacity_trajectories == 70
    gin.clear_config()


def test_mistakes_and_files_that_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dset_max_size=0: it must be 1"):
        DiskTrajDataset(tmp_path, "run", 0)
    with pytest.raises(TypeError, match="must be a Relabeler of amago_ray"):
        DiskTrajDataset(tmp_path, "run", 1, object())  # type: ignore[arg-type]
    (tmp_path / "run" / "buffer" / "fifo").mkdir(parents=True)
    (tmp_path / "run" / "buffer" / "fifo" / "maze_0_1.npz").touch()
    with pytest.warns(UserWarning, match="are not read.*AmagoDataset"):
        DiskTrajDataset(tmp_path, "run", 1).settings(tmp_path / "run")
