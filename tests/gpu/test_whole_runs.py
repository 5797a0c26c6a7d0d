"""A whole run whose learner has a GPU: its processes, its files, and going on from them. Needs Ray beside the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("ray", reason="a whole run needs Ray")

from amago_ray import config
from amago_ray.nets.traj_encoders import TformerTrajEncoder
from amago_ray.watch.metrics import read_metrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

SMALL = [f"TformerTrajEncoder.{size}" for size in ("d_model = 16", "n_heads = 2", "n_layers = 1", "d_ff = 32")]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mixed_precision": "bf16", "schedule": "overlap"},
        {"compile_learning": "always", "mixed_precision": "bf16"},
        {"rollout_device": "cuda"},
        {"replay_sampling": "prioritized", "cuda_graphs": "never"},
    ],
    ids=str,
)
def test_a_run_learns_saves_and_goes_on(make_experiment: Callable[..., Any], settings: dict[str, Any]) -> None:
    config.load([], SMALL)
    on_gpu = {"learner_device": "cuda", "traj_encoder_type": TformerTrajEncoder, "train_batches_per_epoch": 12}
    settings = on_gpu | settings
    with make_experiment(epochs=2, **settings) as experiment:
        experiment.learn()
    with make_experiment(epochs=4, **settings) as experiment:
        experiment.start(resume=True)
        experiment.learn()
        rows = [row for row in read_metrics(experiment.directory.root) if row["section"] == "train"]
        assert rows[-1]["gradient_steps"] == 48
        losses = [row["train/Total Loss"] for row in rows]
        assert all(map(math.isfinite, losses)) and len(set(losses)) == len(losses)
        assert experiment.validate()
