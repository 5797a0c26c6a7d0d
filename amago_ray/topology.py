"""Which processes there are, where they run and with what: the only file where roles become Ray actors."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
import torch
from ray import cloudpickle
from ray.actor import ActorHandle
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from amago_ray import config
from amago_ray.agent import AgentSpec
from amago_ray.allocator import keep_freed_memory
from amago_ray.calls import RemoteCall, RemoteShard
from amago_ray.data import LearnReport, ReplayReport, RolloutReport, Weights, row_bytes
from amago_ray.futures import ProcessDied
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.placement import LEARNER, SHARD, WORKER, Resources, Role
from amago_ray.replay.client import BUCKETS, ReplayReader, ReplayWriter, request_size
from amago_ray.replay.datasets import RLDataset, RowLayout
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.rollout.worker import RolloutConfig, RolloutWorker

T = TypeVar("T")

START_TIMEOUT_S = 300.0
NODE_TIMEOUT_S = 1800.0
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
    datasets: tuple[RLDataset, ...]
    bucketed: bool
    importance_exponent: float
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


class LearnerDied(ProcessDied):
    """A member of the learner group is gone; the group must be rebuilt."""


class ShardActor(ReplayShard):
    """A replay process."""

    def __init__(self, topology: TopologyConfig, shard: int):
        keep_freed_memory()
        config.restore(topology.gin_config)
        sources = []
        for dataset in topology.datasets:
            assert topology.layout is not None, "a run with datasets has a layout"
            sources.append(dataset.source(topology.layout, shard, topology.num_replay_shards))
        super().__init__(topology.replay, shard, sources)


class RolloutActor:
    """A worker process: training environments, and validation environments that are built when first needed."""

    def __init__(self, topology: TopologyConfig, worker: int, shard_names: list[str]):
        keep_freed_memory()
        torch.set_num_threads(1)  # a small policy on several threads spends its time waiting for them
        config.restore(topology.gin_config)
        self._topology, self._worker = topology, worker
        self._incarnation = topology.incarnation
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._incarnation = time.time_ns()  # Ray does not say how often it restarted this actor; time never repeats
        self._writer = ReplayWriter(find_shards(shard_names))
        self._training: RolloutWorker | None = None
        self._validation: RolloutWorker | None = None

    def collect(self, timesteps: int, weights: Weights, exploration_steps: int) -> RolloutReport:
        if self._training is None:
            self._training = self._build(self._topology.rollout[self._worker], self._writer.write, self._flush)
        self._training.set_exploration_steps(exploration_steps)
        self._training.set_weights(weights)
        return self._training.collect(timesteps)

    def validate(
        self, share: int, weights: Weights, steps_per_env: int | None, episodes_per_env: int | None
    ) -> RolloutReport:
        """Evaluate in a share of the validation environments: this worker's own, which it keeps, or an absent one's."""
        if share != self._worker:
            return self.test(self._topology.validation[share], weights, steps_per_env, episodes_per_env)
        if self._validation is None:
            self._validation = self._build(self._topology.validation[share])
        self._validation.set_weights(weights)
        return self._validation.evaluate(steps_per_env, episodes_per_env)

    def test(
        self, rollout: RolloutConfig, weights: Weights, steps_per_env: int | None, episodes_per_env: int | None
    ) -> RolloutReport:
        """Evaluate in environments of their own, which are closed afterwards."""
        worker = self._build(rollout)
        with contextlib.closing(worker):
            worker.set_weights(weights)
            return worker.evaluate(steps_per_env, episodes_per_env)

    def _build(self, rollout: RolloutConfig, write: Any = None, flush: Any = None) -> RolloutWorker:
        return RolloutWorker(rollout, self._topology.agent_spec, self._worker, self._incarnation, write, flush)

    def _flush(self) -> float:
        self._writer.flush()
        return self._writer.wait_s


class LearnerActor:
    """A learner process. Built in two steps, because the members of a group must know the first one's address."""

    def __init__(self, topology: TopologyConfig, rank: int, shard_names: list[str]):
        keep_freed_memory()
        config.restore(topology.gin_config)
        self._topology, self._rank, self._shards = topology, rank, find_shards(shard_names)
        self._num_threads = max(int(topology.learner_cpus), 1)

    def address(self) -> tuple[str, int]:
        """This node's address and a free port, for the group to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def build(self, address: tuple[str, int]) -> None:
        """Join the group and make the agent. Returns when every member has joined."""
        torch.set_num_threads(self._num_threads)
        world_size = self._topology.num_learners
        if world_size > 1:
            os.environ |= {
                "MASTER_ADDR": address[0],
                "MASTER_PORT": str(address[1]),
                "RANK": str(self._rank),
                "LOCAL_RANK": "0",  # Ray shows every learner only its own GPU
                "WORLD_SIZE": str(world_size),
            }
        spec = self._topology.agent_spec
        batches_per_request, max_in_flight = self._topology.request_size
        reader = ReplayReader(
            self._shards,
            self._topology.batch_size,
            self._topology.learner.seed,
            self._rank,
            batches_per_request,
            max_in_flight,
            self._topology.importance_exponent,
            self._topology.bucketed,
        )
        self._learner = Learner(self._topology.learner, spec, reader, self._rank, world_size)

    def train(self, num_batches: int, mixture: tuple[float, ...] | None) -> LearnReport:
        torch.set_num_threads(self._num_threads)  # a setting of the thread, and calls change threads
        return self._learner.train(num_batches, mixture)

    def progress(self) -> int:
        return self._learner.progress()

    def publish(self, version: int) -> tuple[Weights, int]:
        """Two results, so that the driver can wait for the small one and never fetch the other."""
        return self._learner.publish(version), version

    def save_state(self, folder: str) -> None:
        self._learner.save_state(folder)

    def load_state(self, folder: str) -> None:
        self._learner.load_state(folder)

    def save_agent(self, path: str) -> None:
        self._learner.save_agent(path)

    def load_agent(self, path: str) -> None:
        self._learner.load_agent(path)


def find_shards(names: list[str]) -> list[RemoteShard]:
    """The replay shards of this run, by the names of their actors."""
    return [RemoteShard(ray.get_actor(name), i) for i, name in enumerate(names)]


class Topology:
    """The processes of a run, started and reachable.

    Workers and shards that die are restarted by Ray under the same handle; a call that was in flight raises
    `ProcessDied`. Learners are rebuilt as a group by `rebuild_learners`, because their state must be loaded again.
    """

    def __init__(self, topology: TopologyConfig, in_group: bool = False):
        """in_group: every process goes into the placement group that this one belongs to, whose last bundles are
        `bundles(topology)`; each into its own, because any other assignment may leave the last ones without room."""
        self.config = topology
        # Others look the shards up by name: Ray cannot restart an actor whose constructor was given handles. The prefix
        # keeps runs that share a Ray instance apart.
        prefix = uuid.uuid4().hex
        group = get_current_placement_group() if in_group else None
        self._own_group = group is None
        self._group = _learner_group(topology) if group is None else group
        num_bundles = sum(role.count for role in topology.roles)
        self._first_bundle = 0 if group is None else len(group.bundle_specs) - num_bundles
        shard_class: Any = ray.remote(ShardActor)
        self._shard_names = [f"{prefix}-shard-{i}" for i in range(topology.num_replay_shards)]
        self._shards: list[ActorHandle] = [
            shard_class.options(
                name=name,
                num_cpus=0,
                memory=topology.shard_memory_bytes,
                max_restarts=-1,
                **self._bundle(topology.num_learners + i),
            ).remote(topology, i)
            for i, name in enumerate(self._shard_names)
        ]
        spread = {"scheduling_strategy": "SPREAD", "label_selector": dict(topology.rollout_nodes) or None}
        worker_class: Any = ray.remote(RolloutActor)
        self._workers: list[ActorHandle] = [
            worker_class.options(
                num_cpus=topology.worker_cpus,
                num_gpus=topology.worker_gpus,
                max_restarts=-1,
                **(self._bundle(topology.num_learners + topology.num_replay_shards + i) if in_group else spread),
            ).remote(topology, i, self._shard_names)
            for i in range(len(topology.rollout))
        ]
        self._learners: list[ActorHandle] = []
        self.rebuild_learners()

    def _bundle(self, index: int) -> dict[str, Any]:
        """Options that put a process into its bundle of the placement group."""
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, self._first_bundle + index)}

    @property
    def num_workers(self) -> int:
        return len(self._workers)

    def num_envs(self, worker: int) -> int:
        return self.config.rollout[worker].num_envs

    def ping(self, worker: int) -> RemoteCall:
        """Answered when a worker is up: it has found a node and is ready for work."""
        actor: Any = self._workers[worker]
        return RemoteCall(actor.__ray_ready__.remote(), f"rollout worker {worker}")

    def collect(self, worker: int, timesteps: int, weights: RemoteCall[Weights], exploration_steps: int) -> RemoteCall:
        """Start one chunk of collection on one worker; the answer is a `RolloutReport`."""
        actor: Any = self._workers[worker]
        ref = actor.collect.remote(timesteps, weights.ref, exploration_steps)
        return RemoteCall(ref, f"rollout worker {worker}")

    def restart_worker(self, worker: int) -> None:
        """Kill a worker that hangs; Ray starts it anew."""
        ray.kill(self._workers[worker], no_restart=False)

    def validate(
        self,
        worker: int,
        share: int,
        weights: RemoteCall[Weights],
        steps_per_env: int | None,
        episodes_per_env: int | None,
    ) -> RemoteCall[RolloutReport]:
        """Start one share of the validation on a worker: its own, or that of one that is away."""
        actor: Any = self._workers[worker]
        ref = actor.validate.remote(share, weights.ref, steps_per_env, episodes_per_env)
        return RemoteCall(ref, f"validation on rollout worker {worker}")

    def test(
        self,
        worker: int,
        rollout: RolloutConfig,
        weights: RemoteCall[Weights],
        steps_per_env: int | None,
        episodes_per_env: int | None,
    ) -> RemoteCall[RolloutReport]:
        """Start an evaluation in environments of its own on a worker."""
        actor: Any = self._workers[worker]
        ref = actor.test.remote(rollout, weights.ref, steps_per_env, episodes_per_env)
        return RemoteCall(ref, f"evaluation on rollout worker {worker}")

    def commit(self, timeout_s: float, number: int | None = None) -> list[ReplayReport]:
        """Make what was pushed visible on every shard. A shard that is just restarting does so with the next commit."""
        calls: list[RemoteCall] = [
            RemoteCall(s.commit.remote(number), f"replay shard {i}") for i, s in enumerate(self._shards)
        ]
        reports = []
        for call in calls:
            with contextlib.suppress(ProcessDied):
                reports.append(call.result(timeout_s))
        return reports

    def train(self, num_batches: int, mixture: tuple[float, ...] | None) -> list[RemoteCall[LearnReport]]:
        """Start learning on every learner of the group. mixture: weight of each source of data."""
        return [RemoteCall(a.train.remote(num_batches, mixture), f"learner {i}") for i, a in enumerate(self._learners)]

    def learn_progress(self) -> RemoteCall[int]:
        """Ask how many batches the first learner has done."""
        return RemoteCall(self._learners[0].progress.remote(), "learner 0")

    def publish(self, version: int) -> RemoteCall[Weights]:
        """The weights that act now, as a reference: nodes fetch them once each, this process never.

        Raises LearnerDied. Workers that were handed weights which never came would fail in the learner's place.
        """
        learner: Any = self._learners[0]
        weights, done = learner.publish.options(num_returns=2).remote(version)
        _learner_result(RemoteCall[int](done, "learner 0"))
        return RemoteCall(weights, "learner 0")

    def on_learners(self, method: str, argument: str, first_only: bool = False, timeout_s: float = 600.0) -> None:
        """Call `save_state`, `load_state`, `save_agent` or `load_agent` on the group and wait. Raises LearnerDied."""
        learners = self._learners[:1] if first_only else self._learners
        calls: list[RemoteCall] = [
            RemoteCall(getattr(a, method).remote(argument), f"learner {i}") for i, a in enumerate(learners)
        ]
        for call in calls:
            _learner_result(call, timeout_s)

    def rebuild_learners(self) -> None:
        """Start the learner group, with initial weights, ending the one that was there. Raises LearnerDied."""
        for actor in self._learners:
            ray.kill(actor)
        topology = self.config
        learner_class: Any = ray.remote(LearnerActor)
        self._learners = [
            learner_class.options(
                num_cpus=topology.learner_cpus, num_gpus=topology.learner_gpus, max_concurrency=2, **self._bundle(i)
            ).remote(topology, i, self._shard_names)
            for i in range(topology.num_learners)
        ]
        first: RemoteCall[tuple[str, int]] = RemoteCall(self._learners[0].address.remote(), "learner 0")
        address = _learner_result(first, NODE_TIMEOUT_S)  # on a cluster that grows its node may have to be started
        calls: list[RemoteCall] = [
            RemoteCall(a.build.remote(address), f"learner {i}") for i, a in enumerate(self._learners)
        ]
        for call in calls:
            _learner_result(call, START_TIMEOUT_S)

    def close(self) -> None:
        """End every process of the run."""
        for actor in (*self._learners, *self._workers, *self._shards):
            ray.kill(actor)
        if self._own_group:
            remove_placement_group(self._group)


def bundles(roles: Sequence[Role]) -> tuple[list[dict[str, float]], list[dict[str, str]] | None]:
    """One bundle per process, in the order of the roles, and the label selectors of their nodes, if there are any."""
    found, labels = [], []
    for role in roles:
        amounts = {"CPU": role.each.cpus, "GPU": role.each.gpus, "memory": role.each.memory_bytes}
        found += [{name: amount for name, amount in amounts.items() if amount}] * role.count
        labels += [dict(role.labels)] * role.count
    return found, labels if any(labels) else None


def _learner_group(topology: TopologyConfig) -> PlacementGroup:
    """Learners and shards on as few nodes as possible: batches are the most of the traffic."""
    wanted, labels = bundles(topology.roles[:2])
    return placement_group(wanted, strategy="PACK", bundle_label_selector=labels)


def _learner_result(call: RemoteCall[T], timeout_s: float | None = None) -> T:
    """The answer of a learner. Raises LearnerDied where the call raises ProcessDied."""
    try:
        return call.result(timeout_s)
    except ProcessDied as death:
        raise LearnerDied(str(death)) from death


def check_sendable(settings: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the setting, for what cannot be sent to other processes."""
    for name, value in settings.items():
        try:
            cloudpickle.dumps(value)
        except Exception as error:  # whatever pickling a user's object may raise
            raise ValueError(
                f"Experiment.{name}={value!r} cannot be sent to other processes ({error}): define it in a module of "
                "its own where it is gin-configurable, and let it hold no locks, files or open connections"
            ) from error
