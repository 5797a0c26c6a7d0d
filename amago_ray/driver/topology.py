"""Which processes there are, where they run and with what: the only file where roles become Ray actors."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray import cloudpickle
from ray.actor import ActorHandle
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from amago_ray.driver.actors import LearnerActor, RolloutActor, ShardActor
from amago_ray.driver.placement import Role
from amago_ray.driver.processes import TopologyConfig
from amago_ray.driver.remote import RemoteCall
from amago_ray.messages import EvaluationReport, LearnReport, ReplayReport, RolloutReport, Weights
from amago_ray.pending import ProcessDied
from amago_ray.rollout.assignment import Assignment
from amago_ray.rollout.worker import RolloutConfig

T = TypeVar("T")
START_TIMEOUT_S = 300.0
NODE_TIMEOUT_S = 1800.0


class LearnerDied(ProcessDied):
    """A member of the learner group is gone; the group must be rebuilt."""


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

    def collect(
        self, worker: int, timesteps: int, weights: RemoteCall[Weights], exploration_steps: int, resets: int = 0
    ) -> RemoteCall[RolloutReport]:
        """Start one chunk of collection on one worker. resets: how often the environments have been reset by now."""
        actor: Any = self._workers[worker]
        ref = actor.collect.remote(timesteps, weights.ref, exploration_steps, resets)
        return RemoteCall(ref, f"rollout worker {worker}")

    def restart_worker(self, worker: int) -> None:
        """Kill a worker that hangs; Ray starts it anew."""
        ray.kill(self._workers[worker], no_restart=False)

    def validate(
        self,
        worker: int,
        share: int,
        weights: RemoteCall[Weights],
        assignment: Assignment,
        part: int,
    ) -> RemoteCall[EvaluationReport]:
        """Start a part of one share of the validation on a worker: its own, or that of one that is away."""
        actor: Any = self._workers[worker]
        ref = actor.validate.remote(share, weights.ref, assignment, part)
        return RemoteCall(ref, f"validation on rollout worker {worker}")

    def test(
        self,
        worker: int,
        rollout: RolloutConfig,
        weights: RemoteCall[Weights],
        assignment: Assignment,
        part: int,
        save_trajs_to: str | None = None,
    ) -> RemoteCall[EvaluationReport]:
        """Start a part of an evaluation in environments of its own on a worker."""
        actor: Any = self._workers[worker]
        ref = actor.test.remote(rollout, weights.ref, assignment, part, save_trajs_to)
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
