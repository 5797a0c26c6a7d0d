"""What is checked before anything starts: one clear error per mistake, naming the setting, the value and the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import nn

from amago_ray.agent import Agent, AgentSpec
from amago_ray.config import nearest
from amago_ray.data import ActionSpec, ObsSpec
from amago_ray.envs.pool import check_env
from amago_ray.learner.learner import MixedPrecision
from amago_ray.nets.traj_encoders import TrajEncoder
from amago_ray.nets.tstep_encoders import CNNTstepEncoder, FFTstepEncoder, TstepEncoder
from amago_ray.replay.sampling import check_padded_sampling
from amago_ray.settings import ExperimentSettings, ScheduleName

AT_LEAST_ONE = (
    "max_seq_len",
    "parallel_actors",
    "train_timesteps_per_epoch",
    "batches_per_update",
    "batch_size",
    "epochs",
    "val_interval",
    "ckpt_interval",
    "num_replay_shards",
    "num_learners",
    "log_interval",
)
AT_LEAST_ZERO = ("train_batches_per_epoch", "lr_warmup_steps", "start_learning_at_epoch", "start_collecting_at_epoch")
POSITIVE_NUMBERS = ("learning_rate", "grad_clip", "replay_capacity_gb", "call_timeout_s")
OPTIONAL_AT_LEAST_ONE = (
    "val_timesteps_per_epoch",
    "traj_save_len",
    "num_rollout_workers",
    "replay_capacity_trajectories",
    "learner_cpus",
)


def check_settings(settings: ExperimentSettings) -> None:
    """Raises ValueError or TypeError for a value that can be seen to be wrong without starting anything."""
    for names, minimum in ((AT_LEAST_ONE, 1), (AT_LEAST_ZERO, 0), (OPTIONAL_AT_LEAST_ONE, 1)):
        for name in names:
            value = getattr(settings, name)
            if value is None and names is OPTIONAL_AT_LEAST_ONE:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
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
    _check_choice("schedule", settings.schedule, get_args(ScheduleName))
    _check_choice("mixed_precision", settings.mixed_precision, get_args(MixedPrecision))
    _check_choice("learner_device", settings.learner_device, ("auto", "cpu", "cuda"))
    _check_choice("rollout_device", settings.rollout_device, ("cpu", "cuda"))
    workers = settings.num_rollout_workers
    if workers is not None and workers > settings.parallel_actors:
        raise ValueError(
            f"Experiment.num_rollout_workers={workers}: there are only parallel_actors={settings.parallel_actors} "
            "environments to share"
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

    Returns how to build the agent. Raises what the environments raise, and ValueError where validation environments
    have other spaces than training environments.
    """
    obs_spec, action_spec, _ = check_env(settings.make_train_env)
    if settings.make_val_env is not settings.make_train_env:
        val_obs, val_action, _ = check_env(settings.make_val_env)
        if (val_obs, val_action) != (obs_spec, action_spec):
            raise ValueError(
                f"make_val_env has other spaces than make_train_env: {val_obs}, {val_action} "
                f"instead of {obs_spec}, {action_spec}"
            )
    spec = AgentSpec(
        obs_spec=obs_spec,
        action_spec=action_spec,
        max_seq_len=settings.max_seq_len,
        tstep_encoder_type=settings.tstep_encoder_type or infer_tstep_encoder(obs_spec),
        traj_encoder_type=settings.traj_encoder_type,
        agent_type=settings.agent_type,
        seed=settings.seed,
    )
    if settings.exploration_wrapper_type is not None:
        settings.exploration_wrapper_type(1, action_spec, settings.seed)
    _check_forward(spec.build(), obs_spec, action_spec)
    return spec


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
