"""Updates per second of the learner, and how much of the device's arithmetic they use.

`Learner.update` on batches that lie ready on the device, `Learner.train` with batches that a thread samples from a
shard in this process and pads, and plain matrix products on the same device, all three in turn.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import cycle, islice, product

import measure
import numpy as np
import torch
from agents import ACTIONS, ENCODERS, SIZES, Size, configured_spec
from measure import Column, MatrixProduct, Row, Table

from amago_ray.allocator import keep_freed_memory
from amago_ray.data import ActionSpec, LearnReport, Trajectory, TrajectoryId
from amago_ray.learner.batches import training_batch
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.replay.client import LocalShard, ReplayReader
from amago_ray.replay.packing import pack
from amago_ray.replay.shard import ReplayConfig, ReplayShard

NUM_PREPARED = 3  # batches that `update` goes through in turn
RUN_S = 0.4  # about how long one timed run takes, where that is enough for LEAST_BATCHES
LEAST_BATCHES = 2  # of one `train`
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}

CASE = (Column("size", "size"), Column("encoder", "encoder"), Column("actions", "actions"))
TABLES = (
    Table(
        "Updates per second: on prepared batches, and with sampling, padding and prefetching",
        (
            *CASE,
            Column("updates_per_s", "update", ".1f"),
            Column("train_updates_per_s", "train", ".1f"),
            Column("train_ratio", "train / update", ".2f"),
            Column("waiting", "waiting", ".1%"),
            Column("padding", "padding", ".1%"),
            Column("runs", "runs"),
        ),
    ),
    Table(
        "Arithmetic: floating-point operations of an update, and the rate as a fraction of plain matrix products'",
        (
            *CASE,
            Column("parameters", "parameters", ",d"),
            Column("flops_per_update", "GFLOP per update", ",.2f", scale=1e9),
            Column("flops_per_s", "GFLOP/s", ",.1f", scale=1e9),
            Column("fraction_of_matrix_rate", "of matrix rate", ".1%"),
            Column("peak_memory_bytes", "peak MB", ",.0f", scale=1e6),
        ),
    ),
)


@dataclass(frozen=True)
class Case:
    size: str
    encoder: str
    actions: str

    @property
    def name(self) -> str:
        return f"{self.size} {self.encoder} {self.actions}"


def filled_shard(size: Size, action_spec: ActionSpec, num_trajectories: int = 500) -> ReplayShard:
    """A shard of made-up trajectories between half of and twice the length of a training sequence."""
    rng = np.random.default_rng(0)
    shard = ReplayShard(ReplayConfig(size.max_seq_len), shard=0)
    trajectories = []
    for i in range(num_trajectories):
        rows = int(rng.integers(size.max_seq_len // 2, 2 * size.max_seq_len)) + 1
        if action_spec.kind == "discrete":
            action = rng.integers(action_spec.vector_size, size=rows)
        else:
            action = rng.uniform(-1.0, 1.0, (rows, *action_spec.shape))
        columns = {
            "obs.observation": rng.standard_normal((rows, size.obs_width), dtype=np.float32),
            "action": action.astype(action_spec.dtype),
            "reward": rng.standard_normal(rows, dtype=np.float32),
            "terminated": np.arange(rows) == rows - 1,
        }
        trajectories.append(Trajectory(TrajectoryId(0, 0, i), "made up", columns, 0, False, 0))
    shard.push(pack(trajectories))
    shard.commit()
    return shard


def measure_case(case: Case, options: argparse.Namespace, matrix_product: MatrixProduct) -> Row:
    size, action_spec, device = SIZES[case.size], ACTIONS[case.actions], options.device
    reader = ReplayReader([LocalShard(filled_shard(size, action_spec))], size.batch_size, seed=0)
    config = LearnerConfig(device=device, mixed_precision=options.precision)
    learner = Learner(config, configured_spec(size, case.encoder, action_spec), reader.batches)
    prepared = [training_batch(batch, action_spec, learner.device) for batch in reader.batches(NUM_PREPARED, 0)]
    ready = cycle(prepared)
    # They differ a little: some of the work is done for real transitions only.
    flops = measure.count_flops(lambda: [learner.update(batch) for batch in prepared]) / NUM_PREPARED
    run_s = 0.05 if options.quick else RUN_S
    num_updates = measure.calls_within(lambda: learner.update(next(ready)), run_s, device)
    num_batches = max(num_updates, LEAST_BATCHES)
    matrix_product.fill(min(run_s, 0.1), device)
    reports: list[LearnReport] = []

    def update() -> None:
        for batch in islice(ready, num_updates):
            learner.update(batch)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    timings = measure.interleaved(
        {"update": update, "train": lambda: reports.append(learner.train(num_batches)), "matrix": matrix_product},
        0.1 if options.quick else options.seconds,
        min_rounds=2 if options.quick else 3,
        device=device,
    )
    timed = reports[1:]  # without the round that warms up
    product_rate = matrix_product.flops / timings["matrix"].median
    return {
        "size": case.size,
        "encoder": case.encoder,
        "actions": case.actions,
        "batch_size": size.batch_size,
        "max_seq_len": size.max_seq_len,
        "parameters": sum(p.numel() for p in learner.agent.parameters() if p.requires_grad),
        "runs": len(timed),
        "updates_per_run": num_updates,
        "batches_per_train": num_batches,
        "updates_per_s": timings["update"].spread(num_updates),
        "train_updates_per_s": timings["train"].spread(num_batches),
        "train_ratio": timings["update"].median / num_updates * num_batches / timings["train"].median,
        "waiting": float(np.median([report.wait_s / report.total_s for report in timed])),
        "padding": padding(reader),
        "flops_per_update": flops,
        "flops_per_s": flops * num_updates / timings["update"].median,
        "matrix_flops_per_s": product_rate,
        "fraction_of_matrix_rate": flops * num_updates / timings["update"].median / product_rate,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def padding(reader: ReplayReader) -> float:
    """Fraction of the padded batches' transitions that are padding."""
    lengths = [batch.lengths for batch in reader.batches(NUM_PREPARED, 0)]
    return 1.0 - sum(x.sum() for x in lengths).item() / sum(x.max() * len(x) for x in lengths).item()


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    cases = [Case(*parts) for parts in product(SIZES, ENCODERS, ACTIONS)]
    if options.quick:
        cases = [case for case in cases if case.size == "demo" and case.actions == "discrete"]
    rates, products = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        products[dtype], rate = measure.fastest_product(options.device, dtype, options.quick)
        rates[f"{str(dtype).removeprefix('torch.')}_flops_per_s"] = rate
    rows = []
    for case in cases:
        if options.only in case.name:
            measure.say(case.name)
            rows.append(measure_case(case, options, products[DTYPES[options.precision]]))
    return {"precision": options.precision, **rates}, rows


if __name__ == "__main__":
    arguments = measure.parser("learner", __doc__, seconds=5.0)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (%(default)s)")
    arguments.add_argument("--precision", choices=tuple(DTYPES), default="no", help="mixed precision (%(default)s)")
    parsed = arguments.parse_args()
    torch.set_num_threads(parsed.threads)
    keep_freed_memory()  # as in learner processes
    measure.main(parsed, TABLES, run, parsed.device)
