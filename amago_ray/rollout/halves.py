"""Double buffering: one half of a worker's environments steps while the policy acts for the other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from amago_ray.agent.spec import AgentSpec
from amago_ray.envs.makers import EnvFailure, make_pools
from amago_ray.messages import EvaluationReport, RolloutReport, Trajectory, Weights
from amago_ray.rollout.assignment import Assignment
from amago_ray.rollout.recorder import Numbers
from amago_ray.rollout.worker import Chunk, RolloutConfig, RolloutWorker, acting_policy, env_seed
from amago_ray.warned import warned


def make_worker(
    config: RolloutConfig,
    agent_spec: AgentSpec,
    worker: int = 0,
    incarnation: int = 0,
    write: Callable[[Trajectory], None] | None = None,
    flush: Callable[[], float] | None = None,
) -> RolloutWorker | DoubleBufferedWorker:
    """The worker that `config` asks for. Arguments as of `RolloutWorker`."""
    processes = config.env_processes
    halves = processes is not None and processes.double_buffer and config.num_envs > 1
    kind = DoubleBufferedWorker if halves else RolloutWorker
    return kind(config, agent_spec, worker, incarnation, write, flush)


def halved(config: RolloutConfig) -> tuple[RolloutConfig, RolloutConfig]:
    """What two workers would be told that shared the environments of one."""
    first = (config.num_envs + 1) // 2
    total_envs = config.total_envs or config.first_env + config.num_envs
    return (
        replace(config, num_envs=first, total_envs=total_envs),
        replace(config, num_envs=config.num_envs - first, first_env=config.first_env + first, total_envs=total_envs),
    )


class DoubleBufferedWorker:
    """A `RolloutWorker` whose environments, in processes of their own, are two fixed halves that take turns.

    The promise: it collects, transition by transition, what two workers do that have a half of the environments each
    and make the same number of steps in every environment. How fast an environment is changes nothing of it. Arguments
    as of `RolloutWorker`; there are two environments at least, and `config.env_processes`.
    """

    def __init__(
        self,
        config: RolloutConfig,
        agent_spec: AgentSpec,
        worker: int = 0,
        incarnation: int = 0,
        write: Callable[[Trajectory], None] | None = None,
        flush: Callable[[], float] | None = None,
    ):
        assert config.env_processes is not None
        self.config = config
        configs, policy, numbers = halved(config), acting_policy(config, agent_spec), Numbers()
        pools = make_pools(
            config.make_env,
            [(half.first_env, half.num_envs) for half in configs],
            env_seed(config, incarnation),
            config.env_processes,
            total_envs=configs[0].total_envs,
        )
        self._halves = [
            RolloutWorker(half, agent_spec, worker, incarnation, write, flushed, pool, policy, numbers)
            for half, flushed, pool in zip(configs, (flush, None), pools, strict=True)
        ]
        self._assignment: Assignment | None = None  # of the evaluation under way
        self._open: list[RolloutWorker] = []  # the halves that have rollouts of it to play
        self._parts = self._left_out = 0

    def set_weights(self, weights: Weights) -> None:
        """As `RolloutWorker.set_weights`."""
        for half in self._halves:
            half.set_weights(weights)

    def set_exploration_steps(self, steps_per_env: int) -> None:
        """As `RolloutWorker.set_exploration_steps`."""
        for half in self._halves:
            half.set_exploration_steps(steps_per_env)

    def collect(self, timesteps: int, resets: int = 0) -> RolloutReport:
        """As `RolloutWorker.collect`: the same number of steps in every environment."""
        chunk = Chunk()
        for half in self._halves:
            chunk.trajectories += half.begin_chunk(resets).trajectories
        left = dict.fromkeys(self._halves, -(-timesteps // self.config.num_envs))

        def goes_on(half: RolloutWorker) -> bool:
            left[half] -= 1
            return left[half] > 0

        self._take_turns(self._halves, chunk, goes_on)
        first, second = self._halves[0].report(chunk), self._halves[1].report(Chunk())
        return replace(
            first,
            num_envs=self.config.num_envs,
            env_failures=first.env_failures + second.env_failures,
            env_failed=first.env_failed or second.env_failed,
            exploration={
                name: self._mean(value, second.exploration[name]) for name, value in first.exploration.items()
            },
        )

    def evaluate(self, assignment: Assignment, part: int = 0, time_s: float = math.inf) -> EvaluationReport:
        """As `RolloutWorker.evaluate`."""
        if self._assignment != assignment or part != self._parts or not part:
            self._start_evaluation(assignment)
        chunk, deadline = Chunk(), time.monotonic() + time_s
        playing = [half for half in self._open if not half.evaluated]
        self._take_turns(playing, chunk, lambda half: not half.evaluated and time.monotonic() <= deadline)
        reports = [half.report_evaluation(Chunk()) for half in self._open]
        self._open = [half for half, report in zip(self._open, reports, strict=True) if not report.finished]
        left_out = self._left_out + sum(report.unfinished for report in reports)
        self._left_out += sum(report.unfinished for report in reports if report.finished)
        part, self._parts = self._parts, self._parts + 1
        if not self._open:
            self._assignment = None
        episodes = {origin: result for report in reports for origin, result in report.episodes.items()}
        failed, steps = (
            next((report.env_failed for report in reports if report.env_failed), ""),
            chunk.frames.by_name().total(),
        )
        return EvaluationReport(part, episodes, left_out, not self._open, steps, warned(), failed)

    def pause(self, resets: int) -> dict[str, Any]:
        """As `RolloutWorker.pause`."""
        second, first = (
            half.pause(resets) for half in reversed(self._halves)
        )  # the first one waits for what is stored
        return {"halves": [first, second]}

    def load_state_dict(self, state: dict[str, Any], epoch: int) -> None:
        """As `RolloutWorker.load_state_dict`."""
        first, second = state.get("halves", ({}, {}))
        before = self._halves[1].parts()
        self._halves[1].load_parts(second)
        try:
            self._halves[0].load_parts(first)  # it was paused last, and knows the numbers of both
        except ValueError:
            self._halves[1].load_parts(before)
            raise
        for half, own in zip(self._halves, (first, second), strict=True):
            half.begin_again(own, epoch)

    def close(self) -> None:
        for half in self._halves:
            half.close()

    def _start_evaluation(self, assignment: Assignment) -> None:
        self._assignment, self._open, self._parts, self._left_out = assignment, list(self._halves), 0, 0
        first, second = self._halves
        num = first.config.num_envs
        first.start_evaluation(replace(assignment, rollouts=assignment.rollouts[:num]))
        second.start_evaluation(
            replace(assignment, first_env=assignment.first_env + num, rollouts=assignment.rollouts[num:])
        )

    def _take_turns(
        self, halves: Sequence[RolloutWorker], chunk: Chunk, goes_on: Callable[[RolloutWorker], bool]
    ) -> None:
        """Step each half once, and again for as long as it `goes_on`."""
        stepping = list(halves)
        try:
            for half in stepping:
                with half.random:
                    half.prepare()
                self._send(half, chunk)
            while stepping:
                for half in stepping.copy():
                    half.receive(chunk)
                    if goes_on(half):
                        self._send(half, chunk)
                    else:
                        stepping.remove(half)
        except EnvFailure:  # what the other half was sent is lost with it
            for half in halves:
                half.forget_rollouts()
            raise

    @staticmethod
    def _send(half: RolloutWorker, chunk: Chunk) -> None:
        with half.random:
            half.send(chunk)

    def _mean(self, first: float, second: float) -> float:
        """Of what the halves measured, over all environments."""
        num_first, num = self._halves[0].config.num_envs, self.config.num_envs
        return (first * num_first + second * (num - num_first)) / num
