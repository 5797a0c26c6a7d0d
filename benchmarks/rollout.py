"""Frames per second of a rollout worker, against the least that acting takes.

The bare loop below makes the same policy's steps and steps as many of the same environments, in the same process and in
turn with the worker; both of them with steps as they come and with compiled ones (`compile_acting`). It keeps what the
policy needs (observation, previous action and reward, memory) and nothing else: no exploration, no trajectories, no
statistics, no checks.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from itertools import product

import gymnasium as gym
import measure
import numpy as np
import torch
from agents import ENCODERS, SIZES, configured_spec
from measure import Column, Row, Table

from amago_ray.agent.spec import AgentSpec
from amago_ray.envs.builtin import MetaFrozenLake
from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.envs.makers import EnvMaker, check_env
from amago_ray.messages import RolloutReport
from amago_ray.nets.columns import laid_out_for_acting
from amago_ray.pending import Pending, Ready
from amago_ray.replay.client import ReplayWriter
from amago_ray.replay.storage.trajectory_pack import PackedTrajectories
from amago_ray.rollout.policy_step import CompileActing, make_policy_step
from amago_ray.rollout.worker import RolloutConfig, RolloutWorker

ENVS: dict[str, EnvMaker] = {
    "MetaFrozenLake": partial(MetaFrozenLake, size=3, k_episodes=5),
    "CartPole": partial(gym.make, "CartPole-v1"),
}
NUM_ENVS = (1, 8, 24)
RUN_S = 0.25  # about how long one timed run takes

CASE = (Column("policy", "policy"), Column("env", "environment"), Column("num_envs", "envs"))
TABLES = (
    Table(
        "Frames per second: a rollout worker and the bare loop of policy and environments",
        (
            *CASE,
            Column("worker_frames_per_s", "worker", ",.0f"),
            Column("bare_frames_per_s", "bare loop", ",.0f"),
            Column("ratio", "worker / bare loop", ".2f"),
            Column("compiled_worker_frames_per_s", "compiled: worker", ",.0f"),
            Column("compiled_bare_frames_per_s", "bare loop", ",.0f"),
            Column("compiled_ratio", "worker / bare loop", ".2f"),
            Column("gain", "worker: compiled / as it comes", ".2f"),
            Column("runs", "runs"),
        ),
    ),
    Table(
        "Where the time goes, in microseconds per frame",
        (
            *CASE,
            Column("act_us", "worker: act", ".1f"),
            Column("step_us", "step and record", ".1f"),
            Column("rest_us", "rest", ".1f"),
            Column("bare_act_us", "bare loop: act", ".1f"),
            Column("bare_step_us", "step", ".1f"),
            Column("bare_rest_us", "rest", ".1f"),
            Column("compiled_act_us", "compiled worker: act", ".1f"),
            Column("compiled_step_us", "step and record", ".1f"),
            Column("compiled_rest_us", "rest", ".1f"),
        ),
    ),
)


class BareLoop:
    """One policy and N environments with float observations and discrete actions, written straight down."""

    def __init__(self, make_env: EnvMaker, num_envs: int, spec: AgentSpec, compile_acting: CompileActing):
        self.envs = [make_env() for _ in range(num_envs)]
        policy = laid_out_for_acting(spec.build().policy.eval())
        self.policy_step = make_policy_step(
            policy, spec.action_spec, spec.obs_spec, num_envs, "cpu", sample=True, compile_acting=compile_acting
        )
        self.policy_step.begin_all()
        self.obs = np.stack([env.reset(seed=i)[0] for i, env in enumerate(self.envs)]).astype(np.float32)
        self.rl2 = np.zeros((num_envs, 1 + spec.action_spec.vector_size), np.float32)
        self.time_idx = np.zeros(num_envs, np.int64)
        self.ended = np.zeros(num_envs, bool)
        self.one_hots = np.eye(spec.action_spec.vector_size, dtype=np.float32)
        self.act_s = self.step_s = self.total_s = 0.0

    def run(self, steps: int) -> None:
        started = time.perf_counter()
        for _ in range(steps):
            before_act = time.perf_counter()
            actions = self.policy_step.act({"observation": self.obs}, self.rl2, self.time_idx)
            before_step = time.perf_counter()
            self.rl2[:, 1:] = self.one_hots[actions]
            self.time_idx += 1
            self.ended[:] = False
            for i, (env, action) in enumerate(zip(self.envs, actions.tolist())):
                self.obs[i], self.rl2[i, 0], terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    self.ended[i] = True
                    self.obs[i] = env.reset()[0]
            if self.ended.any():
                self.rl2[self.ended] = 0.0
                self.time_idx[self.ended] = 0
                self.policy_step.begin(self.ended)
            self.act_s += before_step - before_act
            self.step_s += time.perf_counter() - before_step
        self.total_s += time.perf_counter() - started


class Nowhere:
    """A shard that acknowledges everything and keeps nothing: packing is the worker's work, storing is not."""

    def push(self, packed: PackedTrajectories) -> Pending[int]:
        return Ready(len(packed))


def measure_case(policy: str, env: str, num_envs: int, seconds: float, run_s: float) -> Row:
    make_env = ENVS[env]
    obs_spec, action_spec, _ = check_env(make_env)
    spec = configured_spec(SIZES["demo"], policy, action_spec, obs_spec)
    pairs = {setting: Pair(make_env, num_envs, spec, setting) for setting in ("never", "auto")}
    steps = 20 * measure.calls_within(lambda: pairs["never"].bare.run(20), run_s)
    frames = steps * num_envs
    for pair in pairs.values():
        pair.bare.act_s = pair.bare.step_s = pair.bare.total_s = 0.0
    timings = measure.interleaved(
        {
            "worker": partial(pairs["never"].collect, frames),
            "bare": partial(pairs["never"].bare.run, steps),
            "compiled_worker": partial(pairs["auto"].collect, frames),
            "compiled_bare": partial(pairs["auto"].bare.run, steps),
        },
        seconds,
    )
    row = {
        "policy": policy,
        "env": env,
        "num_envs": num_envs,
        "runs": len(timings["worker"].seconds),
        "frames_per_run": frames,
        "ratio": measure.ratio(timings["bare"], timings["worker"]),
        "compiled_ratio": measure.ratio(timings["compiled_bare"], timings["compiled_worker"]),
        "gain": measure.ratio(timings["worker"], timings["compiled_worker"]),
    }
    row |= {f"{name}_frames_per_s": timing.spread(frames) for name, timing in timings.items()}
    shares = {
        "": pairs["never"].worker_shares(),
        "bare_": pairs["never"].bare_shares(),
        "compiled_": pairs["auto"].worker_shares(),
        "compiled_bare_": pairs["auto"].bare_shares(),
    }
    us = 1e6 / (frames * len(pairs["never"].reports))  # the first round, which warms up, counts in the shares of all
    for name, (act_s, step_s, total_s) in shares.items():
        row |= {
            f"{name}act_us": act_s * us,
            f"{name}step_us": step_s * us,
            f"{name}rest_us": (total_s - act_s - step_s) * us,
        }
    for pair in pairs.values():
        pair.worker.close()
    return row


class Pair:
    """A worker and a bare loop that make steps in one of the two ways."""

    def __init__(self, make_env: EnvMaker, num_envs: int, spec: AgentSpec, compile_acting: CompileActing):
        self.bare = BareLoop(make_env, num_envs, spec, compile_acting)
        self.writer, self.reports = ReplayWriter([Nowhere()]), list[RolloutReport]()
        config = RolloutConfig(
            make_env, num_envs, 0, 0, traj_save_len=512, exploration_type=EpsilonGreedy, compile_acting=compile_acting
        )
        self.worker = RolloutWorker(config, spec, write=self.writer.write, flush=self._flush)

    def _flush(self) -> float:
        self.writer.flush()
        return self.writer.wait_s

    def collect(self, frames: int) -> None:
        self.reports.append(self.worker.collect(frames))

    def worker_shares(self) -> tuple[float, float, float]:
        """Seconds of acting, of stepping and of everything."""
        return tuple(sum(getattr(r, name) for r in self.reports) for name in ("act_s", "step_s", "total_s"))  # type: ignore[return-value]

    def bare_shares(self) -> tuple[float, float, float]:
        return self.bare.act_s, self.bare.step_s, self.bare.total_s


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    cases = list(product(ENCODERS, ENVS, NUM_ENVS))
    if options.quick:
        cases = [("GRU", "MetaFrozenLake", 8)]
    rows = []
    for policy, env, num_envs in cases:
        name = f"{policy} {env} {num_envs}"
        if options.only in name:
            measure.say(name)
            seconds, run_s = (0.2, 0.05) if options.quick else (options.seconds, RUN_S)
            rows.append(measure_case(policy, env, num_envs, seconds, run_s))
    return {}, rows


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in worker processes
    measure.main(measure.parser("rollout", __doc__, seconds=7.0).parse_args(), TABLES, run)
