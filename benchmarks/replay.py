"""Rates at which replay shards take trajectories in and give sequences and padded batches out.

A writer and a reader talk to 1, 2 or 4 shards in this very process, which keep what they store in memory, or in files
that the page cache holds. Beside them: copying the same bytes, and reading one .npz file per sequence.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import measure
import torch
from measure import Column, Row, Table
from replay_cases import DATA, NUM_ACTIONS, Copy, Data, NpzFiles, Ring

from amago_ray.driver.malloc import keep_freed_memory
from amago_ray.learner.batches import training_batch
from amago_ray.specs import ActionSpec

NUM_SHARDS = (1, 2, 4)
ACTION_SPEC = ActionSpec("discrete", (), "int64", NUM_ACTIONS, (NUM_ACTIONS,))
MEMORY, FILES, LZ4 = "memory", "files", "files, lz4"

CASE = (Column("data", "data"), Column("stored", "stored in"), Column("num_shards", "shards"))
RUNS = Column("runs", "runs")
TABLES = (
    Table(
        "Pushing: ReplayWriter to shards, visible to the reader",
        (
            *CASE,
            Column("push_trajectories_per_s", "trajectories/s", ",.0f"),
            Column("push_bytes_per_s", "GB/s", ".2f", scale=1e9),
            Column("push_copy_bytes_per_s", "copy GB/s", ".1f", scale=1e9),
            Column("push_ratio", "push / copy", ".3f"),
            Column("stored_fraction", "stored / pushed bytes", ".2f"),
            RUNS,
        ),
    ),
    Table(
        "Sampling: shards to ReplayReader",
        (
            *CASE,
            Column("sample_steps_per_s", "sequence-steps/s", ",.0f"),
            Column("sample_bytes_per_s", "GB/s", ".2f", scale=1e9),
            Column("sample_copy_bytes_per_s", "copy GB/s", ".1f", scale=1e9),
            Column("sample_ratio", "sample / copy", ".3f"),
            Column("npz_steps_per_s", ".npz: sequence-steps/s", ",.0f"),
            Column("npz_ratio", "sample / .npz", ",.0f"),
            RUNS,
        ),
    ),
    Table(
        "The whole way: shards to the learner's padded TrainingBatch",
        (
            *CASE,
            Column("batch_steps_per_s", "sequence-steps/s", ",.0f"),
            Column("batch_bytes_per_s", "GB/s", ".2f", scale=1e9),
            Column("batch_ratio", "batch / copy", ".3f"),
            RUNS,
        ),
    ),
)


@dataclass(frozen=True)
class Case:
    """One row of the tables. stored: MEMORY, FILES or LZ4."""

    data: str
    stored: str
    num_shards: int

    @property
    def name(self) -> str:
        return f"{self.data}, {self.stored}, {self.num_shards} shards"


CASES = [
    *(Case(data, stored, shards) for data, stored, shards in product(DATA, (MEMORY, FILES), NUM_SHARDS)),
    *(Case(data, LZ4, 1) for data in DATA if DATA[data].dtype == "uint8"),
]


def measure_case(case: Case, data: Data, seconds: float, folder: Path) -> Row:
    ring = Ring(data, case.num_shards, None if case.stored == MEMORY else folder / "replay", case.stored == LZ4)
    npz = NpzFiles(data, folder / "npz")
    cpu = torch.device("cpu")
    steps, sampled_bytes = ring.sampled()
    subjects: dict[str, Callable[[], object]] = {
        "push": ring.push,
        "push copy": Copy(ring.pushed_bytes),
        "sample": ring.sample,
        "batch": lambda: ring.sample(lambda batch: training_batch(batch, ACTION_SPEC, cpu)),
        "sample copy": Copy(sampled_bytes),
        "npz": npz,
    }
    timings = measure.interleaved(subjects, seconds, before={"push": ring.name_new})
    per_sequence = timings["sample"].divided(data.num_batches * data.batch_size)
    npz_per_sequence = timings["npz"].divided(data.num_read)
    row = {"data": case.data, "stored": case.stored, "num_shards": case.num_shards, "runs": len(timings["npz"].seconds)}
    row |= {
        "push_trajectories_per_s": timings["push"].spread(data.num_pushed),
        "push_bytes_per_s": ring.pushed_bytes / timings["push"].median,
        "push_copy_bytes_per_s": ring.pushed_bytes / timings["push copy"].median,
        "push_ratio": measure.ratio(timings["push copy"], timings["push"]),
        "stored_fraction": ring.stored_fraction,
        "sample_copy_bytes_per_s": sampled_bytes / timings["sample copy"].median,
        "npz_steps_per_s": data.max_seq_len / npz_per_sequence.median,
        "npz_ratio": measure.ratio(npz_per_sequence, per_sequence),
        "bytes_per_push_run": ring.pushed_bytes,
        "bytes_per_sample_run": sampled_bytes,
    }
    for what in ("sample", "batch"):
        row |= {
            f"{what}_steps_per_s": timings[what].spread(steps),
            f"{what}_bytes_per_s": sampled_bytes / timings[what].median,
            f"{what}_ratio": measure.ratio(timings["sample copy"], timings[what]),
        }
    ring.close()
    return row


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    rows = []
    for case in CASES:
        if options.only not in case.name or (options.quick and case.num_shards > 2):
            continue
        measure.say(case.name)
        data = DATA[case.data].quick() if options.quick else DATA[case.data]
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rows.append(measure_case(case, data, 0.05 if options.quick else options.seconds, Path(folder)))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"memcpy_bytes_per_s": measure.memcpy_bytes_per_s(), "peak_resident_bytes": memory}, rows


if __name__ == "__main__":
    arguments = measure.parser("replay", __doc__, seconds=5.0)
    arguments.add_argument("--folder", type=Path, metavar="DIR", help="for the files (default: the system's for those)")
    parsed = arguments.parse_args()
    torch.set_num_threads(1)  # one core is what is measured, and its copies are compared with those of one thread
    keep_freed_memory()  # as in shard and learner processes
    measure.main(parsed, TABLES, run)
