"""Short names for agents, encoders and exploration, and the flags of AMAGO's example scripts.

A script of this kind fills a dictionary of settings, and then makes its experiment:

    parser = argparse.ArgumentParser()
    cli_utils.add_common_cli(parser)
    args = parser.parse_args()
    config = {"FFTstepEncoder.hide_rl2s": False}
    traj_encoder_type = cli_utils.switch_traj_encoder(config, args.traj_encoder, args.memory_size, args.memory_layers)
    agent_type = cli_utils.switch_agent(config, args.agent_type, gamma=0.99)
    cli_utils.use_config(config, args.configs)
    with cli_utils.create_experiment_from_cli(args, make_train_env=..., agent_type=agent_type, ...) as experiment:
        experiment.learn()
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import gin

from amago_ray import config
from amago_ray.config.reader import CONFIGURABLE_MODULES

if TYPE_CHECKING:
    from amago_ray.experiment import Experiment

C = TypeVar("C", bound=type)

# Short name -> name in gin.
AGENTS = {"agent": "Agent", "multitask": "MultiTaskAgent"}
TSTEP_ENCODERS = {"ff": "FFTstepEncoder", "cnn": "CNNTstepEncoder"}
TRAJ_ENCODERS = {
    "ff": "FFTrajEncoder",
    "rnn": "GRUTrajEncoder",  # AMAGO's name
    "gru": "GRUTrajEncoder",
    "transformer": "TformerTrajEncoder",
    "mamba": "MambaTrajEncoder",
}
EXPLORATIONS = {"egreedy": "EpsilonGreedy", "bilevel": "BilevelEpsilonGreedy"}

# The arguments that the size of the memory is given to; other encoders take `memory_size`.
MEMORY_SIZE: dict[str, dict[str, int]] = {  # name in gin -> {argument: its multiple of the memory's size}
    "FFTrajEncoder": {"d_model": 1},
    "GRUTrajEncoder": {"d_hidden": 1, "d_output": 1},
    "TformerTrajEncoder": {"d_model": 1, "d_ff": 4},
    "MambaTrajEncoder": {"d_model": 1},
}

# Flags of `add_common_cli`: name -> (type, default, meaning).
FLAGS: dict[str, tuple[type, Any, str]] = {
    "trials": (int, 1, "repeat the experiment; the script's loop says under which names"),
    "env_mode": (str, "async", "async, sync or already_vectorized; see docs/amago.md"),
    "epochs": (int, 1000, "how many"),
    "memory_size": (int, 256, "width of the trajectory encoder"),
    "memory_layers": (int, 3, "layers of the trajectory encoder"),
    "batches_per_epoch": (int, 1000, "updates per epoch"),
    "timesteps_per_epoch": (int, 1000, "steps per epoch in each environment"),
    "val_interval": (int, 20, "epochs between validations"),
    "ckpt_interval": (int, 50, "epochs between saved training states"),
    "parallel_actors": (int, 12, "environments"),
    "dset_max_size": (int, 20_000, "trajectories in replay; the oldest go first"),
    "start_learning_at_epoch": (int, 0, "first epoch that learns"),
    "dloader_workers": (int, 8, "no effect here: replay shards read the data"),
    "batch_size": (int, 24, "sequences per batch"),
}

_made_before: Experiment | None = None  # by `create_experiment_from_cli`


def add_common_cli(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the flags of AMAGO's example scripts, each with underscores or dashes; returns `parser`."""
    _flag(parser, "run_name", required=True, help="folder of the run, under --buffer_dir")
    _flag(parser, "buffer_dir", required=True, help="where runs are kept")
    _flag(parser, "configs", nargs="*", default=[], help="gin files, applied last")
    _flag(parser, "agent_type", default="agent", choices=tuple(AGENTS), help="learning algorithm")
    _flag(parser, "traj_encoder", default="transformer", choices=tuple(TRAJ_ENCODERS), help="sequence model")
    _flag(parser, "mixed_precision", default="no", choices=("no", "bf16", "fp16"), help="of the learner")
    _flag(parser, "mode", default="both", choices=("both", "learn", "collect"), help="see switch_async_mode")
    _flag(parser, "ckpt", type=int, help="epoch of the checkpoint to go on from")
    _flag(parser, "no_log", action="store_true", help="do not log to wandb")
    for name, (kind, default, meaning) in FLAGS.items():
        _flag(parser, name, type=kind, default=default, help=f"{meaning} (default {default})")
    return parser


def _flag(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    parser.add_argument(*spellings, dest=name, **options)


def switch_agent(settings: MutableMapping[str, Any], agent: str, **arguments: Any) -> type:
    """The agent of that short name; its arguments are added to `settings`."""
    return _switch(settings, "agent", AGENTS, agent, arguments)


def switch_tstep_encoder(settings: MutableMapping[str, Any], arch: str, **arguments: Any) -> type:
    """The timestep encoder of that short name; its arguments are added to `settings`."""
    return _switch(settings, "tstep encoder", TSTEP_ENCODERS, arch, arguments)


def switch_traj_encoder(
    settings: MutableMapping[str, Any],
    arch: str,
    memory_size: int | None = None,
    layers: int | None = None,
    **arguments: Any,
) -> type:
    """The trajectory encoder of that short name; its size and arguments are added to `settings`.

    memory_size: width; a Transformer's feed-forward layers are four times as wide. layers: how many. None for the
    encoder's own. `arguments` win over both.
    """
    _check_name("traj encoder", TRAJ_ENCODERS, arch)
    size = {}
    if memory_size is not None:
        multiples = MEMORY_SIZE.get(TRAJ_ENCODERS[arch], {"memory_size": 1})
        size = {argument: multiple * memory_size for argument, multiple in multiples.items()}
    if layers is not None:
        size["n_layers"] = layers
    return _switch(settings, "traj encoder", TRAJ_ENCODERS, arch, {**size, **arguments})


def switch_exploration(settings: MutableMapping[str, Any], strategy: str, **arguments: Any) -> type:
    """The exploration of that short name; its arguments are added to `settings`."""
    return _switch(settings, "exploration", EXPLORATIONS, strategy, arguments)


def _check_name(kind: str, names: dict[str, str], name: str) -> None:
    """Raises ValueError for a short name that stands for nothing."""
    if name not in names:
        raise ValueError(f"no {kind} has the short name {name!r}{config.nearest(name, names)}")


def _switch(
    settings: MutableMapping[str, Any], kind: str, names: dict[str, str], name: str, arguments: dict[str, Any]
) -> type:
    _check_name(kind, names, name)
    for module in CONFIGURABLE_MODULES:
        importlib.import_module(module)
    settings.update({f"{names[name]}.{argument}": value for argument, value in arguments.items()})
    return gin.get_configurable(names[name])


def register_agent(name: str) -> Callable[[C], C]:
    """Class decorator: makes a configurable class known under a short name. Raises ValueError for a name in use."""
    return _register("agent", AGENTS, name)


def register_tstep_encoder(name: str) -> Callable[[C], C]:
    """As `register_agent`, for a timestep encoder."""
    return _register("tstep encoder", TSTEP_ENCODERS, name)


def register_traj_encoder(name: str) -> Callable[[C], C]:
    """As `register_agent`, for a trajectory encoder; `switch_traj_encoder` gives it `memory_size` and `n_layers`."""
    return _register("traj encoder", TRAJ_ENCODERS, name)


def register_exploration(name: str) -> Callable[[C], C]:
    """As `register_agent`, for exploration."""
    return _register("exploration", EXPLORATIONS, name)


def _register(kind: str, names: dict[str, str], name: str) -> Callable[[C], C]:
    def register(cls: C) -> C:
        if name in names:
            raise ValueError(f"the {kind} {names[name]} has the short name {name!r} already")
        reference = config.literal(cls)
        if reference is None:
            raise ValueError(f"{cls.__name__} has no name in gin: put @gin.configurable below the registration")
        names[name] = reference.removeprefix("@")
        return cls

    return register


def use_config(
    custom_params: dict[str, Any], gin_configs: Sequence[str | Path] | None = None, finalize: bool = True
) -> None:
    """Bind a dictionary of settings, then read gin files on top. finalize: later changes are refused.

    Names may be AMAGO's, values plain ones or configurable classes. Raises ValueError, in one line, as `config.load`
    and `config.bind` do.
    """
    with gin.unlock_config():
        config.bind(custom_params)
        config.load(gin_configs or ())
    if finalize and not gin.config_is_locked():
        gin.finalize()


def create_experiment_from_cli(
    args: argparse.Namespace,
    make_train_env: Any,
    make_val_env: Any,
    max_seq_len: int,
    traj_encoder_type: type,
    tstep_encoder_type: type | None = None,
    agent_type: type | None = None,
    group_name: str | None = None,
    run_name: str | None = None,
    experiment_type: Callable[..., Experiment] | None = None,
    **settings: Any,
) -> Experiment:
    """The experiment of the flags of `add_common_cli`; `settings` are more of its arguments, and win over flags.

    run_name, agent_type: by default those of the flags. group_name: of wandb. The experiment that was made so before is
    closed: in a loop over trials, its processes would keep the room that this one needs.
    """
    from amago_ray.experiment import Experiment

    global _made_before
    if _made_before is not None:
        _made_before.close()
    from_flags = {
        "run_name": run_name or args.run_name,
        "ckpt_base_dir": args.buffer_dir,
        "agent_type": agent_type or switch_agent({}, args.agent_type),
        "epochs": args.epochs,
        "parallel_actors": args.parallel_actors,
        "train_timesteps_per_epoch": args.timesteps_per_epoch,
        "train_batches_per_epoch": args.batches_per_epoch,
        "val_interval": args.val_interval,
        "ckpt_interval": args.ckpt_interval,
        "batch_size": args.batch_size,
        "start_learning_at_epoch": args.start_learning_at_epoch,
        "mixed_precision": args.mixed_precision,
        "replay_capacity_trajectories": args.dset_max_size,
        "env_mode": args.env_mode,
        "dloader_workers": args.dloader_workers,
        "log_to_wandb": not args.no_log,
        "wandb_group_name": group_name,
    }
    make = experiment_type or Experiment
    _made_before = make(
        make_train_env=make_train_env,
        make_val_env=make_val_env,
        max_seq_len=max_seq_len,
        tstep_encoder_type=tstep_encoder_type,
        traj_encoder_type=traj_encoder_type,
        **(from_flags | settings),
    )
    return _made_before


def switch_async_mode(experiment: Experiment, mode: str) -> Experiment:
    """The experiment itself for "both". Raises ValueError for "learn" and "collect".

    AMAGO starts a process for each; here one experiment has its learners and workers on as many machines as there are.
    """
    if mode != "both":
        raise ValueError(
            f"--mode {mode}: one run collects and learns here, on as many machines as Ray has; leave --mode out, and "
            "set Experiment.num_rollout_workers and num_learners"
        )
    return experiment
