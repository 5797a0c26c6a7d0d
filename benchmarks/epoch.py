"""Seconds of a whole epoch, collecting and learning, as a run on Ray takes them and as a bare loop does.

The work: 12 copies of MetaFrozenLake 3x3 with 10 attempts, 300 steps in each, then 30 updates of 24 sequences of 90
transitions; encoders of width 128 with 3 layers, heads as they come; in float32 and, where the processor has
instructions for it, with updates in mixed bfloat16. The run is an `Experiment` with its default processes. The bare
loop below has one process, in which there is nothing else, and acts with one thread and learns with all: the same
networks, losses and optimiser, environments stepped at once, rollouts in a list, batches out of that list; no
exploration, statistics, checks, priorities or metrics, and nothing is ever sent, stored, evicted or saved.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import tempfile
import time
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import measure
import numpy as np
import torch
from accelerate.state import AcceleratorState
from agents import ENCODERS, Size, configured_spec
from measure import Column, Row, Table, Timing

from amago_ray.agent.policy import TrainingBatch
from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.malloc import keep_freed_memory
from amago_ray.envs.builtin import MetaFrozenLake
from amago_ray.envs.makers import check_env
from amago_ray.envs.together import step_together
from amago_ray.experiment import Experiment
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.learner.precision import MixedPrecision, precision_on
from amago_ray.messages import Batch
from amago_ray.nets.columns import laid_out_for_acting
from amago_ray.nets.packed_sequences import Packing
from amago_ray.nets.sizes import LENGTHS, rounded_up, rows_of
from amago_ray.rollout.policy_step import make_policy_step

NUM_ENVS = 12
STEPS, UPDATES = 300, 30  # of an epoch: in each environment, and in all
QUICK_STEPS, QUICK_UPDATES = 100, 2
LAKE = partial(MetaFrozenLake, size=3, k_episodes=10)
SIZE = Size(
    bindings=(
        "FFTstepEncoder.d_hidden = 128",
        "FFTstepEncoder.d_output = 128",
        "GRUTrajEncoder.d_hidden = 128",
        "GRUTrajEncoder.n_layers = 3",
        "GRUTrajEncoder.d_output = 128",
        "TformerTrajEncoder.d_model = 128",
        "TformerTrajEncoder.d_ff = 512",
    ),
    batch_size=24,
    max_seq_len=90,
    obs_width=4,
)

TABLES = (
    Table(
        "An epoch of 3,600 frames and 30 updates, in seconds: a run on Ray and the bare loop",
        (
            Column("policy", "policy"),
            Column("precision", "precision"),
            Column("run_s", "run", ".2f"),
            Column("bare_s", "bare loop", ".2f"),
            Column("ratio", "bare loop / run", ".2f"),
            Column("runs", "runs"),
        ),
    ),
    Table(
        "Its two halves, medians",
        (
            Column("policy", "policy"),
            Column("precision", "precision"),
            Column("frames_per_s", "run: frames/s", ",.0f"),
            Column("updates_per_s", "updates/s", ".2f"),
            Column("bare_frames_per_s", "bare loop: frames/s", ",.0f"),
            Column("bare_updates_per_s", "updates/s", ".2f"),
        ),
    ),
)


class NoReplay:
    """Nothing to draw from: the bare loop makes its batches itself."""

    def batches(self, num: int, first: int, mixture: Any = None) -> Any:
        raise NotImplementedError

    def update_priorities(self, batches: list[Batch], priorities: np.ndarray) -> None:
        raise NotImplementedError


class BareLoop:
    """Acting, remembering and learning, written straight down."""

    def __init__(self, spec: AgentSpec, precision: MixedPrecision, threads: int, steps: int, updates: int):
        self.threads, self.steps, self.updates = threads, steps, updates
        AcceleratorState._reset_state()  # accelerate holds a process to one precision
        self.learner = Learner(
            LearnerConfig(
                mixed_precision=precision,
                compile="packed" if precision == "no" else True,
                kernels=True,
                packed="auto",
            ),
            spec,
            NoReplay(),
        )
        self.few_sizes = precision == "bf16"  # see `rows_of`
        self.policy = laid_out_for_acting(spec.build().policy.eval())
        self.envs = [LAKE() for _ in range(NUM_ENVS)]
        together = step_together(self.envs)
        assert together is not None
        self.together, self.rng = together, np.random.default_rng(0)
        self.obs = np.zeros((NUM_ENVS, SIZE.obs_width), np.float32)
        self.rl2 = np.zeros((NUM_ENVS, 1 + spec.action_spec.vector_size), np.float32)
        self.time_idx = np.zeros(NUM_ENVS, np.int64)
        self.one_hots = np.eye(spec.action_spec.vector_size, dtype=np.float32)
        torch.set_num_threads(1)
        self.policy_step = make_policy_step(
            self.policy, spec.action_spec, spec.obs_spec, NUM_ENVS, "cpu", sample=True, compile_acting="auto"
        )
        self.policy_step.begin_all()
        self.rows: list[list[tuple[Any, ...]]] = [[] for _ in range(NUM_ENVS)]
        self.rollouts: list[tuple[np.ndarray, ...]] = []
        for row in range(NUM_ENVS):
            self.begin(row, seed=row)
        self.act_s = self.learn_s = 0.0

    def begin(self, row: int, seed: int | None = None) -> None:
        self.obs[row] = self.envs[row].reset(seed=seed)[0]
        self.together.begin(row)
        self.rl2[row], self.time_idx[row] = 0.0, 0
        self.rows[row] = [(self.obs[row].copy(), self.rl2[row].copy(), 0.0, False)]

    def collect(self) -> None:
        torch.set_num_threads(1)
        for _ in range(self.steps):
            actions = self.policy_step.act({"observation": self.obs}, self.rl2, self.time_idx)
            step = self.together.step(actions)
            self.obs = step.obs
            self.rl2 = np.concatenate((step.rewards[:, None].astype(np.float32), self.one_hots[actions]), axis=1)
            self.time_idx += 1
            for row in range(NUM_ENVS):
                self.rows[row].append((self.obs[row], self.rl2[row], step.rewards[row], step.terminated[row]))
            if step.terminated.any():
                for row in np.flatnonzero(step.terminated).tolist():
                    self.rollouts.append(tuple(np.stack(column) for column in zip(*self.rows[row])))
                    self.begin(row)
                self.policy_step.begin(step.terminated)

    def batch(self) -> TrainingBatch:
        length = SIZE.max_seq_len
        chosen = [self.rollouts[i] for i in self.rng.integers(len(self.rollouts), size=SIZE.batch_size)]
        firsts = [int(self.rng.integers(max(len(r[0]) - length, 1))) for r in chosen]
        longest = max(min(len(r[0]) - first, length + 1) for r, first in zip(chosen, firsts))
        if self.learner.packs:
            return self.packed_batch(chosen, firsts)
        if self.few_sizes:
            longest = rounded_up(longest - 1, length, LENGTHS) + 1
        columns = [torch.zeros(SIZE.batch_size, longest, *x.shape[1:]) for x in chosen[0]]
        mask = torch.zeros(SIZE.batch_size, longest - 1, dtype=torch.bool)
        for b, (rollout, first) in enumerate(zip(chosen, firsts)):
            for column, values in zip(columns, rollout):
                piece = torch.from_numpy(values[first : first + longest])
                column[b, : len(piece)] = piece
            mask[b, : len(piece) - 1] = True
        obs, rl2, rewards, terminated = columns
        time_idx = torch.tensor(firsts)[:, None] + torch.arange(longest)
        actions = rl2[:, 1:, 1:].contiguous()
        rows, filled = rows_of(mask.numpy(), self.few_sizes)
        return TrainingBatch(
            {"observation": obs}, rl2, time_idx, actions, rewards[:, 1:], terminated[:, 1:], mask,
            torch.from_numpy(rows), filled,
        )  # fmt: skip

    def packed_batch(self, chosen: list[tuple[np.ndarray, ...]], firsts: list[int]) -> TrainingBatch:
        """The same sequences end to end."""
        lengths = np.array([min(len(r[0]) - first, SIZE.max_seq_len + 1) for r, first in zip(chosen, firsts)])
        packing = Packing.of(lengths, fullest=SIZE.max_seq_len + 1 if self.few_sizes else None)
        obs, rl2, rewards, terminated = (
            torch.from_numpy(
                np.concatenate(
                    [
                        *(r[i][first : first + length] for r, first, length in zip(chosen, firsts, lengths)),
                        np.zeros((packing.filled_rows, *chosen[0][i].shape[1:]), chosen[0][i].dtype),
                    ]
                )
            ).unsqueeze(0)
            for i in range(4)
        )
        time_idx = np.concatenate([first + np.arange(length) for first, length in zip(firsts, lengths)])
        mask = np.arange(packing.longest - 1) < lengths[:, None] - 1
        rows, filled = rows_of(mask, self.few_sizes, SIZE.batch_size * SIZE.max_seq_len)
        return TrainingBatch(
            {"observation": obs}, rl2, torch.from_numpy(np.pad(time_idx, (0, packing.filled_rows))).unsqueeze(0),
            packing.pad(rl2)[:, 1:, 1:], packing.pad(rewards)[:, 1:].float(), packing.pad(terminated)[:, 1:].float(),
            torch.from_numpy(mask), torch.from_numpy(rows), filled, packing=packing,
        )  # fmt: skip

    def epoch(self) -> None:
        started = time.perf_counter()
        self.collect()
        collected = time.perf_counter()
        torch.set_num_threads(self.threads)
        self.learner.agent.train()
        for _ in range(self.updates):
            self.learner.update(self.batch())
        self.policy.load_state_dict(self.learner.agent.policy.state_dict())
        self.policy_step.weights_changed()
        self.act_s, self.learn_s = collected - started, time.perf_counter() - collected


def lake_spec(encoder: str) -> AgentSpec:
    obs_spec, action_spec, _ = check_env(LAKE)
    return configured_spec(SIZE, encoder, action_spec, obs_spec)


def serve_bare_loop(
    asked: Connection, encoder: str, precision: MixedPrecision, threads: int, steps: int, updates: int
) -> None:
    """Be the bare loop's process: an epoch for every message, answered by its two times."""
    keep_freed_memory()  # as learners do
    bare = BareLoop(lake_spec(encoder), precision, threads, steps, updates)
    with suppress(EOFError):
        while True:
            asked.recv()
            bare.epoch()
            asked.send((bare.act_s, bare.learn_s))


class BareProcess:
    """A `BareLoop` in a process of its own, in which there is nothing else. Arguments as of `serve_bare_loop`."""

    def __init__(self, *given: Any):
        spawn = multiprocessing.get_context("spawn")
        self._ask, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve_bare_loop, args=(theirs, *given))
        self._process.start()
        theirs.close()

    def epoch(self) -> tuple[float, float]:
        """Seconds of collecting and of learning."""
        self._ask.send(None)
        act_s, learn_s = self._ask.recv()
        return act_s, learn_s

    def close(self) -> None:
        self._ask.close()
        self._process.join()


def experiment(
    encoder: str, precision: MixedPrecision, folder: str, spec: AgentSpec, steps: int, updates: int
) -> Experiment:
    """A run of the same work, as it comes."""
    return Experiment(
        run_name=encoder,
        ckpt_base_dir=folder,
        make_train_env=LAKE,
        tstep_encoder_type=spec.tstep_encoder_type,
        traj_encoder_type=spec.traj_encoder_type,
        agent_type=spec.agent_type,
        max_seq_len=SIZE.max_seq_len,
        parallel_actors=NUM_ENVS,
        train_timesteps_per_epoch=steps,
        train_batches_per_epoch=updates,
        batch_size=SIZE.batch_size,
        mixed_precision=precision,
        schedule="alternate",
        epochs=10_000,
        val_interval=10_000,
        ckpt_interval=10_000,
        always_save_latest=False,
        replay_durable=False,
        verbose=False,
    )


def measure_case(encoder: str, precision: MixedPrecision, options: argparse.Namespace) -> Row:
    spec = lake_spec(encoder)
    steps, updates = (QUICK_STEPS, QUICK_UPDATES) if options.quick else (STEPS, UPDATES)
    with (
        closing(BareProcess(encoder, precision, options.threads, steps, updates)) as bare,
        tempfile.TemporaryDirectory() as folder,
        experiment(encoder, precision, folder, spec, steps, updates) as run,
    ):
        metrics: list[dict[str, float]] = []
        halves: list[tuple[float, float]] = []

        def run_epoch() -> None:
            run.learn(until=run.progress.epoch + 2)
            metrics.append(run.newest_metrics)

        def bare_epoch() -> None:
            act_s, learn_s = bare.epoch()
            halves.append((NUM_ENVS * steps / act_s, updates / learn_s))

        rounds = 1 if options.quick else 3
        timings = measure.interleaved({"run": run_epoch, "bare": bare_epoch}, options.seconds, min_rounds=rounds)
    frames_per_s, updates_per_s = (float(np.median([row[name] for row in metrics[1:]])) for name in RATES)
    bare_frames, bare_updates = np.median(np.array(halves[1:]), axis=0).tolist()
    return {
        "policy": encoder,
        "precision": {"no": "float32", "bf16": "bfloat16"}[precision],
        "runs": len(timings["run"].seconds),
        **{f"{name}_s": seconds(timing) for name, timing in timings.items()},
        "ratio": measure.ratio(timings["bare"], timings["run"]),
        "frames_per_s": frames_per_s,
        "updates_per_s": updates_per_s,
        "bare_frames_per_s": bare_frames,
        "bare_updates_per_s": bare_updates,
    }


def seconds(timing: Timing) -> dict[str, float]:
    return {"median": timing.median, "min": min(timing.seconds), "max": max(timing.seconds)}


RATES = ("collect/Frames per Second", "train/Updates per Second")


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    encoders = [name for name in ("GRU", "Transformer") if options.only in name and name in ENCODERS]
    precisions: tuple[MixedPrecision, ...] = tuple(dict.fromkeys(("no", precision_on("cpu", "auto"))))
    rows = []
    for encoder, precision in list(itertools.product(encoders, precisions))[: 1 if options.quick else None]:
        measure.say(f"{encoder} {precision}")
        rows.append(measure_case(encoder, precision, options))
    return {"learner_threads": options.threads}, rows


if __name__ == "__main__":
    arguments = measure.parser("epoch", __doc__, seconds=90.0)
    arguments.add_argument("--threads", type=int, default=os.cpu_count(), help="of the bare loop's learning")
    measure.main(arguments.parse_args(), TABLES, run)
