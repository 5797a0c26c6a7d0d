"""The settings of an experiment: their names, types, defaults and meaning."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from amago_ray.agent import Agent
from amago_ray.envs.exploration import EpsilonGreedy, ExplorationWrapper
from amago_ray.envs.makers import MakeEnv
from amago_ray.learner.learner import MixedPrecision
from amago_ray.nets.traj_encoders import TformerTrajEncoder, TrajEncoder
from amago_ray.nets.tstep_encoders import TstepEncoder
from amago_ray.replay.datasets.dataset import MixtureOfDatasets, RLDataset
from amago_ray.replay.sampling.relabeling import Relabeler
from amago_ray.replay.sampling.selection import SamplingMode
from amago_ray.replay.sampling.slices import PaddedSampling
from amago_ray.run_directory import RunDirectory
from amago_ray.watch.metrics import WandbOptions

BatchLayout = Literal["padded", "packed", "bucketed"]
ScheduleName = Literal["auto", "alternate", "overlap", "continuous"]


@dataclass
class ExperimentSettings:
    """Every setting of an experiment, with its default.

    Task
        run_name: folder of the run, under ckpt_base_dir.
        make_train_env, make_val_env: a gymnasium id, a function that returns a gymnasium.Env or VectorEnv, a pair of
            either and a dict of its arguments, such as ("Meta-World/MT1", {"env_name": "reach-v3"}), or a list of
            these, which take turns from rollout to rollout so that each is played equally often. Validation uses the
            training environments' makers by default.
        max_seq_len: longest training sequence and the Transformer's context, in timesteps.
        ckpt_base_dir: where runs are kept.
        action_mask_key: name of an observation that says which actions are legal: nonzero for each category that may be
            chosen, those of a MultiDiscrete action end to end. Exploration, random policies, the check before the start
            and a masked actor obey it; None for no mask.
    Agent
        tstep_encoder_type: by default a CNN for a single image, else `FFTstepEncoder`.
        traj_encoder_type, agent_type: the sequence model and the learning algorithm.
    Each epoch
        epochs: how many. parallel_actors: environments, over all workers.
        train_timesteps_per_epoch: steps in each of them. val_timesteps_per_epoch: the same in validation, within which
            rollouts are begun (each is played to its end, for at most as many steps again); None plays one rollout in
            each environment, and one of each task where these are more.
        force_reset_train_envs_every: epochs between two resets of all training environments, whose unfinished rollouts
            are stored as truncated; None lets rollouts end by themselves.
        train_batches_per_epoch: batches that each learner takes. batches_per_update: gradient accumulation.
        batch_size: sequences per batch and learner.
        start_learning_at_epoch, start_collecting_at_epoch: first epoch that does either.
        val_interval, ckpt_interval: epochs between validations, and between saved training states.
        test_episodes: rollouts of the comparison with a random policy that ends a run of the command line; 0 for none.
            test_max_timesteps: of all of its environments together, for either policy; None for no limit.
    Data
        traj_save_len: longest stored trajectory, in timesteps; by default 8 x max_seq_len; 1e10 stores whole rollouts.
            stagger_traj_file_lengths: cut longer ones at random lengths, uniform in traj_save_len -+ max_seq_len,
            so that sequences can start everywhere; off by default, where AMAGO's code has it on.
            padded_sampling: "none", "both", "left" or "right" (see `replay.sampling`).
            replay_capacity_gb: over all shards. replay_capacity_trajectories: likewise; None for no limit.
        replay_sampling: "trajectories" or "timesteps", uniform over either; "recent", where the chance of a trajectory
            halves every replay_half_life epochs; "prioritized" by the critics' error ** priority_exponent, with losses
            weighted by importance ** importance_exponent (see `replay.selection`).
        replay_durable: keep the data in files, so that a shard that dies and a run that is resumed have them again.
            replay_dir: of these files; None for the run's own folder. replay_fsync_interval_s: what a loss of power
            may cost. replay_compression: names of observation arrays stored compressed (lz4), for images.
        dataset: data to learn from beside or in place of what is collected: an `RLDataset`, or a `MixtureOfDatasets`
            with weights (see `replay.datasets`). None learns from what is collected; without `OnlineReplay` in the
            mixture, and with a lone dataset, nothing is collected.
        relabeler_type: makes the `Relabeler` that changes trajectories as they are sampled; None for none.
        batch_layout: of sequences of different lengths: "padded" to the longest of the batch; "packed" end to end,
            which spares the work that goes into padding; "bucketed", padded, but among sequences of similar lengths
            out of a larger draw, for networks of your own that cannot be packed.
    Optimiser
        learning_rate, lr_warmup_steps (linear, in updates), grad_clip (norm), l2_coeff (AdamW's weight decay),
        mixed_precision: "no", "bf16" or "fp16".
    Acting
        exploration_wrapper_type: None for none. sample_actions_train, sample_actions_val: draw actions from the policy,
        or take its mode.
    Logging
        log_to_wandb, wandb_project, wandb_entity, wandb_group_name, wandb_mode ("online", "offline").
        log_interval: batches between two that are measured in detail. verbose: show progress. seed: of everything.
    Distribution
        num_rollout_workers: processes that share the environments; by default one per free core, at most one per
            8 environments. Those for which a cluster has no room yet join when nodes come. num_replay_shards,
            num_learners: processes. learner_device: "auto" takes a GPU where there is one. rollout_device: "cpu" or
            "cuda". learner_cpus: cores of one learner; by default those that the workers leave free on a machine of
            its own, 1 on a cluster.
        learner_nodes, rollout_nodes: Ray's label selectors of the nodes for learners with shards, and for rollout
            workers, such as {"pool": "rollout"}; None takes the nodes labelled pool=learner and pool=rollout where
            there are any, and else all; {} takes all. A run on this machine alone ignores them.
        schedule: "alternate" collects, then learns; "overlap" learns while the next epoch's data come in; "auto" is
            "overlap" where the learner has a GPU of its own. "continuous" does both freely, within a ratio:
            updates_per_timestep, of optimiser steps to timesteps collected; by default that of an epoch.
            replay_min_timesteps: stored before learning begins. rate_tolerance: by how many epochs' worth of timesteps
            either side may be ahead of the ratio.
        ray_address: None is the cluster that the job was submitted to, else a Ray of its own on this machine.
        call_timeout_s: a process that is silent for so long counts as hung and is restarted.
    """

    run_name: str
    make_train_env: MakeEnv
    max_seq_len: int
    make_val_env: MakeEnv = None  # type: ignore[assignment]  # None stands for the training environments' makers
    ckpt_base_dir: str | os.PathLike[str] = "runs"
    action_mask_key: str | None = None

    tstep_encoder_type: type[TstepEncoder] | None = None
    traj_encoder_type: type[TrajEncoder] = TformerTrajEncoder
    agent_type: type[Agent] = Agent

    epochs: int = 1000
    parallel_actors: int = 12
    train_timesteps_per_epoch: int = 1000
    val_timesteps_per_epoch: int | None = None
    train_batches_per_epoch: int = 1000
    batches_per_update: int = 1
    batch_size: int = 24
    start_learning_at_epoch: int = 0
    start_collecting_at_epoch: int = 0
    val_interval: int = 20
    ckpt_interval: int = 50
    force_reset_train_envs_every: int | None = None
    test_episodes: int = 200
    test_max_timesteps: int | None = 50_000

    traj_save_len: float | None = None  # a whole number
    stagger_traj_file_lengths: bool = False
    padded_sampling: PaddedSampling = "none"
    replay_capacity_gb: float = 4.0
    replay_capacity_trajectories: int | None = None
    replay_sampling: SamplingMode = "trajectories"
    replay_half_life: float = 100.0
    priority_exponent: float = 0.6
    importance_exponent: float = 0.4
    replay_durable: bool = True
    replay_dir: str | os.PathLike[str] | None = None
    replay_fsync_interval_s: float = 10.0
    replay_compression: tuple[str, ...] = ()
    dataset: RLDataset | MixtureOfDatasets | None = None
    relabeler_type: Callable[[], Relabeler] | None = None
    batch_layout: BatchLayout = "padded"

    learning_rate: float = 1e-4
    lr_warmup_steps: int = 500
    grad_clip: float = 1.0
    l2_coeff: float = 1e-3
    mixed_precision: MixedPrecision = "no"

    exploration_wrapper_type: Callable[..., ExplorationWrapper] | None = EpsilonGreedy
    sample_actions_train: bool = True
    sample_actions_val: bool = True

    log_to_wandb: bool = False
    wandb_project: str = "amago_ray"
    wandb_entity: str | None = None
    wandb_group_name: str | None = None
    wandb_mode: Literal["online", "offline"] | None = None
    log_interval: int = 20
    verbose: bool = True
    seed: int = 0

    num_rollout_workers: int | None = None
    num_replay_shards: int = 1
    num_learners: int = 1
    learner_device: Literal["auto", "cpu", "cuda"] = "auto"
    rollout_device: Literal["cpu", "cuda"] = "cpu"
    learner_cpus: int | None = None
    learner_nodes: dict[str, str] | None = None
    rollout_nodes: dict[str, str] | None = None
    schedule: ScheduleName = "auto"
    updates_per_timestep: float | None = None
    replay_min_timesteps: int = 0
    rate_tolerance: float = 1.0
    ray_address: str | None = None
    call_timeout_s: float = 600.0


def replay_folder(settings: ExperimentSettings) -> Path:
    """Where a run keeps what it has collected."""
    if settings.replay_dir is None:
        return RunDirectory(settings.ckpt_base_dir, settings.run_name).replay
    return Path(settings.replay_dir).expanduser().resolve() / settings.run_name


def wandb_options(settings: ExperimentSettings, run_id: str | None) -> WandbOptions | None:
    """Where a run is logged on wandb, None for nowhere. run_id: of the run that it continues."""
    if not settings.log_to_wandb:
        return None
    return WandbOptions(
        project=settings.wandb_project,
        entity=settings.wandb_entity,
        group=settings.wandb_group_name,
        name=settings.run_name,
        mode=settings.wandb_mode,
        run_id=run_id,
    )
