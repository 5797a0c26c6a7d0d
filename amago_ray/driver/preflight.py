"""What is checked before anything starts: one clear error per mistake, naming the setting, the value and the remedy."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from amago_ray.agent import Agent
from amago_ray.agent.spec import AgentSpec
from amago_ray.config import nearest
from amago_ray.envs.makers import check_env, env_spaces
from amago_ray.learner.learner import MixedPrecision
from amago_ray.nets.traj_encoders import TrajEncoder
from amago_ray.nets.tstep_encoders import CNNTstepEncoder, FFTstepEncoder, TstepEncoder
from amago_ray.replay.datasets.dataset import MixtureOfDatasets, RLDataset, RowLayout, mixture_of
from amago_ray.replay.sampling.selection import SelectionConfig
from amago_ray.replay.sampling.slices import check_padded_sampling
from amago_ray.run_directory import RunDirectory
from amago_ray.settings import BatchLayout, ExperimentSettings, ScheduleName, replay_folder
from amago_ray.specs import ActionSpec, ObsSpec

AT_LEAST_ONE = (
    "max_seq_len",
    "parallel_actors",
    "batches_per_update",
    "batch_size",
    "epochs",
    "val_interval",
    "ckpt_interval",
    "num_replay_shards",
    "num_learners",
    "log_interval",
)
AT_LEAST_ZERO = (
    "train_timesteps_per_epoch",
    "train_batches_per_epoch",
    "lr_warmup_steps",
    "start_learning_at_epoch",
    "start_collecting_at_epoch",
    "replay_min_timesteps",
    "test_episodes",
)
POSITIVE_NUMBERS = (
    "learning_rate",
    "grad_clip",
    "replay_capacity_gb",
    "replay_fsync_interval_s",
    "rate_tolerance",
    "call_timeout_s",
)
OPTIONAL_AT_LEAST_ONE = (
    "val_timesteps_per_epoch",
    "traj_save_len",
    "num_rollout_workers",
    "replay_capacity_trajectories",
    "learner_cpus",
    "force_reset_train_envs_every",
    "test_max_timesteps",
)


def check_settings(settings: ExperimentSettings) -> None:
    """Raises ValueError or TypeError for a value that can be seen to be wrong without starting anything."""
    for names, minimum in ((AT_LEAST_ONE, 1), (AT_LEAST_ZERO, 0), (OPTIONAL_AT_LEAST_ONE, 1)):
        for name in names:
            value = getattr(settings, name)
            if value is None and names is OPTIONAL_AT_LEAST_ONE:
                continue
            # AMAGO's traj_save_len is 1e10.
            may_be_float = name == "traj_save_len" and isinstance(value, float)
            whole = value.is_integer() if may_be_float else isinstance(value, int)
            if not whole or isinstance(value, bool) or value < minimum:
                raise ValueError(f"Experiment.{name}={value!r}: it must be an integer of {minimum} or more")
    for name in POSITIVE_NUMBERS:
        value = getattr(settings, name)
        if not isinstance(value, (int, float)) or value <= 0:
            raise ValueError(f"Experiment.{name}={value!r}: it must be a number above 0")
    if not settings.run_name or "/" in settings.run_name:
        raise ValueError(f"Experiment.run_name={settings.run_name!r}: it names a folder, so it takes text without '/'")
    _check_class("tstep_encoder_type", settings.tstep_encoder_type, TstepEncoder, optional=True)
    _check_class("traj_encoder_type", settings.traj_encoder_type, TrajEncoder)
    _check_class("agent_type", settings.agent_type, Agent)
    check_padded_sampling(settings.padded_sampling)
    _check_sources(settings)
    SelectionConfig(settings.replay_sampling, settings.replay_half_life, settings.priority_exponent)
    if not 0 <= settings.importance_exponent <= 1:
        raise ValueError(f"Experiment.importance_exponent={settings.importance_exponent!r}: it lies in [0, 1]")
    if settings.updates_per_timestep is not None and settings.updates_per_timestep <= 0:
        raise ValueError(
            f"Experiment.updates_per_timestep={settings.updates_per_timestep!r}: it must be above 0, or None for the "
            "ratio of an epoch"
        )
    _check_choice("schedule", settings.schedule, get_args(ScheduleName))
    _check_choice("batch_layout", settings.batch_layout, get_args(BatchLayout))
    _check_choice("mixed_precision", settings.mixed_precision, get_args(MixedPrecision))
    _check_choice("learner_device", settings.learner_device, ("auto", "cpu", "cuda"))
    _check_choice("rollout_device", settings.rollout_device, ("cpu", "cuda"))
    workers = settings.num_rollout_workers
    if workers is not None and workers > settings.parallel_actors:
        raise ValueError(
            f"Experiment.num_rollout_workers={workers}: there are only parallel_actors={settings.parallel_actors} "
            "environments to share"
        )


def _check_sources(settings: ExperimentSettings) -> None:
    """Raises TypeError, ValueError for a run that would learn and never have anything to learn from."""
    if settings.dataset is not None and not isinstance(settings.dataset, RLDataset | MixtureOfDatasets):
        raise TypeError(
            f"Experiment.dataset={settings.dataset!r}: it must be an RLDataset, such as @MinariDataset(), "
            "or @MixtureOfDatasets()"
        )
    mixture = mixture_of(settings.dataset)
    learns = settings.train_batches_per_epoch > 0 and settings.start_learning_at_epoch < settings.epochs
    collects = settings.train_timesteps_per_epoch > 0 and settings.start_collecting_at_epoch < settings.epochs
    if settings.schedule == "continuous" and not (collects and mixture.learns_from_replay):
        raise ValueError(
            "Experiment.schedule='continuous' paces learning by what is collected, and nothing is: take 'alternate' to "
            "learn from a dataset alone"
        )
    if learns and not collects and not mixture.datasets:
        raise ValueError(
            f"there is nothing to learn from: Experiment.train_timesteps_per_epoch="
            f"{settings.train_timesteps_per_epoch} and start_collecting_at_epoch={settings.start_collecting_at_epoch} "
            f"of epochs={settings.epochs} collect nothing; give Experiment.dataset, such as StoredDataset for what "
            "another run has collected, or set train_batches_per_epoch=0 only to evaluate"
        )


def _check_class(name: str, value: Any, base: type, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not (inspect.isclass(value) and issubclass(value, base)):
        known = [c.__name__ for c in _subclasses(base)]
        hint = nearest(value, known) if isinstance(value, str) else f"; known: {', '.join(sorted(known))}"
        raise TypeError(f"Experiment.{name}={value!r}: it must be a subclass of {base.__name__}{hint}")


def _subclasses(base: type) -> list[type]:
    found = [] if inspect.isabstract(base) else [base]
    child: type
    for child in base.__subclasses__():
        found += _subclasses(child)
    return found


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"Experiment.{name}={value!r}: use one of {', '.join(map(repr, choices))}")


def infer_tstep_encoder(obs_spec: ObsSpec) -> type[TstepEncoder]:
    """A CNN for observations that are one image, the feed-forward encoder for all others."""
    specs = list(obs_spec.values())
    return CNNTstepEncoder if len(specs) == 1 and len(specs[0].shape) == 3 else FFTstepEncoder


def probe(settings: ExperimentSettings) -> AgentSpec:
    """Try the environments, the networks and the exploration once, here, where errors are easy to read.

    Returns how to build the agent. Raises what the environments raise, and ValueError where validation environments or
    datasets have other spaces than training environments.
    """
    mask = settings.action_mask_key
    obs_spec, action_spec, _ = check_env(settings.make_train_env, action_mask_key=mask)
    if settings.make_val_env is not settings.make_train_env:
        like = env_spaces(settings.make_train_env)
        check_env(settings.make_val_env, action_mask_key=mask, like=like)
    _check_compression(settings.replay_compression, obs_spec)
    spec = AgentSpec(
        obs_spec=obs_spec,
        action_spec=action_spec,
        max_seq_len=settings.max_seq_len,
        tstep_encoder_type=settings.tstep_encoder_type or infer_tstep_encoder(obs_spec),
        traj_encoder_type=settings.traj_encoder_type,
        agent_type=settings.agent_type,
        seed=settings.seed,
    )
    datasets = mixture_of(settings.dataset).datasets
    if datasets:
        layout = RowLayout(*env_spaces(settings.make_train_env))
        for dataset in datasets:
            dataset.check(layout)
    if settings.exploration_wrapper_type is not None:
        settings.exploration_wrapper_type(1, action_spec, settings.seed)
    _check_forward(spec.build(), obs_spec, action_spec)
    return spec


def _check_compression(names: tuple[str, ...], obs_spec: ObsSpec) -> None:
    if isinstance(names, str):
        raise ValueError(f"Experiment.replay_compression={names!r}: write a tuple of names, {(names,)!r}")
    for name in names:
        if name not in obs_spec:
            raise ValueError(
                f"Experiment.replay_compression={names!r}: no observation is named {name!r}{nearest(name, obs_spec)}"
            )
    if names and importlib.util.find_spec("lz4") is None:
        raise ValueError(
            f"Experiment.replay_compression={names!r} needs the package lz4: pip install 'amago_ray[compression]'"
        )


def _check_forward(agent: Agent, obs_spec: ObsSpec, action_spec: ActionSpec) -> None:
    """One acting step on zeros: networks that do not fit together fail here and not in a remote process."""
    policy = agent.policy.eval()
    obs = {name: torch.zeros(1, *s.shape, dtype=getattr(torch, s.dtype)) for name, s in obs_spec.items()}
    rl2 = torch.zeros(1, 1 + action_spec.vector_size)
    policy.act(obs, rl2, torch.zeros(1, dtype=torch.long), policy.initial_memory(1), sample=True)


def weight_shapes(agent: nn.Module) -> dict[str, list[int]]:
    """Name -> shape of every weight, to be kept with a training state."""
    return {name: list(value.shape) for name, value in agent.state_dict().items()}


def check_same_weights(saved: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> None:
    """Raises ValueError, naming a weight, when a saved run was of another architecture than is configured now."""
    for name in sorted(saved.keys() | now.keys()):
        if saved.get(name) != now.get(name):
            before, after = (tuple(x[name]) if name in x else "absent" for x in (saved, now))
            raise ValueError(
                f"resume: the configuration no longer matches the saved weights: {name} was {before}, now {after}; "
                "resume with the run's own config.txt, or choose another run_name"
            )


def check_same_shards(folder: Path, num_shards: int) -> None:
    """Raises ValueError when a run to be resumed has stored its data in another number of replay shards."""
    found = len(list(folder.glob("shard_*")))
    if found not in (0, num_shards):
        raise ValueError(
            f"Experiment.num_replay_shards={num_shards}: this run has stored its data in {found} shards in {folder}; "
            f"resume it with num_replay_shards={found}"
        )


def is_begun(settings: ExperimentSettings, directory: RunDirectory) -> bool:
    """Whether a run of this name has trained, or at least stored data, before."""
    return directory.exists() or any(replay_folder(settings).glob("shard_*/*.segment"))


def check_folder(
    settings: ExperimentSettings, directory: RunDirectory, agent_spec: AgentSpec, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """The state to resume from, empty where the run starts anew.

    Raises ValueError where it may not: the folder cannot be written, holds a run already, or none that fits.
    """
    directory.check_writable()
    saved = directory.saved_epochs()
    if resume and not saved:
        raise ValueError(
            f"resume: {directory.root} holds no complete training state; "
            "check run_name and ckpt_base_dir, or start without resume"
        )
    if is_begun(settings, directory) and not resume and not overwrite:
        raise ValueError(
            f"{directory.root} already holds a run: resume it (--resume), overwrite it (--overwrite), "
            "or choose another run_name"
        )
    state = directory.load_run_state(saved[-1]) if resume else {}
    if state:
        check_same_weights(state["weight_shapes"], weight_shapes(agent_spec.build()))
        check_same_shards(replay_folder(settings), settings.num_replay_shards)
    return state
