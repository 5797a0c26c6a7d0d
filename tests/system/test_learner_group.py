"""Two learners train one agent: gradients and statistics are shared, so that both hold the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

from amago_ray.watch.metrics import read_metrics


def test_a_group_of_two_stays_one_agent(make_experiment: Callable[..., Any], tmp_path: Path) -> None:
    with make_experiment(
        num_learners=2,
        num_rollout_workers=1,
        num_replay_shards=1,
        learner_device="cpu",
        epochs=2,
        start_learning_at_epoch=1,
    ) as experiment:
        experiment.learn()
        before = experiment.agent_spec.build().state_dict()
        files = [tmp_path / f"learner_{rank}.pt" for rank in range(2)]
        for learner, file in zip(experiment._ring._topology._learners, files):
            ray.get(learner.save_agent.remote(str(file)))
    first, second = (torch.load(file, weights_only=True) for file in files)
    for name, value in first.items():  # weights, PopArt and input statistics alike
        torch.testing.assert_close(second[name], value, rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}")
    for name in ("policy.actor.base.out_layer.weight", "popart.mu", "policy.tstep_encoder.in_norm.mu"):
        assert not torch.equal(first[name], before[name]), name
    trained = [row for row in read_metrics(experiment.directory.root) if row["section"] == "train"]
    assert len(trained) == 1 and trained[0]["gradient_steps"] == 6
