"""From an experiment's settings and the size of a cluster to the processes of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amago_ray import config
from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.placement import Cluster, Node, matches, pool
from amago_ray.driver.processes import TopologyConfig
from amago_ray.driver.rate_limiter import RateLimiter
from amago_ray.envs.makers import MakeEnv, env_spaces, sendable_tasks
from amago_ray.learner.learner import LearnerConfig
from amago_ray.replay.datasets.dataset import RowLayout, mixture_of
from amago_ray.replay.sampling.selection import SelectionConfig
from amago_ray.replay.shard import ReplayConfig
from amago_ray.replay.storage.store import StoreConfig
from amago_ray.rollout.worker import RolloutConfig
from amago_ray.settings import ExperimentSettings, replay_folder

ROLLOUT_GPU_SHARE = 0.1  # of one GPU, for each worker that acts on a GPU
ENVS_PER_WORKER = 8  # what one worker can step together at good speed; sets the default number of workers


def plan(settings: ExperimentSettings, agent_spec: AgentSpec, cluster: Cluster, incarnation: int = 0) -> TopologyConfig:
    """Which processes there will be, and with what. Raises ValueError when there are fewer GPUs than learners."""
    x = settings
    device = learner_device(x.num_learners, x.learner_device, cluster.gpus)
    cpus, shards = cluster.cpus, x.num_replay_shards
    nodes = (*cluster.nodes, *cluster.growth)
    learner_nodes = _selector(x.learner_nodes, "learner", cluster, nodes)
    rollout_nodes = _selector(x.rollout_nodes, "rollout", cluster, nodes)
    free_cpus = _cpus_for_workers(cluster, nodes, learner_nodes, rollout_nodes, x.num_learners * (x.learner_cpus or 1))
    default_workers = min(max(free_cpus, 1), -(-x.parallel_actors // ENVS_PER_WORKER))
    workers = x.num_rollout_workers or default_workers
    learner_cpus = x.learner_cpus
    if learner_cpus is None:
        # On a machine of its own, a learner that takes turns with the workers may have every core when it is its turn.
        takes_turns = x.schedule == "alternate" or (x.schedule == "auto" and device == "cpu")
        # One core is left to replay, prefetching and the driver: threads that wait for a core stall all the others.
        free = cpus - 1 if takes_turns else cpus - workers - 1
        learner_cpus = max(free // x.num_learners, 1) if cluster.local else 1
    datasets = mixture_of(x.dataset).datasets
    return TopologyConfig(
        agent_spec=agent_spec,
        rollout=deal_environments(
            x, x.make_train_env, x.parallel_actors, workers, x.seed, x.sample_actions_train, explore=True
        ),
        validation=deal_environments(
            x, x.make_val_env, x.parallel_actors, workers, x.seed + 1, x.sample_actions_val, explore=False
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
                capacity_trajectories=-(-(x.replay_capacity_trajectories or 1 << 60) // shards),
                stride=shards,
            ),
            relabeler=None if x.relabeler_type is None else x.relabeler_type(),
            seed=x.seed,
        ),
        datasets=datasets,
        layout=RowLayout(*env_spaces(x.make_train_env)) if datasets else None,
        bucketed=x.batch_layout == "bucketed",
        importance_exponent=x.importance_exponent if x.replay_sampling == "prioritized" else 0.0,
        num_replay_shards=shards,
        learner=LearnerConfig(
            device=device,
            learning_rate=x.learning_rate,
            l2_coeff=x.l2_coeff,
            lr_warmup_steps=x.lr_warmup_steps,
            grad_clip=x.grad_clip,
            batches_per_update=x.batches_per_update,
            mixed_precision=x.mixed_precision,
            log_interval=x.log_interval,
            packed=x.batch_layout == "packed",
            seed=x.seed,
        ),
        num_learners=x.num_learners,
        batch_size=x.batch_size,
        gin_config=config.snapshot(),
        incarnation=incarnation,
        worker_gpus=ROLLOUT_GPU_SHARE if x.rollout_device == "cuda" else 0.0,
        learner_cpus=float(learner_cpus),
        learner_gpus=1.0 if device == "cuda" else 0.0,
        learner_nodes=learner_nodes,
        rollout_nodes=rollout_nodes,
    )


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


def rate_limiter(settings: ExperimentSettings) -> RateLimiter:
    """What holds the ratio of learning to collecting where both run freely."""
    x = settings
    per_epoch = x.parallel_actors * x.train_timesteps_per_epoch
    ratio = x.train_batches_per_epoch / max(per_epoch, 1)
    if x.updates_per_timestep is not None:
        ratio = x.updates_per_timestep * x.batches_per_update
    ratio = ratio or 1.0  # a run that never learns never asks
    # Both sides move in whole steps, and one of each must fit.
    tolerance = max(x.rate_tolerance * x.train_batches_per_epoch, 2.0, 2 * x.parallel_actors * ratio)
    return RateLimiter(ratio, x.replay_min_timesteps, tolerance)


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
        )
        for i, share in enumerate(shares)
    )


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
