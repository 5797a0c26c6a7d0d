"""A run that tests kill, as a script: `killed_run.py FOLDER SCHEDULE` begins it, or goes on with it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from conftest import TINY_NETWORKS, small_settings
from dataset_cases import play

from amago_ray import Experiment, config
from amago_ray.envs.builtin import Counting
from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.replay.readers import EpisodeDataset
from amago_ray.watch.callbacks import Callback, RunView

SCHEDULES = ("alternate", "overlap", "offline")
EPOCHS = 6


def repeatable(schedule: str) -> dict[str, Any]:
    """Settings with which a run that is cut, and goes on, is the same to the bit; "offline" learns from data alone."""
    settings: dict[str, Any] = {
        "epochs": EPOCHS,
        "ckpt_interval": 1,
        "val_interval": 3,
        "force_reset_train_envs_every": 1,
        "exploration_wrapper_type": EpsilonGreedy,
        "stagger_traj_file_lengths": True,
        "traj_save_len": 4,
        "schedule": schedule,
    }
    if schedule == "offline":
        settings |= {"schedule": "alternate", "dataset": EpisodeDataset(play(Counting(6), lambda observation: 1, 4))}
    return settings


class Pause(Callback):
    """Lets an epoch take as long as one that does more, so that moments lie within the run and not behind it."""

    def after_epoch(self, view: RunView) -> None:
        time.sleep(0.4)  # what is tried: nothing is waited for


def main(folder: str, schedule: str) -> None:
    config.load([], TINY_NETWORKS)
    with Experiment(
        **(small_settings(Path(folder)) | repeatable(schedule) | {"run_name": "killed", "callbacks": [Pause]})
    ) as experiment:
        experiment.start(resume="auto")
        experiment.learn()


if __name__ == "__main__":
    main(*sys.argv[1:])
