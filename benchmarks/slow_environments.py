"""Frames per second of one worker whose environments sleep, against what they could give if nothing else took time.

The ideal is (environments) / (time of a step): all of them sleep at the same time and are woken at once. In turn, in
one run: environments in the worker's process; in processes of their own; the same in two halves (double buffering);
these two with compiled steps (`compile_acting`); and as many threads that sleep and do nothing else, which is what the
machine makes of the ideal.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from itertools import product
from typing import Any

import gymnasium as gym
import measure
import numpy as np
import torch
from agents import SIZES, configured_spec
from measure import Column, Row, Table

from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.envs.makers import EnvProcesses, check_env
from amago_ray.rollout.halves import make_worker
from amago_ray.rollout.policy_step import CompileActing
from amago_ray.rollout.worker import RolloutConfig

STEP_MS = (1, 5, 20)
NUM_ENVS = (4, 8, 16)
POLICIES = {"GRU, demo": ("demo", "GRU"), "GRU, default": ("default", "GRU")}
WHOLE, HALVES = EnvProcesses(double_buffer=False), EnvProcesses(double_buffer=True)
MODES: dict[str, tuple[EnvProcesses | None, CompileActing]] = {
    "sync": (None, "never"),
    "processes": (WHOLE, "never"),
    "double_buffer": (HALVES, "never"),
    "compiled": (WHOLE, "auto"),
    "compiled_double_buffer": (HALVES, "auto"),
}
RUN_S = 0.4  # about how long one timed run takes
MIN_ROUNDS = 5

TABLES = (
    Table(
        "Frames per second as a fraction of (environments) / (time of a step)",
        (
            Column("policy", "policy"),
            Column("step_ms", "step, ms"),
            Column("num_envs", "envs"),
            Column("sleepers", "threads that only sleep", ".2f"),
            Column("sync", "sync", ".2f"),
            Column("processes", "processes", ".2f"),
            Column("double_buffer", "in two halves", ".2f"),
            Column("compiled", "compiled: processes", ".2f"),
            Column("compiled_double_buffer", "in two halves", ".2f"),
            Column("speedup", "processes / sync", ".1f"),
            Column("runs", "runs"),
        ),
    ),
)


class Sleeping(gym.Env):
    """Sleeps for `step_s` in every step."""

    def __init__(self, step_s: float) -> None:
        self.observation_space, self.action_space = gym.spaces.Box(-1, 1, (8,)), gym.spaces.Discrete(5)
        self.step_s, self.count = step_s, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(8, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        time.sleep(self.step_s)
        self.count += 1
        return np.zeros(8, np.float32), 0.0, False, self.count == 50, {}


def sleep_apart(pool: ThreadPoolExecutor, num: int, steps: int, step_s: float) -> None:
    """`num` threads sleep `steps` times each."""

    def sleep(_: int) -> None:
        for _ in range(steps):
            time.sleep(step_s)

    list(pool.map(sleep, range(num)))


def measure_case(policy: str, step_ms: int, num_envs: int, seconds: float, run_s: float) -> Row:
    step_s = step_ms / 1000
    make_env = partial(Sleeping, step_s)
    obs_spec, action_spec, _ = check_env(make_env)
    size, encoder = POLICIES[policy]
    spec = configured_spec(SIZES[size], encoder, action_spec, obs_spec)
    together = max(int(run_s / step_s), 2)
    steps = {mode: together if processes else max(together // num_envs, 2) for mode, (processes, _) in MODES.items()}
    with ExitStack() as stack:
        workers = {
            mode: stack.enter_context(
                closing(
                    make_worker(
                        RolloutConfig(
                            make_env,
                            num_envs,
                            0,
                            0,
                            512,
                            EpsilonGreedy,
                            env_processes=processes,
                            compile_acting=compile_acting,
                        ),
                        spec,
                        write=lambda trajectory: None,
                    )
                )
            )
            for mode, (processes, compile_acting) in MODES.items()
        }
        threads = stack.enter_context(ThreadPoolExecutor(num_envs))
        subjects = {mode: partial(worker.collect, steps[mode] * num_envs) for mode, worker in workers.items()}
        subjects["sleepers"] = partial(sleep_apart, threads, num_envs, together, step_s)
        timings = measure.interleaved(subjects, seconds, MIN_ROUNDS)
    ideal = {name: steps.get(name, together) * step_s for name in subjects}  # seconds of a run
    fractions = {name: timing.spread(ideal[name]) for name, timing in timings.items()}
    return {
        "policy": policy,
        "step_ms": step_ms,
        "num_envs": num_envs,
        "runs": len(timings["sync"].seconds),
        "steps_per_run": steps,
        **fractions,
        "speedup": measure.ratio(
            timings["sync"].divided(steps["sync"]), timings["processes"].divided(steps["processes"])
        ),
    }


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    cases = list(product(POLICIES, STEP_MS, NUM_ENVS))
    if options.quick:
        cases = [("GRU, demo", 5, 4)]
    rows = []
    for policy, step_ms, num_envs in cases:
        name = f"{policy} {step_ms} ms {num_envs}"
        if options.only in name:
            measure.say(name)
            seconds, run_s = (0.1, 0.05) if options.quick else (options.seconds, RUN_S)
            rows.append(measure_case(policy, step_ms, num_envs, seconds, run_s))
    return {}, rows


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in worker processes
    measure.main(measure.parser("slow_environments", __doc__, seconds=3.0).parse_args(), TABLES, run)
