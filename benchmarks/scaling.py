"""How collecting grows with workers, shards and learners on a cluster of several nodes, beside the ideal line.

Environments that sleep let few cores carry many workers: a worker steps its 16 environments one after the other, so W
workers can make W / sleep frames per second. Nodes are processes on this machine (ray.cluster_utils.Cluster). The last
table is what it takes to hand weights to all workers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import measure
import numpy as np
import ray
from measure import ROOT, Column, Row, Table
from ray.cluster_utils import Cluster

from amago_ray import Experiment, config
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.watch.callbacks import Callback, RunView

ENVS_PER_WORKER = 16
SLEEPS_MS = (1.0, 5.0, 20.0)
WORKERS = (1, 2, 4, 8, 16, 32)
SHARDS = (2, 4, 8)
LEARNERS = (2, 4)
WEIGHTS_MB = (1, 10, 100)
NUM_NODES = 3
BROADCASTS = "weights to all workers"
SMALL_NETWORKS = (
    "FFTstepEncoder.d_hidden = 16",
    "FFTstepEncoder.d_output = 16",
    "GRUTrajEncoder.d_hidden = 16",
    "GRUTrajEncoder.n_layers = 1",
    "GRUTrajEncoder.d_output = 16",
    "Actor.d_hidden = 16",
    "NCritics.d_hidden = 16",
    "Agent.num_critics = 2",
)

TABLES = (
    Table(
        "Frames per second of environments that sleep",
        (
            Column("sleep_ms", "sleep, ms", ".0f"),
            Column("workers", "workers"),
            Column("shards", "shards"),
            Column("learners", "learners"),
            Column("frames_per_s", "frames/s", ",.0f"),
            Column("of_ideal", "of ideal", ".1%"),
            Column("of_linear", "of one worker's, times workers", ".1%"),
            Column("driver_cores", "driver, cores", ".1%"),
            Column("driver_ms_per_call", "driver, ms per call", ".2f"),
        ),
    ),
    Table(
        "Weights to all workers",
        (
            Column("megabytes", "MB"),
            Column("receivers", "workers"),
            Column("seconds", "seconds", ".3f"),
            Column("bytes_per_s", "GB/s to all", ".2f", scale=1e9),
        ),
    ),
)


Mark = tuple[float, float, int]  # wall time, the driver's processor time, frames


class Sleeper(gym.Env):
    """Rollouts of 100 steps, each of which takes `sleep_s`; nothing is to be learned."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, sleep_s: float):
        self.sleep_s = sleep_s

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._time = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        time.sleep(self.sleep_s)
        self._time += 1
        return np.zeros(4, np.float32), 0.0, False, self._time == 100, {}


class Epochs(Callback):
    """When each epoch ended, by the wall and by the driver's own processor time, and frames by then."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []

    def after_collection(self, view: RunView) -> None:
        self.marks.append((time.perf_counter(), time.process_time(), view.progress.total_frames))


def counted(marks: Sequence[Mark]) -> Iterator[tuple[Mark, Mark]]:
    """Begin and end of each epoch that counts: a validation follows the first, and the last has its data already."""
    return pairwise(marks[1:-1])


@contextmanager
def cluster_of(num_cpus: int) -> Iterator[str]:
    """The address of a cluster of `NUM_NODES` nodes with so many cores between them, whatever this machine has."""
    each = -(-num_cpus // NUM_NODES)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": each, "include_dashboard": False})
    try:
        for _ in range(NUM_NODES - 1):
            cluster.add_node(num_cpus=each)
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}},
        )
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def measure_collecting(sleep_ms: float, workers: int, shards: int, learners: int, options: argparse.Namespace) -> Row:
    """An experiment of epochs of `options.seconds`."""
    sleep_s, epochs, num_epochs = sleep_ms / 1000, Epochs(), 4 if options.quick else 6
    steps = max(int(options.seconds / (sleep_s * ENVS_PER_WORKER)), 4)
    config.load([], SMALL_NETWORKS)
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(
            run_name="scaling",
            ckpt_base_dir=folder,
            make_train_env=partial(Sleeper, sleep_s),
            make_val_env=partial(Sleeper, 0.0),
            max_seq_len=32,
            traj_encoder_type=GRUTrajEncoder,
            parallel_actors=workers * ENVS_PER_WORKER,
            num_rollout_workers=workers,
            num_replay_shards=shards,
            num_learners=learners,
            learner_device="cpu",  # a group of them on a machine without a GPU says so
            learner_cpus=1,
            schedule="overlap",
            epochs=num_epochs,
            train_timesteps_per_epoch=steps,
            train_batches_per_epoch=1 if learners > 1 else 0,
            val_interval=10**6,
            ckpt_interval=10**6,
            test_episodes=0,
            replay_capacity_gb=0.2,
            callbacks=[epochs],
            verbose=False,
        )
        try:
            experiment.start()
            experiment.learn()
        finally:
            experiment.close()
    rates, cores = [], []
    for before, after in counted(epochs.marks):
        wall, cpu, frames = (b - a for a, b in zip(before, after, strict=True))
        rates.append(frames / wall)
        cores.append(cpu / wall)
    ideal = workers / sleep_s
    rate = float(np.median(rates))
    frames_per_call = steps * ENVS_PER_WORKER
    return {
        "sleep_ms": sleep_ms,
        "workers": workers,
        "shards": shards,
        "learners": learners,
        "frames_per_s": {"median": rate, "min": min(rates), "max": max(rates)},
        "ideal_frames_per_s": ideal,
        "of_ideal": rate / ideal,
        "driver_cores": float(np.median(cores)),
        "driver_ms_per_call": 1000 * float(np.median(cores)) / (rate / frames_per_call),
    }


class Receiver:
    """Takes weights as a worker does: a view of the node's shared memory."""

    def receive(self, weights: np.ndarray) -> int:
        return weights.nbytes


def measure_broadcasts(options: argparse.Namespace) -> Iterator[Row]:
    receivers = options.workers[-1]
    actors = [ray.remote(Receiver).options(num_cpus=1).remote() for _ in range(receivers)]
    for megabytes in WEIGHTS_MB[: 1 if options.quick else None]:
        weights = np.zeros(megabytes * 250_000, np.float32)

        def hand_out(weights: np.ndarray = weights) -> None:
            reference = ray.put(weights)
            ray.get([actor.receive.remote(reference) for actor in actors])

        timing = measure.interleaved({"": hand_out}, seconds=0.0, min_rounds=3)[""]
        seconds = {"median": timing.median, "min": min(timing.seconds), "max": max(timing.seconds)}
        rate = receivers * weights.nbytes / timing.median
        yield {"megabytes": megabytes, "receivers": receivers, "seconds": seconds, "bytes_per_s": rate}
    for actor in actors:
        ray.kill(actor)


def cases(options: argparse.Namespace) -> list[tuple[float, int, int, int]]:
    """(sleep in ms, workers, shards, learners)."""
    sleeps = SLEEPS_MS[1:2] if options.quick else SLEEPS_MS
    some = options.workers[len(options.workers) // 2]
    more = [] if options.quick else [(5.0, some, n, 1) for n in SHARDS] + [(5.0, some, n, n) for n in LEARNERS]
    return [(sleep, workers, 1, 1) for sleep in sleeps for workers in options.workers] + more


def draw(rows: Sequence[Row], path: Path) -> None:
    """Frames per second over workers, a line per sleep, with the ideal one dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    plain = [row for row in rows if row["shards"] == row["learners"] == 1]
    for number, sleep in enumerate(sorted({row["sleep_ms"] for row in plain})):
        own = [row for row in plain if row["sleep_ms"] == sleep]
        workers = [row["workers"] for row in own]
        axes.plot(workers, [row["frames_per_s"]["median"] for row in own], f"C{number}o-", label=f"{sleep:g} ms a step")
        axes.plot(workers, [row["ideal_frames_per_s"] for row in own], f"C{number}--", lw=0.8)
    axes.set(xscale="log", yscale="log", xlabel="workers, of 16 environments each", ylabel="frames/s (ideal dashed)")
    axes.set_xticks(sorted({row["workers"] for row in plain}), labels=sorted({row["workers"] for row in plain}))
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    options.workers = sorted(options.workers)[: 2 if options.quick else None]
    if options.quick:
        options.seconds = min(options.seconds, 1.0)
    collecting: list[Row] = []
    failed: dict[str, str] = {}
    with cluster_of(max(options.workers) + max(SHARDS) + max(LEARNERS) + NUM_NODES):
        for case in cases(options):
            name = "sleep {:g} ms, {} workers, {} shards, {} learners".format(*case)
            if options.only not in name:
                continue
            measure.say(name)
            try:
                collecting.append(measure_collecting(*case, options))
            except Exception as error:  # what was measured before took minutes
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                measure.say(f"failed: {failed[name]}")
        broadcasts = list(measure_broadcasts(options)) if options.only in BROADCASTS else []
    alone = {row["sleep_ms"]: row["frames_per_s"]["median"] for row in collecting if row["workers"] == 1}
    for row in collecting:
        one = alone.get(row["sleep_ms"])
        row["of_linear"] = row["frames_per_s"]["median"] / (row["workers"] * one) if one else None
    if collecting:
        draw(collecting, options.figure)
    return {"nodes": NUM_NODES, "failed": failed}, collecting + broadcasts


if __name__ == "__main__":
    arguments = measure.parser("scaling", __doc__, seconds=5.0)
    arguments.add_argument("--workers", nargs="+", type=int, default=WORKERS)
    arguments.add_argument("--figure", type=Path, default=ROOT / "docs" / "scaling.png")
    measure.main(arguments.parse_args(), TABLES, run)
