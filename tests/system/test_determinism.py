"""A fixed seed gives the same run, metric for metric."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_cases import play

from amago_ray.envs.builtin import Counting
from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.replay.readers import EpisodeDataset
from amago_ray.watch.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("shared_processes")

# Numbers of the clock: how long things took, and what is computed from that.
CLOCK = ("wall_s", "per Second", "(fraction)")


def rows_without_clock(root: Path) -> list[dict[str, Any]]:
    """Everything that a run logged, but for times, rates and fractions of time."""
    return [{name: value for name, value in row.items() if not is_clock(name)} for row in read_metrics(root)]


def is_clock(name: str) -> bool:
    return any(word in name for word in CLOCK) and name != "train/Padding (fraction of batch)"


@pytest.mark.parametrize("schedule", ["alternate", "overlap"])
def test_the_same_seed_gives_the_same_metrics(make_experiment: Callable[..., Any], schedule: str) -> None:
    logged = []
    runs = [("first", 3), ("second", 3), ("other seed", 4)]
    for name, seed in runs if schedule == "alternate" else runs[:2]:
        with make_experiment(run_name=name, schedule=schedule, seed=seed) as experiment:
            experiment.learn()
        logged.append(rows_without_clock(experiment.directory.root))
    first, second, *others = logged
    sections = [row["section"] for row in first]
    assert sections.count("collect") == sections.count("train") == 3 and sections.count("val") == 2
    assert all(len(row) > 5 for row in first if row["section"] != "time"), "that section is of the clock alone"
    for a, b in zip(first, second, strict=True):
        assert a == b
    for other in others:
        differing = {name for a, b in zip(first, other, strict=True) for name in a if a[name] != b.get(name)}
        assert {"train/Total Loss", "train/Gradient Norm"} <= differing


class Cut(BaseException):
    """The driver is gone: nothing of it is written, told or brought to an end."""


def run_until_cut(experiment: Any, moment: int) -> bool:
    """Train, and vanish at the `moment`-th look at the processes. Returns whether the run was through before."""
    left = [moment]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Cut

    experiment.start(resume="auto")
    look = experiment._ring.check

    def check() -> None:
        look()
        count()

    experiment._ring.check = check
    try:
        experiment.learn()
    except Cut:
        return False
    finally:
        experiment.close()
    return True


@pytest.mark.parametrize("schedule", ["alternate", "overlap", "offline"])
def test_a_run_that_is_cut_again_and_again_is_the_run_that_never_was(
    make_experiment: Callable[..., Any], schedule: str
) -> None:
    """Weights and rows are equal bit for bit; where environments are reset with every epoch, which this asks for."""
    settings: dict[str, Any] = {
        "epochs": 8,
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
    whole = make_experiment(run_name="whole", **settings)
    assert run_until_cut(whole, 1 << 30)
    rng = np.random.default_rng(3)
    cuts = 0
    while not run_until_cut(cut := make_experiment(run_name="cut", **settings), int(rng.integers(1, 12))):
        cuts += 1
    assert cuts >= 3
    assert rows_without_clock(cut.directory.root) == rows_without_clock(whole.directory.root)
    for epoch in range(8):
        one, other = (torch.load(run.directory.policy_epoch(epoch), weights_only=True) for run in (whole, cut))
        assert all(torch.equal(value, other[name]) for name, value in one.items()), epoch
