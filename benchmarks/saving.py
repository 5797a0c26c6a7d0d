"""How long a save holds a learner up, which copies its state to host memory and goes on, beside writing the copy."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import measure
import torch
from measure import Column, Row, Table, Timing
from torch import nn

from amago_ray.learner.snapshot import Snapshot

TABLES = (
    Table(
        "Saving a training state of AdamW; half of an agent's parameters are targets",
        (
            Column("parameters", "parameters", ",d"),
            Column("bytes", "MB", ",.0f", scale=1e6),
            Column("first_s", "first copy ms", ",.1f", scale=1e-3),
            Column("copy_s", "stall: a copy ms", ",.1f", scale=1e-3),
            Column("memcpy_s", "memcpy of as much ms", ",.1f", scale=1e-3),
            Column("write_s", "written meanwhile, ms", ",.0f", scale=1e-3),
        ),
    ),
)


class Model(nn.Module):
    """As many parameters as an agent has, half of which are learned: the other half are targets."""

    def __init__(self, num_parameters: int):
        super().__init__()
        width = 1000
        self.learned = nn.ParameterList(
            nn.Parameter(torch.randn(width, width)) for _ in range(num_parameters // 2 // width**2)
        )
        self.rest = nn.Parameter(torch.randn(num_parameters // 2 - len(self.learned) * width**2))
        self.targets = nn.ParameterList(
            nn.Parameter(p.detach().clone(), requires_grad=False) for p in self.parameters()
        )


def save(num_parameters: int, repeats: int) -> Row:
    """One row: seconds of the first copy, of those after it, and of writing one to the disk."""
    model = Model(num_parameters)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned)
    for p in learned:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    copies, writes, buffers = [], [], []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        snapshot = Snapshot.of(model, {}, optimizer, schedule, None, 0, (0, 0, 0), buffers)
        copies.append(time.perf_counter() - started)
        buffers = snapshot.buffers
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            snapshot.write(Path(folder), 0)
            writes.append(time.perf_counter() - started)
    num_bytes = sum(buffer.nbytes for buffer in buffers)
    return {
        "parameters": num_parameters,
        "bytes": num_bytes,
        "first_s": copies[0],
        "copy_s": _range(copies[1:]),
        "memcpy_s": num_bytes / measure.memcpy_bytes_per_s(),
        "write_s": _range(writes),
    }


def _range(seconds: list[float]) -> dict[str, float]:
    return {"median": Timing(tuple(seconds)).median, "min": min(seconds), "max": max(seconds)}


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    sizes = (1_000_000,) if options.quick else (1_000_000, 10_000_000, 100_000_000)
    rows = []
    for size in sizes:
        measure.say(f"{size:,} parameters")
        rows.append(save(size, 2 if options.quick else 7))
    return {}, rows


if __name__ == "__main__":
    measure.main(measure.parser("saving", __doc__, seconds=0.0).parse_args(), TABLES, run)
