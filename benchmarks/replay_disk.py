"""Rates at which a shard samples from the disk itself, as it must when its files are larger than memory.

One shard in this process. Before every timed run its files, and those it is compared with, are dropped from the page
cache (posix_fadvise), so that what is read comes from the disk; that of a virtual machine may have a cache of its own.
With `--gb` above the machine's memory and `--keep-cache`, nothing is dropped: the page cache then holds what it can.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import measure
import numpy as np
from measure import Column, Row, Table
from replay_cases import DATA, Data, NpzFiles, Ring

from amago_ray.driver.malloc import keep_freed_memory

MOST_NPZ_FILES = 1000

TABLES = (
    Table(
        "Sampling from disk",
        (
            Column("data", "data"),
            Column("stored_bytes", "stored GB", ".1f", scale=1e9),
            Column("sample_steps_per_s", "sequence-steps/s", ",.0f"),
            Column("sample_bytes_per_s", "GB/s", ".3f", scale=1e9),
            Column("read_bytes_per_s", "plain reads GB/s", ".3f", scale=1e9),
            Column("read_ratio", "sample / plain reads", ".2f"),
            Column("npz_steps_per_s", ".npz: sequence-steps/s", ",.0f"),
            Column("npz_ratio", "sample / .npz", ".1f"),
            Column("runs", "runs"),
        ),
    ),
)


class PlainReads:
    """Reads as many bytes as one sampling run gives, a sequence's at a time, from random places of the segments."""

    def __init__(self, paths: list[Path], num_reads: int, num_bytes: int):
        self.paths = [path for path in paths if path.stat().st_size > num_bytes]
        self.num_reads, self._rng = num_reads, np.random.default_rng(0)
        self._out = np.zeros(num_bytes, np.uint8)

    def __call__(self) -> None:
        for i in self._rng.integers(len(self.paths), size=self.num_reads):
            with open(self.paths[i], "rb", buffering=0) as file:
                file.seek(int(self._rng.integers(self.paths[i].stat().st_size - len(self._out))))
                file.readinto(self._out)


def drop_from_page_cache(paths: Iterable[Path]) -> None:
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)  # only what the disk has can be dropped
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def measure_case(name: str, data: Data, seconds: float, keep_cache: bool, folder: Path) -> Row:
    ring = Ring(data, 1, folder / "replay")
    npz = NpzFiles(data, folder / "npz")
    segments = list((folder / "replay").rglob("*.segment"))
    steps, num_bytes = ring.sampled()
    num_sequences = data.num_batches * data.batch_size
    subjects: dict[str, Callable[[], object]] = {
        "sample": ring.sample,
        "read": PlainReads(segments, num_sequences, num_bytes // num_sequences),
        "npz": npz,
    }
    files = {"sample": segments, "read": segments, "npz": npz.paths}
    before: dict[str, Callable[[], object]] = {
        what: lambda paths=paths: drop_from_page_cache(paths)  # type: ignore[misc]
        for what, paths in files.items()
    }
    timings = measure.interleaved(subjects, seconds, before={} if keep_cache else before)
    ring.close()
    per_sequence, npz_per_sequence = timings["sample"].divided(num_sequences), timings["npz"].divided(data.num_read)
    return {
        "data": name,
        "stored_bytes": sum(path.stat().st_size for path in segments),
        "sample_steps_per_s": timings["sample"].spread(steps),
        "sample_bytes_per_s": num_bytes / timings["sample"].median,
        "read_bytes_per_s": num_bytes / timings["read"].median,
        "read_ratio": measure.ratio(timings["read"], timings["sample"]),
        "npz_steps_per_s": data.max_seq_len / npz_per_sequence.median,
        "npz_ratio": measure.ratio(npz_per_sequence, per_sequence),
        "runs": len(timings["sample"].seconds),
    }


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    rows = []
    for name, data in DATA.items():
        if options.only not in name:
            continue
        measure.say(name)
        if options.quick:
            data = data.quick()
        else:
            trajectory_bytes = (data.length + 1) * (np.dtype(data.dtype).itemsize * int(np.prod(data.shape)) + 13)
            stored = int(options.gb * 1e9 / trajectory_bytes)
            data = replace(data, num_stored=stored, num_files=min(stored, MOST_NPZ_FILES, data.num_files * 5))
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            seconds = 0.05 if options.quick else options.seconds
            rows.append(measure_case(name, data, seconds, options.keep_cache, Path(folder)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"machine_memory_bytes": memory, "dropped_from_page_cache": not options.keep_cache}, rows


if __name__ == "__main__":
    arguments = measure.parser("replay_disk", __doc__, seconds=5.0)
    arguments.add_argument("--folder", type=Path, metavar="DIR", help="for the files (default: the system's for those)")
    arguments.add_argument("--gb", type=float, default=1.0, help="stored, of each kind of data (default: %(default)s)")
    arguments.add_argument("--keep-cache", action="store_true", help="drop nothing from the page cache")
    parsed = arguments.parse_args()
    keep_freed_memory()  # as in shard and learner processes
    measure.main(parsed, TABLES, run)
