"""What is tried before anything starts: the settings together, the environments, the networks, the data sets."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from amago_ray import config
from amago_ray.agent import Agent
from amago_ray.agent.spec import AgentSpec
from amago_ray.config import nearest
from amago_ray.config.value_checks import check_made
from amago_ray.driver.probes.exploration import check_exploration
from amago_ray.driver.probes.networks import check_acting, check_has_sizes, check_loss
from amago_ray.driver.probes.parts import check_parts
from amago_ray.driver.probes.published import check_published
from amago_ray.driver.probes.relabelers import check_relabeler
from amago_ray.driver.probes.sequences import check_steps
from amago_ray.driver.time_limit import time_limit
from amago_ray.envs.exploration import ExplorationWrapper
from amago_ray.envs.first_rollout import FirstRollout
from amago_ray.envs.makers import check_env, env_spaces
from amago_ray.envs.pool import MAX_FAILURES_IN_A_ROW
from amago_ray.nets.mixed_encoder import default_tstep_encoder
from amago_ray.replay.datasets.dataset import MixtureOfDatasets, RowLayout, TrajectoryDataset, mixture_of
from amago_ray.replay.sampling.relabeling import Relabeler
from amago_ray.replay.sampling.selection import SelectionConfig
from amago_ray.settings import ExperimentSettings, check_values, env_processes
from amago_ray.specs import ObsSpec


def check_settings(settings: ExperimentSettings) -> None:
    """Raises ValueError or TypeError for what can be seen to be wrong without starting or making anything."""
    if isinstance(settings.ray_address, str) and "@" in settings.ray_address:
        raise ValueError(  # without its value
            "Experiment.ray_address holds a name or password, which would be kept in config.txt: write host:port; "
            "Ray takes a token from the environment (RAY_AUTH_TOKEN)"
        )
    check_values(settings)
    config.tell_unread(settings.agent_type)
    _check_sources(settings)
    SelectionConfig(settings.replay_sampling, settings.replay_half_life, settings.priority_exponent)
    workers = settings.num_rollout_workers
    if workers is not None and workers > settings.parallel_actors:
        raise ValueError(
            f"Experiment.num_rollout_workers={workers}: there are only parallel_actors={settings.parallel_actors} "
            "environments to share"
        )
    if settings.compile_learning == "always" and settings.batch_layout == "packed":
        raise ValueError(
            "Experiment.compile_learning='always': with batch_layout='packed' each batch would have to be compiled for "
            "its length; take batch_layout='auto', or compile_learning='auto'"
        )
    _check_env_processes(settings)


def _check_env_processes(settings: ExperimentSettings) -> None:
    """Raises ValueError for settings of environments in processes of their own that contradict others."""
    if settings.env_mode != "processes":
        for name in ("env_timeout_s", "env_max_rollouts", "env_double_buffer"):
            if value := getattr(settings, name):
                raise ValueError(
                    f"Experiment.{name}={value!r}: in a worker's own process (env_mode='sync') an environment can be "
                    "neither killed nor left alone; set env_mode='processes'"
                )
    limit_s, silent_s = settings.env_timeout_s, settings.call_timeout_s
    if limit_s is not None and limit_s * MAX_FAILURES_IN_A_ROW >= silent_s:
        raise ValueError(
            f"Experiment.env_timeout_s={limit_s!r}: {MAX_FAILURES_IN_A_ROW} of them in a row must fit into "
            f"call_timeout_s={silent_s!r}, after which the whole worker is restarted; lower the one or raise the other"
        )


def _check_sources(settings: ExperimentSettings) -> None:
    """Raises TypeError, ValueError for a run that would learn and never have anything to learn from."""
    if settings.dataset is not None and not isinstance(settings.dataset, TrajectoryDataset | MixtureOfDatasets):
        raise TypeError(
            f"Experiment.dataset={settings.dataset!r}: it must be an RLDataset, such as @MinariDataset(), "
            "or @MixtureOfDatasets()"
        )
    mixture = mixture_of(settings.dataset)
    batches = settings.train_batches_per_epoch * (settings.epochs - settings.start_learning_at_epoch)
    if settings.train_batches_per_epoch > 0 and batches < settings.batches_per_update:
        raise ValueError(
            f"nothing is ever learned: Experiment.start_learning_at_epoch={settings.start_learning_at_epoch} of "
            f"epochs={settings.epochs} leaves {max(batches, 0)} batches, and batches_per_update="
            f"{settings.batches_per_update} of them make an update; change one of these, or set "
            "train_batches_per_epoch=0 only to collect or evaluate"
        )
    learns = settings.train_batches_per_epoch > 0 and settings.start_learning_at_epoch < settings.epochs
    collects = settings.train_timesteps_per_epoch > 0 and settings.start_collecting_at_epoch < settings.epochs
    if settings.schedule == "continuous" and not (collects and mixture.learns_from_replay):
        raise ValueError(
            "Experiment.schedule='continuous' paces learning by what is collected, and nothing is: take 'alternate' to "
            "learn from a dataset alone"
        )
    frames = settings.parallel_actors * settings.train_timesteps_per_epoch
    frames *= settings.epochs - settings.start_collecting_at_epoch
    if settings.schedule == "continuous" and learns and settings.replay_min_timesteps > frames:
        raise ValueError(
            f"Experiment.replay_min_timesteps={settings.replay_min_timesteps}: learning would never begin, because the "
            f"whole run collects {frames} timesteps; lower it"
        )
    if learns and not collects and not mixture.datasets:
        raise ValueError(
            f"there is nothing to learn from: Experiment.train_timesteps_per_epoch="
            f"{settings.train_timesteps_per_epoch} and start_collecting_at_epoch={settings.start_collecting_at_epoch} "
            f"of epochs={settings.epochs} collect nothing; give Experiment.dataset, such as StoredDataset for what "
            "another run has collected, or set train_batches_per_epoch=0 only to evaluate"
        )


def probe(settings: ExperimentSettings) -> AgentSpec:
    """Try the environments, the networks, the relabeler and the exploration once, here, where errors are easy to read.

    Returns how to build the agent. Raises what the environments raise, and ValueError where validation environments
    have other spaces than training environments, or one takes longer than `call_timeout_s`.
    """
    mask, processes, rollout = settings.action_mask_key, env_processes(settings), FirstRollout()
    with _in_time(settings, "make_train_env"):
        obs_spec, action_spec, _ = check_env(
            settings.make_train_env, action_mask_key=mask, processes=processes, rollout=rollout
        )
    if settings.make_val_env is not settings.make_train_env:
        like = env_spaces(settings.make_train_env, processes)
        with _in_time(settings, "make_val_env"):
            check_env(settings.make_val_env, action_mask_key=mask, like=like, processes=processes)
    _check_compression(settings.replay_compression, obs_spec)
    spec = AgentSpec(
        obs_spec=obs_spec,
        action_spec=action_spec,
        max_seq_len=settings.max_seq_len,
        tstep_encoder_type=settings.tstep_encoder_type or default_tstep_encoder(obs_spec),
        traj_encoder_type=settings.traj_encoder_type,
        agent_type=settings.agent_type,
        seed=settings.seed,
        action_mask_key=mask,
    )
    if settings.relabeler_type is not None:
        with _in_one_line("building the relabeler"):
            relabeler = settings.relabeler_type()
            check_made(f"Experiment.relabeler_type={settings.relabeler_type!r}", relabeler, Relabeler)
        with _in_one_line(f"Experiment.relabeler_type={type(relabeler).__name__}"):
            observation_space, _ = env_spaces(settings.make_train_env, processes)
            check_relabeler(relabeler, observation_space, rollout.columns, spec)
    if (explores := settings.exploration_wrapper_type) is not None:
        with _in_one_line("building the exploration"):
            made = explores(1, action_spec, settings.seed)
            check_made(f"Experiment.exploration_wrapper_type={explores!r}", made, ExplorationWrapper)
        with _in_one_line("a first step of the exploration"):
            check_exploration(made, action_spec, masked=mask is not None)
    _probe_agent(settings, spec)
    return spec


def _probe_agent(settings: ExperimentSettings, spec: AgentSpec) -> None:
    """Build the agent, and let it make a step, compute a loss and have an optimiser."""
    with _in_one_line("building the networks"):
        agent = spec.build()
        check_has_sizes(agent)
    if settings.replay_sampling == "prioritized" and not agent.uses_critics:
        raise ValueError(
            "Experiment.replay_sampling='prioritized': priorities are the critics' errors, and this agent trains none "
            "(fake_filter with online_coeff=0); use 'trajectories', 'timesteps' or 'recent'"
        )
    packed = settings.batch_layout == "packed"
    with _in_one_line("the parts of the policy"):
        check_parts(agent, spec)
    with _in_one_line("the sequence model by steps"):
        check_steps(agent.policy.traj_encoder, packed)
    with _in_one_line("a first step of the networks"):
        check_acting(agent, spec)
    with _in_one_line("a first loss of the networks"):
        check_loss(agent, spec, packed)
        check_published(agent, spec)
    with _in_one_line("building the optimiser"):
        if agent.optimizer_type is not None or type(agent).init_optimizer is not Agent.init_optimizer:
            # Not the one that is known: PyTorch imports its compiler to make it, which takes a second and 70 MB.
            agent.init_optimizer(settings.learning_rate, settings.l2_coeff)


def _in_time(settings: ExperimentSettings, name: str) -> AbstractContextManager[None]:
    limit_s = settings.call_timeout_s
    return time_limit(
        limit_s,
        f"Experiment.{name}: an environment was not built, reset and stepped within call_timeout_s={limit_s:g} s; does "
        "it wait for something that is not there? Raise call_timeout_s if it only takes long",
    )


def check_data(settings: ExperimentSettings) -> RowLayout:
    """How the run stores its rows.

    Raises ValueError where a dataset is not there, or does not hold what the training environments would give.
    """
    layout = RowLayout(*env_spaces(settings.make_train_env, env_processes(settings)))
    mixture = mixture_of(settings.dataset)
    if settings.replay_sampling != "trajectories" and not mixture.learns_from_replay:
        raise ValueError(
            f"Experiment.replay_sampling={settings.replay_sampling!r}: it is for what the run itself collects, which "
            "this one does not learn from: StoredDataset has a sampling of its own, of other data sets every "
            "trajectory is drawn as often ('trajectories')"
        )
    for dataset in mixture.datasets:
        with _in_one_line(f"Experiment.dataset: {type(dataset).__name__}"):
            dataset.check(layout)
    return layout


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Raises ValueError, with what was configured, for whatever parts that users configure or write may raise within.

    what: is named where no configurable has raised it.
    """
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:
        if isinstance(error, ValueError | TypeError) and "=" in config.explain(error):
            raise  # it names the setting and its value
        raise ValueError(config.explain_call(error, what)) from error


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
