"""Sweeps of seconds, over the smallest networks, as files and commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import TINY_NETWORKS

SETTINGS = (
    *TINY_NETWORKS,
    "Experiment.run_name = 'tiny'",
    "Experiment.make_train_env = @Counting",
    "Counting.episode_length = 6",
    "Experiment.traj_encoder_type = @GRUTrajEncoder",
    "Experiment.max_seq_len = 8",
    "Experiment.parallel_actors = 2",
    "Experiment.num_rollout_workers = 1",
    "Experiment.learner_cpus = 1",
    "Experiment.train_timesteps_per_epoch = 24",
    "Experiment.train_batches_per_epoch = 4",
    "Experiment.batch_size = 4",
    "Experiment.epochs = 4",
    "Experiment.val_interval = 1",
    "Experiment.replay_capacity_gb = 0.02",
    "Experiment.schedule = 'alternate'",
    "Experiment.log_interval = 2",
    "Experiment.verbose = False",
)


def write_config(folder: Path, *more: str) -> Path:
    file = folder / "tiny.gin"
    file.write_text("\n".join([*SETTINGS, f"Experiment.ckpt_base_dir = {str(folder / 'runs')!r}", *more]) + "\n")
    return file


def trials(sweep: Path) -> dict[str, Any]:
    """Trial id -> what sweep.json says of it; empty where there is no such file yet."""
    file = sweep / "sweep.json"
    return json.loads(file.read_text())["trials"] if file.is_file() else {}
