"""Updates per second of the learner, and how much of the device's arithmetic and memory they use.

`Learner.update` on batches that lie ready on the device, `Learner.train` with batches that a thread samples from a
shard in this process and pads, a deliberately plain update of the same losses, the update in the other precision, and
plain matrix products on the same device in both, all in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import cycle, product

import measure
import numpy as np
import torch
from accelerate.state import AcceleratorState
from agents import ACTIONS, AGENTS, ENCODERS, ONLINE, SIZES, Size, configured_spec
from measure import Column, MatrixProduct, Row, Table, Timing
from plain_agent import PlainLearner

from amago_ray.agent.policy import TrainingBatch
from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.malloc import keep_freed_memory
from amago_ray.learner.batches import training_batch
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.messages import LearnReport, Trajectory, TrajectoryId
from amago_ray.replay.client import LocalShard, ReplayReader
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.replay.storage.trajectory_pack import pack
from amago_ray.specs import ActionSpec

NUM_PREPARED = 3  # batches that `update` goes through in turn
RUN_S = 0.4  # about how long one timed run takes, where that is enough for LEAST_BATCHES
LEAST_BATCHES = 2  # of one `train`
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}
DTYPE_NAMES = {precision: str(dtype).removeprefix("torch.") for precision, dtype in DTYPES.items()}

CASE = tuple(Column(name, name) for name in ("size", "agent", "encoder", "actions"))
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
            Column("peak_bytes", "peak MB", ",.0f", scale=1e6),
        ),
    ),
    Table(
        "The same update written plainly: rates, operations and memory beside those of the learner",
        (
            *CASE,
            Column("updates_per_s", "update", ".2f"),
            Column("plain_updates_per_s", "plain", ".2f"),
            Column("speedup", "update / plain", ".2f"),
            Column("plain_flops_per_update", "plain GFLOP", ",.2f", scale=1e9),
            Column("plain_peak_bytes", "plain peak MB", ",.0f", scale=1e6),
            Column("runs", "runs"),
        ),
    ),
    Table(
        "Mixed precision: updates per second in float32 and in bfloat16, each as a fraction of its matrix rate",
        (
            *CASE,
            Column("float32_updates_per_s", "float32", ".2f"),
            Column("bfloat16_updates_per_s", "bfloat16", ".2f"),
            Column("bfloat16_speedup", "bfloat16 / float32", ".2f"),
            Column("float32_fraction", "of float32 matrix rate", ".1%"),
            Column("bfloat16_fraction", "of bfloat16 matrix rate", ".1%"),
        ),
    ),
)


@dataclass(frozen=True)
class Case:
    size: str
    agent: str
    encoder: str
    actions: str

    @property
    def name(self) -> str:
        return f"{self.size} {self.agent} {self.encoder} {self.actions}"


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


class Repeated:
    """A call of this is so many calls of `run`, on the prepared batches in turn, that it takes about `seconds`."""

    def __init__(self, run: Callable[[TrainingBatch], object], prepared: list[TrainingBatch], seconds: float):
        self.run, self.prepared = run, prepared
        self.ready = cycle(prepared)
        self.calls = measure.calls_within(self.once, seconds, prepared[0].mask.device.type)

    def once(self) -> None:
        self.run(next(self.ready))

    def __call__(self) -> None:
        for _ in range(self.calls):
            self.once()

    def flops(self) -> float:
        """Floating-point operations of one call of `run`: the mean, for some work is done for real transitions only."""
        return measure.count_flops(lambda: [self.run(batch) for batch in self.prepared]) / len(self.prepared)


def learners(config: LearnerConfig, spec: AgentSpec, reader: ReplayReader, precisions: Iterable[str]) -> list[Learner]:
    """The same learner in each precision."""
    made = []
    for precision in precisions:
        # accelerate holds a process to one precision. What depends on it is settled when a learner is made.
        AcceleratorState._reset_state()
        made.append(Learner(replace(config, mixed_precision=precision), spec, reader))
    return made


def measure_case(case: Case, options: argparse.Namespace, products: dict[str, MatrixProduct]) -> Row:
    size, action_spec, device = SIZES[case.size], ACTIONS[case.actions], options.device
    reader = ReplayReader([LocalShard(filled_shard(size, action_spec))], size.batch_size, seed=0)
    spec = configured_spec(size, case.encoder, action_spec, agent=case.agent)
    config = LearnerConfig(device=device, mixed_precision=options.precision)
    by_precision = dict(zip(products, learners(config, spec, reader, products)))
    learner, plain = by_precision[options.precision], PlainLearner(config, spec.build())
    prepared = [training_batch(batch, action_spec, learner.device) for batch in reader.batches(NUM_PREPARED, 0)]
    run_s = 0.05 if options.quick else RUN_S
    updates = {p: Repeated(it.update, prepared, run_s) for p, it in by_precision.items()}
    update, plain_update = updates[options.precision], Repeated(plain.update, prepared, run_s)
    num_batches = max(update.calls, LEAST_BATCHES)
    reports: list[LearnReport] = []
    timings = measure.interleaved(
        {
            **updates,
            "plain": plain_update,
            "train": lambda: reports.append(learner.train(num_batches)),
            **{f"matrix {precision}": matrix_product for precision, matrix_product in products.items()},
        },
        0.1 if options.quick else options.seconds,
        min_rounds=2 if options.quick else 3,
        device=device,
    )
    timed = reports[1:]  # without the round that warms up
    train, plain_timing = timings["train"].divided(num_batches), timings["plain"].divided(plain_update.calls)
    per_update = {precision: timings[precision].divided(updates[precision].calls) for precision in updates}
    matrix_rates = {p: matrix_product.flops / timings[f"matrix {p}"].median for p, matrix_product in products.items()}
    ours, flops = per_update[options.precision], update.flops()
    return {
        **vars(case),
        "batch_size": size.batch_size,
        "max_seq_len": size.max_seq_len,
        "parameters": sum(p.numel() for p in learner.agent.parameters() if p.requires_grad),
        "runs": len(timed),
        "updates_per_run": update.calls,
        "plain_updates_per_run": plain_update.calls,
        "batches_per_train": num_batches,
        "updates_per_s": ours.spread(1),
        "train_updates_per_s": train.spread(1),
        "train_ratio": ours.median / train.median,
        "waiting": float(np.median([report.wait_s / report.total_s for report in timed])),
        "padding": padding(reader),
        "flops_per_update": flops,
        "flops_per_s": flops / ours.median,
        "matrix_flops_per_s": matrix_rates[options.precision],
        "fraction_of_matrix_rate": flops / ours.median / matrix_rates[options.precision],
        "peak_bytes": measure.peak_bytes(update.once, device),
        "plain_updates_per_s": plain_timing.spread(1),
        "speedup": measure.ratio(plain_timing, ours),
        "plain_flops_per_update": plain_update.flops(),
        "plain_peak_bytes": measure.peak_bytes(plain_update.once, device),
        **side_by_side(per_update, matrix_rates, flops),
    }


def side_by_side(per_update: dict[str, Timing], matrix_rates: dict[str, float], flops: float) -> Row:
    """Float32 and bfloat16: as many operations, on matrices of the one type or the other."""
    if len(per_update) < len(DTYPES):
        return {}
    row: Row = {"bfloat16_speedup": measure.ratio(per_update["no"], per_update["bf16"])}
    for precision, name in DTYPE_NAMES.items():
        row[f"{name}_updates_per_s"] = per_update[precision].spread(1)
        row[f"{name}_fraction"] = flops / per_update[precision].median / matrix_rates[precision]
    return row


def padding(reader: ReplayReader) -> float:
    """Fraction of the padded batches' transitions that are padding."""
    lengths = [batch.lengths for batch in reader.batches(NUM_PREPARED, 0)]
    return 1.0 - sum(x.sum() for x in lengths).item() / sum(x.max() * len(x) for x in lengths).item()


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    cases = [Case(*parts) for parts in product(SIZES, AGENTS, ENCODERS, ACTIONS)]
    cases = [case for case in cases if case.agent != ONLINE or case.encoder in ("FF", "Transformer")]
    if options.quick:
        cases = [case for case in cases if case.size == "demo" and case.actions == "discrete"]
    rates, products = {}, {}
    for precision, dtype in DTYPES.items():
        products[precision], rate = measure.fastest_product(options.device, dtype, quick=True)
        name = f"{DTYPE_NAMES[precision]}_flops_per_s"
        if not options.quick:
            if precision == "bf16" != options.precision and rate < rates["float32_flops_per_s"] / 2:
                measure.say("bfloat16 is emulated on this device, at a fraction of float32's rate: not measured")
                del products[precision]
                rates[name] = rate
                continue
            products[precision], rate = measure.fastest_product(options.device, dtype)
        products[precision].fill(0.05 if options.quick else 0.1, options.device)
        rates[name] = rate
    rows = []
    for case in cases:
        if options.only in case.name:
            measure.say(case.name)
            rows.append(measure_case(case, options, products))
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
