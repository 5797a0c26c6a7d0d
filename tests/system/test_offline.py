"""Offline, offline-to-online, collect-only and evaluate-only: each by settings alone, on Ray."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dataset_cases
import gin
import gymnasium as gym
import numpy as np
import pytest
from conftest import TINY_NETWORKS
from small_agents import small_agent_spec, with_gammas

from amago_ray import config, train
from amago_ray.envs.builtin import Counting, Identity, TMaze
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.learner.provenance import NonFiniteUpdate
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.replay.client import LocalShard, ReplayReader
from amago_ray.replay.datasets.dataset import Episode, MixtureOfDatasets, OnlineReplay, RLDataset, RowLayout
from amago_ray.replay.readers import EpisodeDataset, StoredDataset
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.rollout.evaluate import evaluate_policy
from amago_ray.watch.metrics import read_metrics
from amago_ray.watch.run_status import run_status

COUNTING = partial(Counting, 6)  # what `make_experiment` trains on


def random_episodes(make_env: Callable[[], gym.Env], num: int = 4) -> list[Episode]:
    env = make_env()
    env.action_space.seed(0)
    return dataset_cases.play(env, lambda observation: env.action_space.sample(), num)


class Later(RLDataset):
    """Not ready before a file is there."""

    def __init__(self, path: Path):
        self.path, self.episodes = path, random_episodes(COUNTING)

    def __len__(self) -> int:
        return len(self.episodes) if self.path.exists() else 0

    def episode(self, index: int) -> Episode:
        return self.episodes[index]


class Spoilt(Later):
    """Four good rollouts, and once the file is there four with a reward that stands for minus infinity."""

    def __len__(self) -> int:
        return 8 if self.path.exists() else 4

    def episode(self, index: int) -> Episode:
        good = self.episodes[index % 4]
        return good if index < 4 else replace(good, rewards=[0.0, 0.0, -1e18, *good.rewards[3:]])


def rows(experiment: Any, section: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(experiment.directory.root) if row["section"] == section]


def test_offline_learns_what_the_data_do_not_show() -> None:
    """Identity from random actions, of which a quarter are right: the learner finds which, and never acts itself."""
    config.load([], [*with_gammas(0.5)])
    make_env = partial(Identity, "discrete", 4)
    layout = RowLayout(make_env().observation_space, make_env().action_space)
    data = EpisodeDataset(random_episodes(make_env, 400))
    assert np.mean([sum(episode.rewards) for episode in data.episodes]) < 0.35
    encoder = partial(GRUTrajEncoder, d_hidden=32, n_layers=1, d_output=32)
    agent = {"online_coeff": 0.0, "offline_coeff": 1.0, "gamma": 0.9, "tau": 0.01}
    spec = small_agent_spec(make_env, encoder, max_seq_len=4, **agent)
    shards = [ReplayShard(ReplayConfig(4), i, [data.source(layout, i, 2)]) for i in range(2)]
    reader = ReplayReader([LocalShard(shard) for shard in shards], batch_size=24, seed=0)
    learner = Learner(LearnerConfig(learning_rate=2e-3, lr_warmup_steps=20), spec, reader)
    best = 0.0
    for version in range(24):
        learner.train(40, mixture=(0.0, 1.0))
        results = evaluate_policy(spec, learner.publish(version), make_env, 200, 1, False, num_envs=100)
        best = max(best, float(np.mean([result.total_reward for result in results])))
        if best >= 0.95:
            break
    assert best >= 0.95


@pytest.mark.usefixtures("shared_processes")
def test_offline_to_online(make_experiment: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing at first, then a dataset, then what is collected: every epoch learns from what there is."""
    ready = tmp_path / "ready"
    mixture = MixtureOfDatasets(
        (Later(ready), OnlineReplay()), weights=(1.0, 0.0), final_weights=(0.0, 1.0), anneal_epochs=(2, 3)
    )
    experiment = make_experiment(
        dataset=mixture, start_collecting_at_epoch=2, epochs=4, schedule="overlap", num_rollout_workers=1
    )
    experiment.learn(until=1)
    ready.touch()
    experiment.learn()
    assert [row["epoch"] for row in rows(experiment, "train")] == [1, 2, 3]
    assert [row["epoch"] for row in rows(experiment, "collect")] == [2, 3]
    sampled = [row["replay/Sequences Sampled"] for row in rows(experiment, "replay")]
    of_an_epoch = experiment.train_batches_per_epoch * experiment.batch_size * experiment.num_learners
    assert sampled == [0, of_an_epoch, 2 * of_an_epoch, 3 * of_an_epoch]


@pytest.mark.usefixtures("shared_processes")
def test_an_update_that_overflows_ends_the_run_and_spares_the_saved_policy(
    make_experiment: Callable[..., Any], tmp_path: Path
) -> None:
    data = Spoilt(tmp_path / "spoilt")
    experiment = make_experiment(dataset=data, num_rollout_workers=1, num_replay_shards=1)
    experiment.learn(until=1)
    before = experiment.directory.latest_policy.read_bytes()
    data.path.touch()
    with pytest.raises(NonFiniteUpdate, match=r"reward -1e\+18 at timestep 2 of trajectory [4-7] \(shard 0"):
        experiment.learn()
    assert experiment.directory.latest_policy.read_bytes() == before
    assert experiment.directory.saved_epochs() == [0]
    status = run_status(experiment.directory.root)
    assert status.state == "failed" and "at timestep 2 of trajectory" in str(status.reason)


@pytest.mark.usefixtures("shared_processes")
def test_collect_only_then_learn_from_what_was_stored(make_experiment: Callable[..., Any]) -> None:
    first = make_experiment(run_name="first", train_batches_per_epoch=0, num_rollout_workers=1)
    first.learn()
    assert not rows(first, "train") and len(rows(first, "collect")) == 3
    stored = rows(first, "replay")[-1]["replay/Trajectories"]
    first.close()
    data = StoredDataset(first.directory.replay, sampling="timesteps")
    assert len(data) == stored > 0
    # A lone dataset is all that is learned from: nothing is collected, whatever the other settings say.
    second = make_experiment(run_name="second", dataset=data, num_replay_shards=1, num_rollout_workers=1)
    second.learn()
    assert not rows(second, "collect") and rows(second, "replay")[-1]["replay/Trajectories"] == 0
    assert [row["gradient_steps"] for row in rows(second, "train")] == [6, 12, 18]
    assert {row["total_frames"] for row in rows(second, "train")} == {0}
    assert [row["epoch"] for row in rows(second, "val")] == [0, 2]


@pytest.mark.usefixtures("shared_processes")
def test_evaluate_only(make_experiment: Callable[..., Any]) -> None:
    experiment = make_experiment(train_timesteps_per_epoch=0, train_batches_per_epoch=0, epochs=1, num_replay_shards=1)
    experiment.learn()
    assert {row["section"] for row in read_metrics(experiment.directory.root)} <= {"val", "replay"}
    (val,) = rows(experiment, "val")
    assert val["total_frames"] == val["gradient_steps"] == 0


def test_contradictions_are_refused(make_experiment: Callable[..., Any]) -> None:
    for changes, message in [
        ({"train_timesteps_per_epoch": 0}, "nothing to learn from.*train_timesteps_per_epoch=0.*StoredDataset"),
        ({"start_collecting_at_epoch": 3}, "nothing to learn from.*start_collecting_at_epoch=3 of epochs=3"),
        ({"train_timesteps_per_epoch": -1}, "train_timesteps_per_epoch=-1: it must be an integer of 0 or more"),
        ({"dataset": EpisodeDataset(random_episodes(COUNTING)), "schedule": "continuous"}, "schedule='continuous'"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_experiment(**changes)
    with pytest.raises(TypeError, match=r"Experiment.dataset='data/x': it must be an RLDataset"):
        make_experiment(dataset="data/x")
    other = make_experiment(dataset=EpisodeDataset(random_episodes(partial(TMaze, 3))))
    with pytest.raises(
        ValueError, match="EpisodeDataset, trajectory 0: observation 0: observation 'env_id' is missing"
    ):
        other.start()
    assert not other.directory.exists()


CONFIG = (
    *TINY_NETWORKS,
    "Experiment.run_name = 'cart'",
    "Experiment.make_train_env = 'CartPole-v1'",
    "Experiment.traj_encoder_type = @GRUTrajEncoder",
    "Experiment.max_seq_len = 4",
    "Experiment.parallel_actors = 2",
    "Experiment.train_batches_per_epoch = 2",
    "Experiment.train_timesteps_per_epoch = 16",
    "Experiment.batch_size = 4",
    "Experiment.epochs = 2",
    "Experiment.replay_capacity_gb = 0.02",
    "Experiment.dataset = @MixtureOfDatasets()",
    "MixtureOfDatasets.sources = (@OnlineReplay(), @MinariDataset(), @StoredDataset())",
    "MixtureOfDatasets.weights = (1, 1, 2)",
    "MinariDataset.dataset = 'cart/random-v0'",
    "StoredDataset.path = 'imported'",
)


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A Minari dataset, imported and as it is, beside what is collected: all from one configuration."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    dataset_cases.write_minari(
        gym.make("CartPole-v1"), random_episodes(partial(gym.make, "CartPole-v1")), "cart/random-v0"
    )
    Path("cart.gin").write_text("\n".join(CONFIG) + "\n")
    assert train.main(["--config", "cart.gin"]) == 2
    assert re.fullmatch(r".*StoredDataset.path='.*imported': no trajectories are stored.*\n", capsys.readouterr().err)
    gin.clear_config()
    assert train.main(["import-data", "cart/random-v0", "--out", "imported", "--config", "cart.gin"]) == 0
    assert "4 trajectories" in capsys.readouterr().out
    command = [sys.executable, "-m", "amago_ray.train", "--config", "cart.gin", "--no-final-test"]
    trained = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert trained.returncode == 0, trained.stderr
    assert re.search(r"epoch 2/2  frames +64  updates +4", trained.stdout), trained.stdout
