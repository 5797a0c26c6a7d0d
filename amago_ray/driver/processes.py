"""Everything that the processes of a run are made of, and what they ask of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.placement import LEARNER, SHARD, WORKER, Resources, Role
from amago_ray.learner.learner import LearnerConfig
from amago_ray.replay.client import BUCKETS, request_size
from amago_ray.replay.datasets.dataset import RowLayout, TrajectoryDataset
from amago_ray.replay.shard import ReplayConfig
from amago_ray.rollout.worker import RolloutConfig
from amago_ray.specs import row_bytes

SHARD_MEMORY_OVERHEAD = 1.1  # free space in segments, on top of a shard's stored bytes
SHARD_MEMORY_BYTES = 256 << 20  # the process, its index and messages in flight


@dataclass(frozen=True)
class TopologyConfig:
    """Everything that the processes of a run are made of.

    rollout, validation: one entry per rollout worker. incarnation: how often the run was resumed, so that trajectories
    keep unique identities. worker_cpus, learner_cpus, learner_gpus, worker_gpus: resources of one process.
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
    num_replay_shards: int
    learner: LearnerConfig
    num_learners: int
    batch_size: int
    gin_config: str
    incarnation: int = 0
    worker_cpus: float = 1.0
    worker_gpus: float = 0.0
    learner_cpus: float = 1.0
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
