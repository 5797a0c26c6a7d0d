"""A run in one process, without Ray: worker, shard and learner take turns, as with Experiment.schedule = "alternate".

    python -m results.in_process --config configs/control/pendulum.gin --config ...

takes the configurations of `amago-ray` and leaves the same folder behind, less what resuming needs. One core trains one
seed, the same again with the same seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from amago_ray.commands.command_line import load_experiment, settings_options
from amago_ray.driver.placement import Cluster, Node, Resources
from amago_ray.driver.plan import make_plan
from amago_ray.driver.probe import probe
from amago_ray.driver.resume import create_folder
from amago_ray.envs.makers import env_spaces
from amago_ray.experiment import Experiment
from amago_ray.learner.learner import Learner
from amago_ray.replay.client import LocalShard, ReplayReader, ReplayWriter
from amago_ray.replay.datasets import RowLayout
from amago_ray.replay.sampling.sources import ReplayEmpty
from amago_ray.replay.shard import ReplayShard
from amago_ray.rollout.evaluate import evaluate_policy
from amago_ray.rollout.worker import RolloutWorker
from amago_ray.watch.metrics import MetricsLog, Progress, summarize_episodes

ONE_CORE = Resources(cpus=1.0)
HERE = Cluster(cpus=1, nodes=(Node("here", ONE_CORE, ONE_CORE),), local=True)
VALIDATION_EPISODES = 20


def main() -> None:
    """Train what the configurations say."""
    options = parser().parse_args()
    torch.set_num_threads(1)
    train(load_experiment(options.config, options.set))


def parser() -> argparse.ArgumentParser:
    """Of the options."""
    return argparse.ArgumentParser(
        prog="python -m results.in_process", description="train in one process", parents=[settings_options()]
    )


def train(experiment: Experiment) -> None:
    """All epochs of an experiment, into a new folder in place of what is there."""
    experiment = replace(experiment, num_rollout_workers=1, replay_durable=False)
    spec = probe(experiment)
    plan = make_plan(experiment, spec, HERE)
    experiment.directory.remove()
    create_folder(experiment, experiment.directory, RowLayout(*env_spaces(experiment.make_train_env)))
    shard = ReplayShard(plan.replay, 0)
    writer = ReplayWriter([LocalShard(shard)])
    worker = RolloutWorker(plan.rollout[0], spec, write=writer.write, flush=lambda: _flush(writer))
    learner = Learner(plan.learner, spec, ReplayReader([LocalShard(shard)], plan.batch_size, experiment.seed))
    log = MetricsLog(experiment.directory.root, resume=False)
    progress, started = Progress(epoch=-1), time.monotonic()

    def say(section: str, values: Mapping[str, float]) -> None:
        progress.wall_s = time.monotonic() - started
        log.log(section, values, progress)

    for epoch in range(experiment.epochs):
        progress.epoch = epoch
        weights = learner.publish(epoch + 1)
        worker.set_weights(weights)
        collected = worker.collect(experiment.train_timesteps_per_epoch * experiment.parallel_actors)
        progress.add_frames(collected.frames_by_env)
        shard.commit()
        say("collect", summarize_episodes(collected.episodes))
        try:
            learned = learner.train(experiment.train_batches_per_epoch)
        except ReplayEmpty as empty:
            print(f"epoch {epoch} learns nothing: {empty}", flush=True)
        else:
            progress.gradient_steps = learned.total_updates
            say("train", learned.metrics)
        if experiment.is_due(epoch, experiment.val_interval):
            weights = learner.publish(epoch + 1)
            played = evaluate_policy(
                spec,
                weights,
                experiment.make_val_env,
                VALIDATION_EPISODES,
                plan.validation[0].seed + epoch,
                experiment.sample_actions_val,
                VALIDATION_EPISODES,
            )
            say("val", summarize_episodes(played))
            learner.save_agent(str(experiment.directory.latest_policy))
    log.close()


def _flush(writer: ReplayWriter) -> float:
    writer.flush()
    return writer.wait_s


if __name__ == "__main__":
    main()
