"""What the processes of a run are made of: from the settings and the size of a cluster to a `Plan`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from amago_ray import config
from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.cores import Cores, share_cores
from amago_ray.driver.placement import LEARNER, SHARD, WORKER, Cluster, Node, Resources, Role, matches, pool
from amago_ray.envs.makers import MakeEnv, env_spaces, sendable_tasks
from amago_ray.envs.tasks import fixed_num_envs
from amago_ray.learner.learner import LearnerConfig
from amago_ray.learner.precision import precision_on
from amago_ray.nets.traj_encoders import TformerTrajEncoder
from amago_ray.replay.client import BUCKETS, request_size
from amago_ray.replay.datasets.dataset import RowLayout, TrajectoryDataset, mixture_of
from amago_ray.replay.sampling.relabeling import categories_of
from amago_ray.replay.sampling.selection import SelectionConfig
from amago_ray.replay.shard import ReplayConfig
from amago_ray.replay.storage.config import StoreConfig
from amago_ray.rollout.policy_step import CompileActing
from amago_ray.rollout.worker import RolloutConfig
from amago_ray.settings import ExperimentSettings, env_processes, replay_folder
from amago_ray.specs import row_bytes

COMPILING_PAYS = 200_000  # timesteps in every environment, from which on workers compile their steps by default
COMPILED_LEARNING_PAYS = {"cpu": 50_000, "cuda": 200_000}  # batches of a run, likewise for learners
ROLLOUT_GPU_SHARE = 0.1  # of one GPU, for each worker that acts on a GPU which no learner has
SHARED_GPU = 0.5  # of the only learner's GPU, for the workers that act on it where they find no other
# Added to a run's seed, so far apart that runs with neighbouring seeds do not validate where others train.
VALIDATION_SEEDS, TEST_SEEDS = 1 << 20, 1 << 21
SHARD_MEMORY_OVERHEAD = 1.1  # free space in segments, on top of a shard's stored bytes
SHARD_MEMORY_BYTES = 256 << 20  # the process, its index and messages in flight


@dataclass(frozen=True)
class Plan:
    """Everything that the processes of a run are made of.

    collects: whether training environments are ever stepped.
    rollout, validation: one entry per rollout worker. incarnation: how often the run was resumed, so that trajectories
    keep unique identities. cores: how they are shared. worker_cpus, learner_gpus, worker_gpus: resources of one
    process.
    learner_nodes, rollout_nodes: label selectors of the nodes that learners with shards, and workers, may be on.
    """

    agent_spec: AgentSpec
    rollout: tuple[RolloutConfig, ...]
    validation: tuple[RolloutConfig, ...]
    replay: ReplayConfig
    layout: RowLayout | None
    datasets: tuple[TrajectoryDataset, ...]
    bucketed: bool
    importance_exponent: float | None
    cores: Cores
    num_replay_shards: int
    learner: LearnerConfig
    num_learners: int
    batch_size: int
    collects: bool
    gin_config: str
    incarnation: int = 0
    worker_cpus: float = 1.0
    worker_gpus: float = 0.0
    learner_gpus: float = 0.0
    learner_nodes: Mapping[str, str] = field(default_factory=dict)
    rollout_nodes: Mapping[str, str] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[Role, Role, Role]:
        """What is asked of the cluster: learners, shards and workers."""
        learner = Resources(self.learner_cpus, self.learner_gpus)
        shard = Resources(memory_bytes=self.shard_memory_bytes)
        worker = Resources(self.worker_cpus, self.worker_gpus)
        return (
            Role(LEARNER, self.num_learners, learner, self.learner_nodes),
            Role(SHARD, self.num_replay_shards, shard, self.learner_nodes),
            Role(WORKER, len(self.rollout), worker, self.rollout_nodes, spread=True),
        )

    @property
    def learner_cpus(self) -> float:
        return float(self.cores.learner)

    @property
    def num_cpus(self) -> float:
        return sum(role.count * role.each.cpus for role in self.roles)

    @property
    def batch_bytes(self) -> int:
        """The most that one batch can hold."""
        spec = self.agent_spec
        return self.batch_size * (spec.max_seq_len + 1) * row_bytes(spec.obs_spec, spec.action_spec)

    @property
    def request_size(self) -> tuple[int, int]:
        """(batches per request, requests in flight) of each learner."""
        return request_size(self.batch_bytes, BUCKETS if self.bucketed else 1)

    @property
    def shard_memory_bytes(self) -> int:
        in_memory = self.replay.store.capacity_bytes if self.replay.store.folder is None else 0
        return int(in_memory * SHARD_MEMORY_OVERHEAD + SHARD_MEMORY_BYTES)


def make_plan(
    settings: ExperimentSettings,
    agent_spec: AgentSpec,
    cluster: Cluster,
    incarnation: int = 0,
    state: Mapping[str, Any] | None = None,
) -> Plan:
    """Which processes there will be, and with what. state: that the run goes on from, if it does.

    Raises ValueError when there are fewer GPUs than learners.
    """
    x = settings
    device = learner_device(x.num_learners, x.learner_device, cluster.gpus)
    precision_on(device, x.mixed_precision)  # raises for what there is not
    shards = x.num_replay_shards
    nodes = (*cluster.nodes, *cluster.growth)
    learner_nodes = _selector(x.learner_nodes, "learner", cluster, nodes)
    rollout_nodes = _selector(x.rollout_nodes, "rollout", cluster, nodes)
    free_cpus = _cpus_for_workers(cluster, nodes, learner_nodes, rollout_nodes, x.num_learners * (x.learner_cpus or 1))
    cores = share_cores(x, device, cluster, free_cpus)
    learner_gpus, worker_gpus = share_gpus(x.num_learners, device, cores.workers, x.rollout_device, cluster.gpus)
    mixture = mixture_of(x.dataset)
    datasets = mixture.datasets
    return Plan(
        agent_spec=agent_spec,
        rollout=deal_environments(
            x, x.make_train_env, x.parallel_actors, cores.workers, x.seed, x.sample_actions_train, explore=True
        ),
        validation=deal_environments(
            x,
            x.make_val_env,
            x.parallel_actors,
            cores.workers,
            x.seed + VALIDATION_SEEDS,
            x.sample_actions_val,
            explore=False,
        ),
        replay=ReplayConfig(
            max_seq_len=x.max_seq_len,
            padded_sampling=x.padded_sampling,
            selection=SelectionConfig(x.replay_sampling, x.replay_half_life, x.priority_exponent),
            store=StoreConfig(
                folder=replay_folder(x) if x.replay_durable else None,
                compressed=tuple(x.replay_compression),
                fsync_interval_s=x.replay_fsync_interval_s,
                capacity_bytes=int(x.replay_capacity_gb * 1e9 / shards),
                stride=shards,
            ),
            max_trajectories=x.replay_capacity_trajectories,
            relabeler=None if x.relabeler_type is None else x.relabeler_type(),
            categories=categories_of(agent_spec.obs_spec, agent_spec.action_spec),
            seed=x.seed,
        ),
        datasets=datasets,
        layout=RowLayout(*env_spaces(x.make_train_env, env_processes(x))) if datasets else None,
        bucketed=x.batch_layout == "bucketed",
        importance_exponent=x.importance_exponent if x.replay_sampling == "prioritized" else None,
        num_replay_shards=shards,
        learner=LearnerConfig(
            device=device,
            learning_rate=x.learning_rate,
            l2_coeff=x.l2_coeff,
            lr_warmup_steps=x.lr_warmup_steps,
            lr_end_factor=x.lr_end_factor,
            last_update=last_update(x, state or {}),
            grad_clip=x.grad_clip,
            batches_per_update=x.batches_per_update,
            mixed_precision=x.mixed_precision,
            log_interval=x.log_interval,
            packed="auto" if x.batch_layout == "auto" else x.batch_layout == "packed",
            micro_batch_size=x.micro_batch_size,
            activation_checkpointing=x.activation_checkpointing,
            cuda_graphs=x.cuda_graphs,
            compile=learns_compiled(x, device, _is_transformer(agent_spec.traj_encoder_type)),
            kernels=x.compile_learning != "never",
            seed=x.seed,
        ),
        num_learners=x.num_learners,
        batch_size=x.batch_size,
        collects=mixture.learns_from_replay and x.train_timesteps_per_epoch > 0,
        gin_config=config.snapshot(),
        incarnation=incarnation,
        worker_gpus=worker_gpus,
        cores=cores,
        learner_gpus=learner_gpus,
        learner_nodes=learner_nodes,
        rollout_nodes=rollout_nodes,
    )


def updates_planned_by(settings: ExperimentSettings) -> list[int]:
    """The settings that say how many updates a run makes."""
    x = settings
    return [x.epochs, x.start_learning_at_epoch, x.train_batches_per_epoch, x.batches_per_update]


def last_update(settings: ExperimentSettings, state: Mapping[str, Any]) -> int:
    """How many updates a run will have made: those of the training state that it goes on from, and of the epochs left.

    With the settings that the state was saved with, what was planned then, so that learning goes on as it would have.
    """
    x, planned = settings, state.get("updates_planned")
    if planned is not None and planned["by"] == updates_planned_by(x):
        return int(planned["last"])
    progress = state.get("progress", {"epoch": -1, "gradient_steps": 0})
    epochs = max(x.epochs - max(progress["epoch"] + 1, x.start_learning_at_epoch), 0)
    begun = state.get("batches", 0) % x.batches_per_update  # of the update that comes next
    return progress["gradient_steps"] + (begun + epochs * x.train_batches_per_epoch) // x.batches_per_update


def _cpus_for_workers(
    cluster: Cluster,
    nodes: Sequence[Node],
    learner_nodes: Mapping[str, str],
    rollout_nodes: Mapping[str, str],
    learners_cpus: float,
) -> int:
    """Cores of the nodes that rollout workers may be on, less what learners take there."""
    if cluster.local or cluster.in_group:
        return int(cluster.cpus - learners_cpus)
    theirs = [node for node in nodes if matches(node.labels, rollout_nodes)]
    shared = any(matches(node.labels, learner_nodes) for node in theirs)
    return int(sum(node.total.cpus for node in theirs) - (learners_cpus if shared else 0))


def _selector(given: dict[str, str] | None, name: str, cluster: Cluster, nodes: Sequence[Node]) -> dict[str, str]:
    if cluster.local or cluster.in_group:
        return {}
    return pool(name, nodes) if given is None else dict(given)


def deal_environments(
    settings: ExperimentSettings,
    make_env: MakeEnv,
    num_envs: int,
    num_workers: int,
    seed: int,
    sample_actions: bool,
    explore: bool,
) -> tuple[RolloutConfig, ...]:
    """`num_envs` environments dealt out over `num_workers` workers, as evenly as it goes."""
    shares = [num_envs // num_workers + (i < num_envs % num_workers) for i in range(num_workers)]
    tasks = sendable_tasks(make_env)
    return tuple(
        RolloutConfig(
            make_env=tasks,
            num_envs=share,
            total_envs=num_envs,
            action_mask_key=settings.action_mask_key,
            first_env=sum(shares[:i]),
            seed=seed,
            traj_save_len=longest_piece(settings),
            stagger=stagger(settings) if explore else 0,
            exploration_type=settings.exploration_wrapper_type if explore else None,
            sample_actions=sample_actions,
            device=settings.rollout_device,
            env_processes=env_processes(settings),
            cuda_graphs=settings.cuda_graphs,
            compile_acting=acts_compiled(settings, explore),
        )
        for i, share in enumerate(shares)
    )


def check_shares(settings: ExperimentSettings, plan: Plan) -> None:
    """Raises ValueError where an environment is a VectorEnv of another size than some worker's share."""
    for name, rollouts in (("make_train_env", plan.rollout), ("make_val_env", plan.validation)):
        fixed = fixed_num_envs(getattr(settings, name), env_processes(settings))
        shares = sorted({rollout.num_envs for rollout in rollouts})
        if fixed is not None and shares != [fixed]:
            raise ValueError(
                f"Experiment.{name} makes a VectorEnv of {fixed} environments where a rollout worker has "
                f"{' or '.join(map(str, shares))} (parallel_actors={settings.parallel_actors} over {len(rollouts)} "
                f"workers): give it a parameter num_envs, or set parallel_actors={fixed * len(rollouts)}"
            )


def acts_compiled(settings: ExperimentSettings, collects: bool) -> CompileActing:
    """`compile_acting` of workers that collect, or only validate.

    Compiling takes 10 to 30 s, and saves about half a millisecond of a step (benchmarks/README.md).
    """
    if settings.rollout_device != "cpu":
        return "never"
    if settings.compile_acting != "auto":
        return settings.compile_acting
    timesteps = settings.epochs * settings.train_timesteps_per_epoch
    return "auto" if collects and timesteps >= COMPILING_PAYS else "never"


def _is_transformer(encoder: Any) -> bool:
    while isinstance(encoder, partial):
        encoder = encoder.func
    return isinstance(encoder, type) and issubclass(encoder, TformerTrajEncoder)


def learns_compiled(settings: ExperimentSettings, device: str, transformer: bool = True) -> bool | Literal["packed"]:
    """Whether learners on this device compile the layers of Transformers; "packed": where attention takes packed ones.

    transformer: whether the policy has one, as far as its type says.

    That takes 10 to 20 s, once for packed batches on processors, else for each of up to eight lengths of batches, to
    which they are padded, as they are without it in half precision and on GPUs. In float32 on processors it saves less
    than that padding can cost (benchmarks/README.md).
    """
    x = settings
    if x.compile_learning != "auto":
        return x.compile_learning == "always"
    if x.micro_batch_size is not None or x.epochs * x.train_batches_per_epoch < COMPILED_LEARNING_PAYS[device]:
        return False
    if x.batch_layout != "packed" and (device == "cuda" or precision_on(device, x.mixed_precision) != "no"):
        return True
    packs = device == "cpu" and transformer and x.batch_layout in ("auto", "packed")
    return "packed" if packs else False


def longest_piece(settings: ExperimentSettings) -> int:
    """`traj_save_len`, in transitions."""
    return int(settings.traj_save_len or 8 * settings.max_seq_len)


def stagger(settings: ExperimentSettings) -> int:
    """By how much the lengths of stored pieces vary, as AMAGO has it: not where a piece is one sequence at most."""
    staggers = settings.stagger_traj_file_lengths and settings.max_seq_len < longest_piece(settings)
    return settings.max_seq_len if staggers else 0


def learner_device(num_learners: int, device: str, gpus: float) -> str:
    """Where the learners run, "cpu" or "cuda". Raises ValueError when there are fewer GPUs than learners."""
    if device == "auto":
        device = "cuda" if gpus >= 1 else "cpu"
        if num_learners > max(gpus, 1):
            raise ValueError(
                f"Experiment.num_learners={num_learners}: each learner needs a GPU of its own and there are {gpus:g}; "
                "lower num_learners, or set learner_device='cpu' to run the group on CPUs"
            )
    if device == "cuda" and num_learners > gpus:
        raise ValueError(
            f"Experiment.num_learners={num_learners}: each learner needs a GPU of its own and there are {gpus:g}"
        )
    return device


def share_gpus(
    num_learners: int, learner_device: str, num_workers: int, rollout_device: str, gpus: float
) -> tuple[float, float]:
    """GPUs of one learner and of one worker; gpus: of the whole cluster.

    Learners have whole ones. Where workers that act on a GPU find none beside it, a learner alone gives a part away;
    several do not, since Ray could then put two of them on one GPU.
    """
    learner = 1.0 if learner_device == "cuda" else 0.0
    if rollout_device != "cuda":
        return learner, 0.0
    left = gpus - num_learners * learner
    if not learner or num_learners > 1 or left >= ROLLOUT_GPU_SHARE * num_workers:
        return learner, ROLLOUT_GPU_SHARE
    return 1.0 - SHARED_GPU, math.floor(SHARED_GPU / num_workers * 1e4) / 1e4  # Ray counts in ten-thousandths
