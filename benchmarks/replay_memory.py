"""Memory of a process with one shard, while a million trajectories pass through it.

The shard keeps the newest ones, in memory or in files; it is sampled from all the while. Each way of storing has a
process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from dataclasses import replace
from pathlib import Path

import measure
from measure import Column, Row, Table
from replay_cases import DATA, Ring

from amago_ray.driver.malloc import keep_freed_memory

NUM_ROWS = 10

TABLES = (
    Table(
        "Resident memory of a shard's process",
        (
            Column("stored", "stored in"),
            Column("pushed", "trajectories pushed", ",d"),
            Column("held", "held", ",d"),
            Column("held_bytes", "held MB", ",.1f", scale=1e6),
            Column("anonymous_bytes", "anonymous memory MB", ",.1f", scale=1e6),
            Column("resident_bytes", "resident MB", ",.1f", scale=1e6),
        ),
    ),
)


def resident_bytes() -> tuple[int, int]:
    """This process's anonymous memory, and all of its resident memory (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    anonymous, resident = (int(facts[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))
    return anonymous, resident


def memory_over(stored: str, num: int, num_held: int, folder: Path | None) -> list[Row]:
    """NUM_ROWS rows, evenly spaced over `num` trajectories of which the shard holds `num_held`."""
    keep_freed_memory()  # as in shard processes
    data = DATA["vectors 32 x 100"]
    data = replace(data, length=20, max_seq_len=20, num_stored=num_held, num_pushed=num_held // 10, num_batches=8)
    ring = Ring(data, 1, folder)
    pushed, rows = num_held, []
    for row in range(1, NUM_ROWS + 1):
        while pushed < num * row // NUM_ROWS:
            ring.name_new()
            ring.push()
            ring.sample()
            pushed += data.num_pushed
        anonymous, resident = resident_bytes()
        report = ring.shards[0].report()
        facts = {"pushed": report.inserted, "held": report.trajectories, "held_bytes": report.bytes}
        rows.append({"stored": stored, **facts, "anonymous_bytes": anonymous, "resident_bytes": resident})
    ring.close()
    return rows


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    num, num_held = (2_000, 100) if options.quick else (options.trajectories, 50_000)
    rows = []
    for stored in ("memory", "files"):
        if options.only not in stored:
            continue
        measure.say(stored)
        # Not forked: a child would begin with this process's memory.
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            rows += pool.apply(memory_over, (stored, num, num_held, Path(folder) if stored == "files" else None))
    return {}, rows


if __name__ == "__main__":
    arguments = measure.parser("replay_memory", __doc__, seconds=0.0)
    arguments.add_argument("--trajectories", type=int, default=1_000_000, help="pushed (default: %(default)s)")
    measure.main(arguments.parse_args(), TABLES, run)
