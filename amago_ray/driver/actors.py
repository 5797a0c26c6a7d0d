"""Rollout workers and learners as Ray actors, each in a process of its own."""

from __future__ import annotations

import os
import socket
import time
import warnings
from pathlib import Path
from typing import Any

import ray
import torch

from amago_ray import config
from amago_ray.driver.malloc import keep_freed_memory
from amago_ray.driver.out_of_memory import naming_what_to_lower
from amago_ray.driver.plan import Plan
from amago_ray.driver.remote import RemoteShard
from amago_ray.envs.makers import env_spaces
from amago_ray.learner.learner import Learner
from amago_ray.messages import EvaluationReport, LearnReport, RolloutReport, Weights
from amago_ray.pending import ShardAway
from amago_ray.replay.client import ReplayReader, ReplayWriter
from amago_ray.replay.export import npz_writer
from amago_ray.rollout.assignment import Assignment
from amago_ray.rollout.halves import DoubleBufferedWorker, make_worker
from amago_ray.rollout.worker import RolloutConfig, RolloutWorker

Worker = RolloutWorker | DoubleBufferedWorker
EVALUATION_PART_S = 2.0  # how long one call of an evaluation should take


class RolloutActor:
    """A worker process: training environments, and validation environments that are built when first needed."""

    def __init__(self, plan: Plan, worker: int, shard_names: list[str]):
        keep_freed_memory()
        torch.set_num_threads(1)  # a small policy on several threads spends its time waiting for them
        config.restore(plan.gin_config)
        self._plan, self._worker = plan, worker
        self._incarnation = plan.incarnation
        with warnings.catch_warnings(action="ignore"):  # Ray's own, of how it finds that out
            restarted = ray.get_runtime_context().was_current_actor_reconstructed
        if restarted:
            self._incarnation = time.time_ns()  # Ray does not say how often it restarted this actor; time never repeats
        self._writer = ReplayWriter(find_shards(shard_names))
        self._training: Worker | None = None
        self._validation: Worker | None = None
        self._test: Worker | None = None

    def prepare(self) -> None:
        """Build the training environments, so that the first chunk is as fast as the others; when done, say so.

        Not in the constructor: what an environment raises there would look like a process that died.
        """
        if self._training is None and self._plan.collects:
            self._training = self._build(self._plan.rollout[self._worker], self._writer.write, self._flush)

    def collect(self, timesteps: int, weights: Weights, exploration_steps: int, resets: int) -> RolloutReport:
        self.prepare()
        assert self._training is not None, "a run that collects nothing asks nobody to"
        self._training.set_exploration_steps(exploration_steps)
        self._training.set_weights(weights)
        return self._training.collect(timesteps, resets)

    def pause(self, resets: int) -> dict[str, Any]:
        """See `RolloutWorker.pause`; empty where nothing was collected, or a shard is away."""
        try:
            return self._training.pause(resets) if self._training is not None else {}
        except ShardAway:
            return {}

    def load_state_dict(self, state: dict[str, Any], epoch: int) -> None:
        """Go on from what the worker of this number was after `epoch`."""
        self.prepare()
        if self._training is not None:
            self._training.load_state_dict(state, epoch)

    def validate(self, share: int, weights: Weights, assignment: Assignment, part: int) -> EvaluationReport:
        """One part of a share of the validation: in this worker's own environments, which it keeps, or an absent one's.

        part: how many parts of it the caller has; see `RolloutWorker.evaluate`.
        """
        if share != self._worker:
            return self.test(self._plan.validation[share], weights, assignment, part)
        if self._validation is None:
            self._validation = self._build_evaluation(self._plan.validation[share])
        self._validation.set_weights(weights)
        return self._validation.evaluate(assignment, part, part_s(assignment))

    def test(
        self,
        rollout: RolloutConfig,
        weights: Weights,
        assignment: Assignment,
        part: int,
        save_trajs_to: str | None = None,
    ) -> EvaluationReport:
        """One part of an evaluation in environments of its own, which are closed after the last.

        save_trajs_to: folder for the rollouts that count.
        """
        if part == 0 or self._test is None:
            self._close_test()
            write = None
            if save_trajs_to is not None:
                write = npz_writer(env_spaces(rollout.make_env, rollout.env_processes), Path(save_trajs_to))
            self._test = self._build_evaluation(rollout, write)
        self._test.set_weights(weights)
        try:
            report = self._test.evaluate(assignment, part, part_s(assignment))
        except BaseException:
            self._close_test()
            raise
        if report.finished:
            self._close_test()
        return report

    def _close_test(self) -> None:
        if self._test is not None:
            self._test.close()
            self._test = None

    def _build(self, rollout: RolloutConfig, write: Any = None, flush: Any = None) -> Worker:
        return make_worker(rollout, self._plan.agent_spec, self._worker, self._incarnation, write, flush)

    def _build_evaluation(self, rollout: RolloutConfig, write: Any = None) -> Worker:
        """Who plays an evaluation, and in which of its lives, makes no difference to the rollouts."""
        return make_worker(rollout, self._plan.agent_spec, write=write)

    def _flush(self) -> float:
        self._writer.flush()
        return self._writer.wait_s


class LearnerActor:
    """A learner process. Built in two steps, because the members of a group must know the first one's address.

    Everything that computes is called in one and the same thread; `ASIDE` has others. Each thread that computes has its
    own team of OpenMP threads, and teams that together have more threads than there are cores go to sleep after every
    operation: a GRU's updates then take half as long again.
    """

    ASIDE = "aside"  # Ray's concurrency group of what is called while `train` runs
    CONCURRENCY_GROUPS = {ASIDE: 2}  # to write, and to tell of it

    def __init__(self, plan: Plan, rank: int, shard_names: list[str]):
        keep_freed_memory()
        config.restore(plan.gin_config)
        self._plan, self._rank, self._shards = plan, rank, find_shards(shard_names)
        self._num_threads = max(int(plan.learner_cpus), 1)

    def address(self) -> tuple[str, int]:
        """This node's address and a free port, for the group to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def build(self, address: tuple[str, int]) -> None:
        """Join the group and make the agent. Returns when every member has joined."""
        torch.set_num_threads(self._num_threads)
        world_size = self._plan.num_learners
        if world_size > 1:
            os.environ |= {
                "MASTER_ADDR": address[0],
                "MASTER_PORT": str(address[1]),
                "RANK": str(self._rank),
                "LOCAL_RANK": "0",  # Ray shows every learner only its own GPU
                "WORLD_SIZE": str(world_size),
            }
        spec = self._plan.agent_spec
        batches_per_request, max_in_flight = self._plan.request_size
        reader = ReplayReader(
            self._shards,
            self._plan.batch_size,
            self._plan.learner.seed,
            self._rank,
            batches_per_request,
            max_in_flight,
            self._plan.importance_exponent,
            self._plan.bucketed,
        )
        with naming_what_to_lower(self._plan, self._rank):
            self._learner = Learner(self._plan.learner, spec, reader, self._rank, world_size)

    def train(self, num_batches: int, mixture: tuple[float, ...] | None, num_threads: int | None = None) -> LearnReport:
        """num_threads: to compute with, where that is not what the plan says."""
        torch.set_num_threads(num_threads or self._num_threads)
        with naming_what_to_lower(self._plan, self._rank):
            return self._learner.train(num_batches, mixture)

    @ray.method(concurrency_group=ASIDE)
    def progress(self) -> int:
        return self._learner.progress()

    def publish(self, version: int) -> tuple[Weights, int]:
        """Two results, so that the driver can wait for the small one and never fetch the other."""
        return self._learner.publish(version), version

    def snapshot(self, number: int) -> None:
        self._learner.snapshot(number)

    @ray.method(concurrency_group=ASIDE)
    def write_state(self, folder: str, policy: str, number: int) -> None:
        self._learner.write_state(folder, policy, number)

    def load_state(self, folder: str) -> None:
        self._learner.load_state(folder)

    def save_agent(self, path: str) -> None:
        self._learner.save_agent(path)

    def load_agent(self, path: str) -> None:
        self._learner.load_agent(path)


def part_s(assignment: Assignment) -> float:
    """How long one call of an evaluation should take: well below the time after which a silent worker is restarted."""
    return min(EVALUATION_PART_S, assignment.rollout_limit_s / 4)


def find_shards(names: list[str]) -> list[RemoteShard]:
    """The replay shards of this run, by the names of their actors."""
    return [RemoteShard(ray.get_actor(name), i) for i, name in enumerate(names)]
