"""The processes of a run, started and reachable: the only file where handles of actors are kept."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
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

from amago_ray.driver.actors import LearnerActor, RolloutActor
from amago_ray.driver.cluster import check_ray_lives, control_is_gone, leaving_nodes, node_of
from amago_ray.driver.placement import LEARNER, SHARD, WORKER, Role
from amago_ray.driver.plan import Plan
from amago_ray.driver.remote import RemoteCall, wait_any
from amago_ray.driver.shard_actor import ShardActor
from amago_ray.messages import EvaluationReport, LearnReport, ReplayReport, RolloutReport, Weights
from amago_ray.pending import CallTimeout, ProcessDied
from amago_ray.rollout.assignment import Assignment
from amago_ray.rollout.worker import RolloutConfig
from amago_ray.settings import ExperimentSettings
from amago_ray.warned import warn

T = TypeVar("T")
SENT_TO_PROCESSES = (
    "make_train_env",
    "make_val_env",
    "tstep_encoder_type",
    "traj_encoder_type",
    "agent_type",
    "exploration_wrapper_type",
    "dataset",
    "relabeler_type",
)
START_TIMEOUT_S = 300.0
NODE_TIMEOUT_S = 1800.0
TOLD_AFTER_S = 10.0  # that there is no room for learners and shards
FILES_TIMEOUT_S = 600.0  # for writing and reading states and weights


class LearnerDied(ProcessDied):
    """A member of the learner group is gone; the group must be rebuilt."""


class Spawner:
    """Starts and ends processes."""

    def start(self, role: type, args: tuple[Any, ...], options: dict[str, Any], named: bool = False) -> tuple[Any, str]:
        """A process that holds a `role` made of `args`, and its name in Ray: unique, or empty where it has none."""
        name = uuid.uuid4().hex if named else ""
        options = options | ({"name": name} if named else {})
        # Ray would keep three kilobytes of each of the last 100,000 calls.
        remote: Any = ray.remote
        return remote(**options, enable_task_events=False)(role).remote(*args), name

    def end(self, actor: Any) -> None:
        ray.kill(actor)


spawner = Spawner()


class Topology:
    """The processes of a run, started and reachable.

    Workers and shards that die are restarted by Ray under the same handle; a call that was in flight raises
    `ProcessDied`. Learners are started as a group by `start_learners`, and again when one is lost, because their state
    must be loaded again.

    learner_threads: that each learner computes with from its next call on; None for what the plan says.
    """

    learner_threads: int | None = None

    def __init__(self, plan: Plan, in_group: bool = False):
        """Start shards and workers. in_group: every process goes into the placement group that this one belongs to,
        whose last bundles are `bundles(plan)`; each into its own, because any other assignment may leave the last ones
        without room."""
        self.plan = plan
        group = get_current_placement_group() if in_group else None
        self._own_group = group is None
        self._group = _learner_group(plan) if group is None else group
        num_bundles = sum(role.count for role in plan.roles)
        self._first_bundle = 0 if group is None else len(group.bundle_specs) - num_bundles
        self._shard_names: list[str] = []
        self._shards: list[ActorHandle] = []
        self._workers: list[ActorHandle] = []
        self._learners: list[ActorHandle] = []
        try:
            self._start_shards()
            self._start_workers(in_group)
        except BaseException:
            self.close()
            raise

    def _start_shards(self) -> None:
        plan = self.plan
        for i in range(plan.num_replay_shards):
            # Others look the shards up by name: Ray cannot restart an actor whose constructor was given handles.
            options = {"num_cpus": 0, "memory": plan.shard_memory_bytes, "max_restarts": -1}
            args = (plan.replay, i, plan.num_replay_shards, plan.datasets, plan.layout, plan.gin_config)
            actor, name = spawner.start(ShardActor, args, options | self._bundle(plan.num_learners + i), named=True)
            self._shards.append(actor)
            self._shard_names.append(name)

    def _start_workers(self, in_group: bool) -> None:
        plan = self.plan
        spread: dict[str, Any] = {"scheduling_strategy": "SPREAD", "label_selector": dict(plan.rollout_nodes) or None}
        first_bundle = plan.num_learners + plan.num_replay_shards
        for i in range(len(plan.rollout)):
            options: dict[str, Any] = {"num_cpus": plan.worker_cpus, "num_gpus": plan.worker_gpus, "max_restarts": -1}
            options |= self._bundle(first_bundle + i) if in_group else spread
            self._workers.append(spawner.start(RolloutActor, (plan, i, self._shard_names), options)[0])

    def start_learners(self) -> None:
        """Start the learner group, with initial weights, ending the one that was there.

        Raises LearnerDied, or RayGone.
        """
        check_ray_lives()
        for actor in self._learners:
            spawner.end(actor)
        plan = self.plan
        options = {
            "num_cpus": plan.learner_cpus,
            "num_gpus": plan.learner_gpus,
            "concurrency_groups": LearnerActor.CONCURRENCY_GROUPS,
        }
        self._learners = [
            spawner.start(LearnerActor, (plan, i, self._shard_names), options | self._bundle(i))[0]
            for i in range(plan.num_learners)
        ]
        if not self._group.wait(TOLD_AFTER_S):
            wanted = ", ".join(f"{r.count} {r.name}{'s' * (r.count != 1)} of {r.each}" for r in plan.roles[:2])
            warn(f"the run waits for nodes with room for {wanted} (`ray status` shows what others have)")
        first: RemoteCall[tuple[str, int]] = RemoteCall(self._learners[0].address.remote(), "learner 0")
        started = time.monotonic()  # on a cluster that grows its node may have to be started
        while not wait_any([first], timeout_s=1.0):
            check_ray_lives()
            if time.monotonic() - started > NODE_TIMEOUT_S:
                raise LearnerDied(f"learner 0 has found no node within {NODE_TIMEOUT_S:g} s")
        address = _learner_result(first)
        self._on_learners(lambda learner: learner.build.remote(address), START_TIMEOUT_S)

    def _bundle(self, index: int) -> dict[str, Any]:
        """Options that put a process into its bundle of the placement group."""
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, self._first_bundle + index)}

    # ---------------------------------------------------------------- nodes

    def leaving_nodes(self) -> dict[str, float | None]:
        """Ids of the nodes that are about to be taken away, and in how many seconds, where that is known.

        Raises RayGone.
        """
        check_ray_lives()
        return leaving_nodes()

    def nodes_of_processes(self) -> dict[tuple[str, int], str]:
        """Id of the node of each process that is up, by its role and number."""
        roles: tuple[tuple[str, list[Any]], ...] = (
            (WORKER, self._workers), (SHARD, self._shards), (LEARNER, self._learners)
        )  # fmt: skip
        found = {(role, i): node_of(a._actor_id.hex()) for role, actors in roles for i, a in enumerate(actors)}
        return {process: node for process, node in found.items() if node}

    # ---------------------------------------------------------------- rollout workers

    @property
    def num_workers(self) -> int:
        return len(self._workers)

    def num_envs(self, worker: int) -> int:
        return self.plan.rollout[worker].num_envs

    def ping(self, worker: int) -> RemoteCall:
        """Answered when a worker is up: it has found a node, has its environments and is ready for work.

        Raises RayGone.
        """
        check_ray_lives()
        actor: Any = self._workers[worker]
        return RemoteCall(actor.prepare.remote(), f"rollout worker {worker}", role=RolloutActor)

    def pause(self, worker: int, resets: int) -> RemoteCall[dict[str, Any]]:
        """Ask a worker what it would go on from. resets: as in its next call of `collect`."""
        actor: Any = self._workers[worker]
        return RemoteCall(actor.pause.remote(resets), f"rollout worker {worker}")

    def load_worker(self, worker: int, state: dict[str, Any], epoch: int) -> RemoteCall[None]:
        """Let a worker go on from a state that it had after `epoch`."""
        actor: Any = self._workers[worker]
        return RemoteCall(actor.load_state_dict.remote(state, epoch), f"rollout worker {worker}")

    def collect(
        self, worker: int, timesteps: int, weights: RemoteCall[Weights], exploration_steps: int, resets: int = 0
    ) -> RemoteCall[RolloutReport]:
        """Start one chunk of collection on one worker. resets: how often the environments have been reset by now."""
        actor: Any = self._workers[worker]
        ref = actor.collect.remote(timesteps, weights.ref, exploration_steps, resets)
        return RemoteCall(ref, f"rollout worker {worker}")

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

    def restart_worker(self, worker: int) -> None:
        """Kill a worker that hangs; Ray starts it anew."""
        ray.kill(self._workers[worker], no_restart=False)

    # ---------------------------------------------------------------- replay shards

    def commit(self, number: int) -> list[RemoteCall[ReplayReport]]:
        """Make what was pushed visible on every shard: one call per shard."""
        return [RemoteCall(s.commit.remote(number), f"replay shard {i}") for i, s in enumerate(self._shards)]

    def mark_shards(self) -> list[RemoteCall[dict[str, Any]]]:
        """Ask every shard for the place that its log is at: what `rewind_shard` goes back to."""
        return [RemoteCall(s.mark.remote(), f"replay shard {i}") for i, s in enumerate(self._shards)]

    def hold_shard(self, shard: int, mark: dict[str, Any]) -> RemoteCall[None]:
        """Let a shard keep what a mark needs."""
        return RemoteCall(self._shards[shard].hold.remote(mark), f"replay shard {shard}")

    def rewind_shard(self, shard: int, mark: dict[str, Any]) -> RemoteCall[ReplayReport]:
        """Let a shard forget what it stored after a mark."""
        return RemoteCall(self._shards[shard].rewind.remote(mark), f"replay shard {shard}")

    def ping_shards(self) -> list[RemoteCall[Any]]:
        """Ask every shard whether it answers."""
        return [RemoteCall(s.__ray_ready__.remote(), f"replay shard {i}") for i, s in enumerate(self._shards)]

    def restart_shard(self, shard: int) -> None:
        """Kill a shard that hangs; Ray starts it anew, and it reads its files again."""
        ray.kill(self._shards[shard], no_restart=False)

    # ---------------------------------------------------------------- learners

    def train(self, num_batches: int, mixture: tuple[float, ...] | None) -> list[RemoteCall[LearnReport]]:
        """Start learning on every learner of the group. mixture: weight of each source of data."""
        args = (num_batches, mixture, self.learner_threads)
        return [RemoteCall(a.train.remote(*args), f"learner {i}") for i, a in enumerate(self._learners)]

    def learn_progress(self) -> RemoteCall[int]:
        """Ask how many batches the first learner has done."""
        return RemoteCall(self._learners[0].progress.remote(), "learner 0")

    def publish(self, version: int, timeout_s: float) -> RemoteCall[Weights]:
        """The weights that act now, as a reference: nodes fetch them once each, this process never.

        Raises LearnerDied. Workers that were handed weights which never came would fail in the learner's place.
        """
        learner: Any = self._learners[0]
        weights, done = learner.publish.options(num_returns=2).remote(version)
        _learner_result(RemoteCall[int](done, "learner 0"), timeout_s)
        return RemoteCall(weights, "learner 0")

    def snapshot(self, number: int) -> None:
        """Let every learner copy its state as it is now. Raises LearnerDied."""
        self._on_learners(lambda learner: learner.snapshot.remote(number))

    def write_state(self, folder: Path, policy: Path, number: int) -> list[RemoteCall[None]]:
        """Let every learner write its share of snapshot `number`, and the first one the agent's weights."""
        return [
            RemoteCall(a.write_state.remote(str(folder), str(policy), number), f"learner {i}")
            for i, a in enumerate(self._learners)
        ]

    def load_state(self, folder: Path) -> None:
        """Put the group where it was when it wrote `folder`. Raises LearnerDied."""
        self._on_learners(lambda learner: learner.load_state.remote(str(folder)))

    def save_agent(self, path: Path) -> None:
        """Write the agent's weights. Raises LearnerDied."""
        self._on_learners(lambda learner: learner.save_agent.remote(str(path)), first_only=True)

    def load_agent(self, path: Path) -> None:
        """Go on from an agent's weights. Raises LearnerDied, or RuntimeError where they are of another architecture."""
        self._on_learners(lambda learner: learner.load_agent.remote(str(path)))

    def _on_learners(
        self, start: Callable[[Any], ray.ObjectRef], timeout_s: float = FILES_TIMEOUT_S, first_only: bool = False
    ) -> None:
        """Start a call on the group, or on its first member, and wait for all answers."""
        learners = self._learners[:1] if first_only else self._learners
        calls: list[RemoteCall] = [RemoteCall(start(a), f"learner {i}") for i, a in enumerate(learners)]
        for call in calls:
            _learner_result(call, timeout_s)

    def close(self) -> None:
        """End every process of the run."""
        if control_is_gone():  # and everybody with it
            return
        for actor in (*self._learners, *self._workers, *self._shards):
            spawner.end(actor)
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


def _learner_group(plan: Plan) -> PlacementGroup:
    """Learners and shards on as few nodes as possible: batches are the most of the traffic."""
    wanted, labels = bundles(plan.roles[:2])
    return placement_group(wanted, strategy="PACK", bundle_label_selector=labels)


def _learner_result(call: RemoteCall[T], timeout_s: float | None = None) -> T:
    """The answer of a learner. Raises LearnerDied where it is gone, or silent for `timeout_s`."""
    try:
        return call.result(timeout_s)
    except (ProcessDied, CallTimeout) as death:
        raise LearnerDied(str(death)) from death


def _hidden_by_gin(value: Any) -> str:
    """The name of a function or class in `value` that its module knows without what gin has wrapped it in; or ""."""
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_hidden_by_gin, value)), "")
    if isinstance(value, partial):
        return _hidden_by_gin(value.func)
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    known = getattr(sys.modules.get(module or ""), name or "", None)
    inner = value.__mro__[1] if isinstance(value, type) else getattr(value, "__wrapped__", None)
    return f"{module}.{name}" if known is not None and known is inner else ""


def check_sendable(settings: ExperimentSettings) -> None:
    """Raises ValueError, naming the setting, for what cannot be sent to other processes."""
    for name in SENT_TO_PROCESSES:
        value = getattr(settings, name)
        try:
            cloudpickle.dumps(value)
        except Exception as error:  # whatever pickling a user's object may raise
            if hidden := _hidden_by_gin(value):
                raise ValueError(
                    f"Experiment.{name}={value!r} cannot be sent to other processes: gin's register and "
                    f"external_configurable leave the name {hidden} to the object without gin's settings; decorate it, "
                    "or a subclass or function of your own that makes one, with @gin.configurable"
                ) from error
            raise ValueError(
                f"Experiment.{name}={value!r} cannot be sent to other processes ({error}): define it in a module of "
                "its own where it is gin-configurable, and let it hold no locks, files or open connections"
            ) from error
