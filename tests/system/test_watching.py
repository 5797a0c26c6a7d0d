"""A run that is looked at in every way at once, on Ray: TensorBoard, callbacks, and `amago-ray status` beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from amago_ray import train
from amago_ray.rollout.evaluate import evaluate_policy
from amago_ray.watch.callbacks import Callback, JobProgress, KeepBestPolicy, RunView, ValidationVideo
from amago_ray.watch.metrics import AVERAGE_RETURN, read_metrics
from amago_ray.watch.run_status import RunStatus, run_status

ENV = "amago_ray/MetaFrozenLake-v0"


class Own(Callback):
    """Evaluates in three ways, and stops after the third epoch."""

    def after_validation(self, view: RunView) -> None:
        self.result = view.evaluate(ENV, episodes=4)
        spec, weights = view.policy()
        self.episodes = evaluate_policy(spec, weights, ENV, episodes=3)
        self.status = run_status(view.directory.root)
        if view.epoch == 2:
            view.stop("seen enough")


@pytest.mark.usefixtures("shared_processes")
def test_a_run_that_is_looked_at_in_every_way(
    make_experiment: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    own = Own()
    settings = {"make_train_env": ENV, "epochs": 6, "log_to_tensorboard": True, "ckpt_interval": 5, "val_interval": 1}
    settings |= {"train_timesteps_per_epoch": 60, "traj_save_len": 16, "num_replay_shards": 1, "num_rollout_workers": 1}
    callbacks = [own, KeepBestPolicy(), ValidationVideo(2), JobProgress(stdout=True)]
    experiment = make_experiment(**settings, callbacks=callbacks)
    experiment.learn()
    root = experiment.directory.root
    assert experiment.stop_reason == "seen enough" and experiment.directory.saved_epochs() == [0, 2]
    assert own.result["Total Episodes"] == 4 and len(own.episodes) == 3

    rows = read_metrics(root)
    check_tensorboard(root, rows)
    check_status(own.status)
    returns = [row[f"val/{AVERAGE_RETURN}"] for row in rows if row["section"] == "val"]
    about = json.loads((root / "ckpts" / "best" / "policy.json").read_text())
    assert about == {"epoch": int(np.argmax(returns)), "metric": "val/return", "value": max(returns)}
    best, latest = (torch.load(root / "ckpts" / name / "policy.pt", weights_only=True) for name in ("best", "latest"))
    assert best.keys() == latest.keys()

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 3]
    assert lines[-1]["state"] == "stopped" and lines[-1]["frames"] == 3 * 240 and lines[-1]["val_return"] == returns[-1]
    experiment.close()
    assert train.main(["status", str(root)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"state +stopped: seen enough", out) and re.search(r"saved states +after epoch 1, 3 ", out)
    assert re.search(r"replay +\d+ trajectories, \d+ timesteps", out)

    resumed = make_experiment(**settings | {"epochs": 4})
    resumed.start(resume=True)
    resumed.learn()
    check_tensorboard(root, read_metrics(root))
    assert not experiment.directory.stopped.exists()


def check_status(status: RunStatus) -> None:
    """While the run is in its third epoch, and its shard has the files open."""
    assert (status.state, status.epoch, status.epochs, status.frames) == ("running", 3, 6, 720)
    assert status.updates == 18 and status.saved == (1,) and status.age_s < 60
    assert status.frames_per_s and status.updates_per_s and status.val_return and status.val_return.epoch == 3
    assert status.replay is not None and len(status.replay) > 0


def check_tensorboard(root: Any, rows: list[dict[str, Any]]) -> None:
    """It shows the same as `metrics.jsonl`, and the videos that lie in the run's folder."""
    events = EventAccumulator(str(root / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    names = {name for row in rows for name, value in row.items() if "/" in name and value is not None}
    assert names <= set(events.Tags()["scalars"])
    for name in (f"val/{AVERAGE_RETURN}", "train/Total Loss", "collect/Frames per Second"):
        expected = [(row["total_frames"], pytest.approx(row[name])) for row in rows if row.get(name) is not None]
        assert expected and [(event.step, event.value) for event in events.Scalars(name)] == expected
    videos = events.Images("videos/validation")
    assert [video.step for video in videos] == [240, 720]
    for video, epoch in zip(videos, (0, 2), strict=True):
        path = root / "videos" / f"epoch_{epoch}.gif"
        assert video.encoded_image_string == path.read_bytes()
        assert Image.open(path).n_frames > 1
