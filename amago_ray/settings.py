"""The settings of an experiment. Each is written down once: type, default, meaning, and what values it takes."""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from amago_ray.agent import Agent
from amago_ray.config.mistakes import closest
from amago_ray.config.value_checks import (
    LARGEST_SEED,
    Check,
    folder_name,
    fraction,
    makes,
    not_negative,
    one_of,
    positive,
    subclass_of,
    whole_number,
)
from amago_ray.config.value_types import hints_of, objection, plain
from amago_ray.cuda_graphs import CudaGraphs
from amago_ray.envs.exploration import EpsilonGreedy, ExplorationWrapper
from amago_ray.envs.makers import EnvProcesses, MakeEnv
from amago_ray.learner.precision import MixedPrecision
from amago_ray.nets.traj_encoders import TformerTrajEncoder, TrajEncoder
from amago_ray.nets.tstep_encoders import TstepEncoder
from amago_ray.replay.datasets.dataset import MixtureOfDatasets, TrajectoryDataset
from amago_ray.replay.datasets.disk_traj import DiskTrajDataset
from amago_ray.replay.sampling.relabeling import Relabeler
from amago_ray.replay.sampling.selection import SamplingMode
from amago_ray.replay.sampling.slices import PaddedSampling
from amago_ray.rollout.policy_step import CompileActing
from amago_ray.run_directory import RunDirectory
from amago_ray.watch.callbacks import Callback

BatchLayout = Literal["auto", "padded", "packed", "bucketed"]
ScheduleName = Literal["auto", "alternate", "overlap", "continuous"]
CompileLearning = Literal["auto", "always", "never"]
EnvMode = Literal["sync", "processes", "async", "already_vectorized"]  # the last two are AMAGO's
WandbMode = Literal["online", "offline"]

MOST_PROCESSES = 10_000  # of one kind
# Read whenever they are needed, so that they can be changed while a run goes on. Of all others something was made when
# it started: processes, networks, schedules, or counts of what has been.
CHANGEABLE = frozenset(
    {
        "epochs",
        "train_batches_per_epoch",
        "start_learning_at_epoch",
        "val_interval",
        "val_timesteps_per_epoch",
        "ckpt_interval",
        "ckpt_keep_last",
        "ckpt_keep_every",
        "always_save_latest",
        "preemption_grace_s",
        "test_episodes",
        "test_max_timesteps",
        "call_timeout_s",
    }
)
MISSPELT = 0.85  # likeness to a setting from which on an unknown attribute is taken for it


def list_of_callbacks(value: Any) -> str | None:
    """A list of callbacks, or of classes of them that need no arguments."""
    of_kind = isinstance(value, (list, tuple)) and all(
        issubclass(each, Callback) if isinstance(each, type) else isinstance(each, Callback) for each in value
    )
    return None if of_kind else "it is a list of objects of subclasses of Callback, such as [KeepBestPolicy()]"


def setting(default: Any, meaning: str, check: Check | None = None, optional: bool = False) -> Any:
    """One field of the settings. optional: None is a value of it too, which `check` does not see."""
    return field(default=default, metadata={"meaning": " ".join(meaning.split()), "check": check, "optional": optional})


SECTIONS = {  # by the first setting of each
    "run_name": "Task",
    "tstep_encoder_type": "Agent",
    "epochs": "Each epoch",
    "traj_save_len": "Data",
    "learning_rate": "Optimiser",
    "exploration_wrapper_type": "Acting",
    "log_to_wandb": "Logging",
    "num_rollout_workers": "Distribution",
}


@dataclass
class ExperimentSettings:
    """Every setting of an experiment, with its default and its meaning."""

    _stage = "new"  # or "running", while there are processes that were made of the settings, or "closed"
    _checked = False  # whether its settings have been

    def __setattr__(self, name: str, value: Any) -> None:
        """Change a setting, which is checked anew, or set another attribute.

        Raises ValueError or TypeError for a value that cannot be right, and AttributeError for a setting that would
        change nothing any more and for what looks like a misspelt one.
        """
        if name in SETTINGS and self._checked:
            if self._stage == "running" and name not in CHANGEABLE:
                raise AttributeError(
                    f"Experiment.{name}={value!r}: this experiment has started with {getattr(self, name)!r}, and what "
                    f"was made of that stays: give it to Experiment({name}=...), and go on with start(resume=True)"
                )
            value = checked_value(SETTINGS[name], value)
        elif name not in SETTINGS:
            _refuse_misspelt(type(self), name)
        super().__setattr__(name, value)

    run_name: str = setting(MISSING, "folder of the run, under ckpt_base_dir", folder_name)
    make_train_env: MakeEnv = setting(
        MISSING,
        """a gymnasium id, a function that returns a gymnasium.Env or VectorEnv, a pair of either and a dict of its
        arguments, such as ("Meta-World/MT1", {"env_name": "reach-v3"}), or a list of these: tasks, which share
        the environments, or take turns from rollout to rollout where their number does not divide parallel_actors""",
    )
    max_seq_len: int = setting(
        MISSING, "longest training sequence and the Transformer's context, in timesteps", whole_number(1)
    )
    make_val_env: MakeEnv = setting(None, "the same for validation; None takes the training environments' makers")
    ckpt_base_dir: str | os.PathLike[str] = setting("runs", "where runs are kept")
    action_mask_key: str | None = setting(
        None,
        """name of an observation that says which actions are legal: nonzero for each category that may be chosen, those
        of a MultiDiscrete action end to end. The policy, exploration, random policies and the check before the start
        obey it; None for no mask""",
    )

    tstep_encoder_type: type[TstepEncoder] | None = setting(
        None,
        "what maps one timestep to a vector; None takes what the observation asks for (default_tstep_encoder)",
        subclass_of(TstepEncoder),
        optional=True,
    )
    traj_encoder_type: type[TrajEncoder] = setting(TformerTrajEncoder, "the sequence model", subclass_of(TrajEncoder))
    agent_type: type[Agent] = setting(Agent, "the learning algorithm", subclass_of(Agent))

    epochs: int = setting(1000, "how many epochs to run", whole_number(1))
    parallel_actors: int = setting(12, "environments, over all workers", whole_number(1))
    train_timesteps_per_epoch: int = setting(1000, "steps in each environment; 0 collects nothing", whole_number(0))
    val_timesteps_per_epoch: int | None = setting(
        None,
        """steps in each validation environment, within which rollouts are begun (each is played to its end, for at most
        as many steps again); None plays one rollout in each environment, and one of each task where these are more""",
        whole_number(1),
        optional=True,
    )
    train_batches_per_epoch: int = setting(1000, "batches that each learner takes; 0 learns nothing", whole_number(0))
    batches_per_update: int = setting(
        1,
        """batches whose gradients are accumulated for one update: the mean over them, each over its own real
        transitions, which is not quite the gradient of all of them at once""",
        whole_number(1),
    )
    batch_size: int = setting(24, "sequences per batch and learner", whole_number(1))
    start_learning_at_epoch: int = setting(0, "first epoch that learns", whole_number(0))
    start_collecting_at_epoch: int = setting(0, "first epoch that collects", whole_number(0))
    val_interval: int = setting(20, "epochs between validations", whole_number(1))
    ckpt_interval: int = setting(50, "epochs between saved training states", whole_number(1))
    ckpt_keep_last: int | None = setting(
        None, "how many of the newest training states are kept; None keeps all", whole_number(1), optional=True
    )
    ckpt_keep_every: int | None = setting(
        None,
        "of the older ones, those of every so many epochs are kept as well; None keeps none of them",
        whole_number(1),
        optional=True,
    )
    preemption_grace_s: float = setting(
        30.0,
        "after a SIGTERM or SIGHUP, the longest that saving may take before the run ends (exit status 75)",
        positive,
    )
    force_reset_train_envs_every: int | None = setting(
        None,
        """epochs between two resets of all training environments, whose unfinished rollouts are stored as truncated;
        None lets rollouts end by themselves""",
        whole_number(1),
        optional=True,
    )
    test_episodes: int = setting(
        200,
        "rollouts of the comparison with a random policy that ends a run of the command line; 0 for none",
        whole_number(0),
    )
    test_max_timesteps: int | None = setting(
        50_000,
        "of all environments of that comparison together, for either policy; None for no limit",
        whole_number(1),
        optional=True,
    )
    always_save_latest: bool = setting(True, "write latest/policy.pt after every epoch, and not only after the last")

    traj_save_len: float | None = setting(
        None,
        "longest stored trajectory, in timesteps; None is 8 x max_seq_len; 1e10 stores whole rollouts",
        whole_number(1, or_float=True),
        optional=True,
    )
    stagger_traj_file_lengths: bool = setting(
        False,
        """cut longer rollouts at random lengths, uniform in traj_save_len -+ max_seq_len, so that sequences can start
        everywhere; AMAGO's code has it on""",
    )
    padded_sampling: PaddedSampling = setting(
        "none", "how the start of a training sequence is drawn (see replay.sampling.slices)", one_of(PaddedSampling)
    )
    replay_capacity_gb: float = setting(4.0, "of all shards together, in 1e9 bytes", positive)
    replay_capacity_trajectories: int | None = setting(
        None, "likewise, in trajectories; None for no limit", whole_number(1), optional=True
    )
    replay_sampling: SamplingMode = setting(
        "trajectories",
        """of what the run collects. "trajectories": uniform over them; "timesteps": over stored timesteps, as the place
        where a sequence is drawn (those of trajectories shorter than max_seq_len, which are taken whole, are seen in
        proportion to their length);
        "recent": the chance of a trajectory halves every replay_half_life epochs; "prioritized": by the critics' error
        ** priority_exponent, with losses weighted by importance ** importance_exponent (see
        replay.sampling.selection)""",
        one_of(SamplingMode),
    )
    replay_half_life: float = setting(100.0, """of "recent" sampling, in epochs""", positive)
    priority_exponent: float = setting(0.6, """of "prioritized" sampling""")
    importance_exponent: float = setting(0.4, """of "prioritized" sampling; 0 leaves losses unweighted""", fraction)
    replay_durable: bool = setting(
        True, "keep the data in files, so that a shard that dies and a run that is resumed have them again"
    )
    replay_dir: str | os.PathLike[str] | None = setting(None, "of these files; None for the run's own folder")
    replay_fsync_interval_s: float = setting(10.0, "how many seconds of data a loss of power may cost", positive)
    replay_compression: tuple[str, ...] = setting(
        (), "names of observation arrays that are stored compressed (lz4), for images"
    )
    dataset: TrajectoryDataset | MixtureOfDatasets | DiskTrajDataset | None = setting(
        None,
        """data to learn from beside or in place of what is collected: an RLDataset, or a MixtureOfDatasets with
        weights. None learns from what is collected; with a lone data set, and without OnlineReplay in the mixture,
        nothing is collected""",
    )
    relabeler_type: Callable[[], Relabeler] | None = setting(
        None,
        "makes the Relabeler that changes trajectories as they are sampled; None for none",
        makes(Relabeler),
        optional=True,
    )
    batch_layout: BatchLayout = setting(
        "auto",
        """of sequences of different lengths: "padded" to the longest of the batch; "packed" end to end, which spares
        the work that goes into padding; "bucketed", padded, but among sequences of similar lengths out of a larger
        draw, for networks of your own that cannot be packed. "auto": packed for Transformers on processors, where
        attention is computed by code of this package (see compile_learning), all modules are this package's or
        PyTorch's, and there is no micro_batch_size; else padded""",
        one_of(BatchLayout),
    )

    learning_rate: float = setting(1e-4, "of AdamW", positive)
    lr_warmup_steps: int = setting(500, "updates over which the learning rate rises linearly", whole_number(0))
    lr_end_factor: float = setting(
        1.0,
        """what is left of the learning rate at the last update of the last epoch: it falls linearly from the end of the
        warm-up on; 1 keeps it. Less lets a policy settle at the end of a short run""",
        fraction,
    )
    grad_clip: float = setting(1.0, "largest norm of the gradient", positive)
    l2_coeff: float = setting(1e-3, "AdamW's weight decay", not_negative)
    mixed_precision: MixedPrecision = setting(
        "no",
        """of encoders and heads. "auto" is "bf16" on processors and GPUs that have instructions for it, and "no"
        elsewhere, where it would be emulated. In a Transformer what layers hand on is in it too; weights, losses and
        statistics stay float32""",
        one_of(MixedPrecision),
    )
    micro_batch_size: int | None = setting(
        None,
        """sequences that go through the networks at a time: gradients accumulate over the pieces of a batch, and are
        those of the whole, in the memory of a piece (batches_per_update accumulates whole batches); None for all""",
        whole_number(1),
        optional=True,
    )
    activation_checkpointing: bool = setting(
        False,
        """compute layers anew in the backward pass in place of keeping what they computed: less memory, a third more
        work""",
    )

    cuda_graphs: CudaGraphs = setting(
        "auto",
        """start the launches of an update together, on a GPU, and those of a step of a policy that acts on one: several
        times as fast for small networks, for more memory. "auto": where all modules of the agent are this package's or
        PyTorch's; "always": with modules of your own too, whose Python then runs in the first updates and steps alone.
        Updates are launched one by one with packed layouts, pieces, activation checkpointing, batches_per_update above
        1, fp16, action masks, dropout of attention weights and several learners""",
        one_of(CudaGraphs),
    )

    compile_learning: CompileLearning = setting(
        "auto",
        """put the layers of Transformers through PyTorch's compiler, which fuses what lies between matrix products: an
        update then takes about four fifths of its time in bf16, and 0.9 to 0.98 in float32. It takes 10 to 20 seconds
        for each of at most eight lengths of batches, or for all together where they are packed on a processor, once for
        each network on a machine, and on a processor a C++ compiler. "auto": in runs of 50,000 batches or more on
        processors, in bf16 or where batches are packed, and of 200,000 on GPUs, unless a micro_batch_size is set or,
        there, batch_layout is "packed"; "always": in every run. On a processor with a C++ compiler, the recurrences of
        GRUs (of widths that are multiples of 32) and attention of heads 16 or 32 wide are computed by code of this
        package in every run, unless it is "never"; that takes some seconds, once on a machine""",
        one_of(CompileLearning),
    )

    compile_acting: CompileActing = setting(
        "auto",
        """put the whole step of a policy that acts on a processor through PyTorch's compiler: 2 to 3 times as fast for
        small networks, with the same actions. It takes 10 to 30 seconds when a run starts, once for each policy and
        number of environments of a worker on a machine, and a C++ compiler. "auto": to collect, in runs of 200,000
        timesteps in every environment (epochs x train_timesteps_per_epoch) or more, where all modules of the policy are
        this package's or PyTorch's; "always": in every run and in validation too, and with modules of your own, which
        have to compute with tensors and nothing else""",
        one_of(CompileActing),
    )

    exploration_wrapper_type: Callable[..., ExplorationWrapper] | None = setting(
        EpsilonGreedy,
        "how training environments are explored; None for not at all",
        makes(ExplorationWrapper),
        optional=True,
    )
    sample_actions_train: bool = setting(True, "draw actions from the policy, or take its mode")
    sample_actions_val: bool = setting(True, "likewise, in validation and in tests")
    env_mode: EnvMode = setting(
        "sync",
        """where the environments of a worker run: "sync", in its own process, one after the other, or a VectorEnv as it
        steps them; "processes", each in a process of its own, for those that are slow, leak memory, hang or take their
        process down (see docs/environments.md). Both collect the same for the same seed. AMAGO's "async" and
        "already_vectorized" are "sync" here""",
        one_of(EnvMode),
    )
    env_timeout_s: float | None = setting(
        None,
        """of "processes": seconds that a step or a reset may take, after which the environment is killed and rebuilt
        alone; None waits for call_timeout_s, which ends the whole worker""",
        positive,
        optional=True,
    )
    env_max_rollouts: int | None = setting(
        None,
        """of "processes": rollouts after which the process of an environment is replaced by a new one, so that what it
        has leaked is bounded; None for never""",
        whole_number(1),
        optional=True,
    )
    env_double_buffer: bool = setting(
        False,
        """of "processes": one half of a worker's environments steps while the policy acts for the other, as if two
        workers shared them""",
    )

    log_to_wandb: bool = setting(False, "send every row of metrics.jsonl to wandb too")
    wandb_project: str | None = setting(
        None, "where it goes there; None is what AMAGO_WANDB_PROJECT says in the environment, or amago_ray"
    )
    wandb_entity: str | None = setting(
        None, "whose it is there; None is what AMAGO_WANDB_ENTITY says, or the account's own"
    )
    wandb_group_name: str | None = setting(None, "what it is shown together with; None for nothing")
    wandb_mode: WandbMode | None = setting(
        None, "None is what WANDB_MODE says, or online", one_of(WandbMode), optional=True
    )
    log_to_tensorboard: bool = setting(
        False, "write every row of metrics.jsonl for TensorBoard too, into the folder tensorboard of the run"
    )
    log_to_ray: bool = setting(
        False, "offer the run's rates, returns and bottleneck as metrics of Ray, for Prometheus and Grafana (cluster/)"
    )
    log_interval: int = setting(
        20, "batches between two that are measured in detail; of every epoch one is, at least", whole_number(1)
    )
    callbacks: Sequence[Callback | type[Callback]] = setting(
        (),
        """what looks on at the places of each epoch, and may stop the run: StopAtReturn, KeepBestPolicy,
        ValidationVideo, JobProgress, or your own (see docs/extending.md)""",
        list_of_callbacks,
    )
    verbose: bool = setting(True, "show progress; what goes wrong is told in any case")
    seed: int = setting(0, "of everything that is random", whole_number(0, maximum=LARGEST_SEED))

    num_rollout_workers: int | None = setting(
        None,
        """processes that share the environments; None is one per core where they take turns with the learner on one
        machine, else one per free core and at most one per 8 environments. Those for which a cluster has no room yet
        join when nodes come""",
        whole_number(1, maximum=MOST_PROCESSES),
        optional=True,
    )
    num_replay_shards: int = setting(1, "processes that share the data", whole_number(1, maximum=MOST_PROCESSES))
    num_learners: int = setting(
        1,
        """processes that share the learning: the gradient is the mean over them, each over the real transitions of a
        batch of its own, as under AMAGO's accelerate, and metrics likewise""",
        whole_number(1, maximum=MOST_PROCESSES),
    )
    learner_device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", """"auto" takes a GPU where there is one""", one_of(Literal["auto", "cpu", "cuda"])
    )
    rollout_device: Literal["cpu", "cuda"] = setting(
        "cpu",
        "where the acting policy runs",
        one_of(Literal["cpu", "cuda"]),
    )
    learner_cpus: int | None = setting(
        None,
        """cores, and threads, of one learner. None: on a machine of its own all of them where it takes turns with the
        workers, else those that they leave free; 1 on a cluster""",
        whole_number(1),
        optional=True,
    )
    learner_nodes: dict[str, str] | None = setting(
        None,
        """Ray's label selector of the nodes for learners with shards, such as {"pool": "learner"}; None takes the
        nodes labelled pool=learner where there are any, and else all; {} takes all. A run on this machine alone
        ignores it""",
    )
    rollout_nodes: dict[str, str] | None = setting(None, "likewise for rollout workers: pool=rollout")
    schedule: ScheduleName = setting(
        "auto",
        """"alternate" collects, then learns; "overlap" learns while the next epoch's data come in; "auto" is "overlap"
        where the learner has a GPU of its own, and "alternate" otherwise, unless the first epochs show that cores are
        idle: then it says so and goes on with "overlap". "continuous" does both freely, within a ratio""",
        one_of(ScheduleName),
    )
    updates_per_timestep: float | None = setting(
        None,
        """the ratio of "continuous": updates per timestep collected; None is that of an epoch""",
        positive,
        optional=True,
    )
    replay_min_timesteps: int = setting(0, """stored before "continuous" begins to learn""", whole_number(0))
    rate_tolerance: float = setting(
        1.0,
        """by how many epochs' worth of timesteps either side of "continuous" may be ahead of the ratio""",
        positive,
    )
    ray_address: str | None = setting(
        None, "None is the cluster that the job was submitted to, else a Ray of its own on this machine"
    )
    call_timeout_s: float = setting(
        600.0, "seconds after which a process that is silent counts as hung and is restarted", positive
    )


SETTINGS = {one.name: one for one in fields(ExperimentSettings)}


def _refuse_misspelt(owner: type, name: str) -> None:
    """Raises AttributeError for an attribute that is much like a setting, and none that a subclass has of its own."""
    own = hasattr(owner, name) or any(name in inspect.get_annotations(cls) for cls in owner.__mro__)
    if not (name.startswith("_") or own) and (setting := closest(name, SETTINGS, MISSPELT)):
        raise AttributeError(
            f"Experiment has no setting {name!r}; did you mean {setting!r}? An attribute of your own is one that your "
            "class annotates"
        )


def check_values(settings: ExperimentSettings) -> None:
    """Raises ValueError or TypeError, naming setting, value and what would be right, for a value that cannot be right.

    Each setting is looked at by itself, by its check or else by its type; what several must agree on is checked by
    `driver.probe`. Those that are set later are checked then. Numbers of NumPy become Python's own: files that a run
    writes take no others.
    """
    vars(settings).update({name: checked_value(one, getattr(settings, name)) for name, one in SETTINGS.items()})
    settings._checked = True


def checked_value(one: Field[Any], value: Any) -> Any:
    """What setting `one` is when it is given as `value`. Raises as `check_values` does."""
    value, check = plain(value), one.metadata.get("check")
    if value is None and one.metadata.get("optional"):
        return None
    if check is None:
        check = partial(objection, hint=hints_of(ExperimentSettings)[one.name])
    try:
        wrong = check(value)
    except TypeError as error:
        raise TypeError(f"Experiment.{one.name}={value!r}: {error}") from error
    if wrong:
        none = ", or None" if one.metadata.get("optional") else ""
        raise ValueError(f"Experiment.{one.name}={value!r}: {wrong}{none}")
    return value


def env_processes(settings: ExperimentSettings) -> EnvProcesses | None:
    """How environments run in processes of their own; None where they do not."""
    if settings.env_mode != "processes":
        return None
    return EnvProcesses(settings.env_timeout_s, settings.env_max_rollouts, settings.env_double_buffer)


def table() -> str:
    """All settings as Markdown: a table per section. It is docs/settings.md."""
    lines = [
        "# Settings of `Experiment`",
        "",
        "Each can be given in Python, `Experiment(batch_size=32)`, in gin, `Experiment.batch_size = 32`, and on the",
        "command line, `--set 'Experiment.batch_size = 32'`. Those of agents, encoders and heads are the arguments of",
        "their classes. This page is what `amago-ray settings` prints.",
    ]
    for one in fields(ExperimentSettings):
        if section := SECTIONS.get(one.name):
            lines += ["", f"## {section}", "", "| setting | default | meaning |", "|---|---|---|"]
        lines.append(f"| `{one.name}` | {_default(one)} | {one.metadata['meaning']} |")
    return "\n".join(lines) + "\n"


def _default(one: Field[Any]) -> str:
    if one.default is MISSING:
        return "required"
    return f"`{one.default.__name__ if isinstance(one.default, type) else repr(one.default)}`"


def _described() -> str:
    paragraphs = []
    for one in fields(ExperimentSettings):
        if section := SECTIONS.get(one.name):
            paragraphs.append(section)
        text = f"{one.name} ({_default(one).strip('`')}): {one.metadata['meaning']}."
        paragraphs.append(textwrap.fill(text, 112, initial_indent="    ", subsequent_indent="        "))
    return "\n".join(paragraphs)


ExperimentSettings.__doc__ = f"{ExperimentSettings.__doc__}\n\n{_described()}\n"  # for help(), from the one source


def replay_folder(settings: ExperimentSettings) -> Path:
    """Where a run keeps what it has collected."""
    if settings.replay_dir is None:
        return RunDirectory(settings.ckpt_base_dir, settings.run_name).replay
    return Path(settings.replay_dir).expanduser().resolve() / settings.run_name
