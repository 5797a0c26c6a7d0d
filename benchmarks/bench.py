"""The speed of every stage in one table, in some ten minutes: ours, its limit or a peer, the ratio and its spread.

Runs the other benchmarks in short, each in a process of its own, and gathers what they record. `make bench` runs it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import measure
from measure import Column, Row, Table

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Stage:
    """Cases of one benchmark. name: of a case, made of its row's entries.

    ours, ratio: keys of its rows; the ratio is ours over the other. against: the other, in words.
    """

    script: str
    options: tuple[str, ...]
    name: str
    ours: str
    unit: str
    against: str
    ratio: str


LEARNER = ("--threads", "1", "--seconds", "1")
STAGES = (
    Stage(
        "rollout",
        ("--seconds", "3"),
        "acting: {policy}, {env}, {num_envs} environments",
        "worker_frames_per_s",
        "frames/s",
        "bare loop of policy and environments",
        "ratio",
    ),
    *(
        Stage(
            "learner",
            (*LEARNER, "--only", f"default Agent {case}"),
            "learning: {size} {agent}, {encoder}, {actions}",
            "updates_per_s",
            "updates/s",
            against,
            ratio,
        )
        for case in ("GRU discrete", "Transformer discrete", "Transformer continuous")
        for against, ratio in (
            ("the same losses written plainly", "speedup"),
            ("rate of matrix products", "fraction_of_matrix_rate"),
        )
    ),
    Stage(
        "long_context",
        ("--threads", "1", "--seconds", "2", "--only", "2048"),
        "sequences: {encoder}, {length} timesteps",
        "timesteps_per_s",
        "timesteps/s",
        "full attention",
        "speedup",
    ),
    *(
        Stage("replay", ("--only", "files"), f"replay: {what} {{data}}, {{stored}}, {{num_shards}} shards", *columns)
        for what, *columns in (
            ("push", "push_trajectories_per_s", "trajectories/s", "copying memory", "push_ratio"),
            ("sample", "sample_steps_per_s", "steps/s", "copying memory", "sample_ratio"),
            ("sample", "sample_steps_per_s", "steps/s", "reading .npz files", "npz_ratio"),
        )
    ),
)

TABLE = Table(
    "Every stage and what it is measured against",
    (
        Column("stage", "stage"),
        Column("ours", "ours", ",.1f"),
        Column("unit", "unit"),
        Column("against", "limit or peer"),
        Column("ratio", "ratio", ".2f"),
        Column("spread", "spread"),
    ),
)


def rows_of(script: str, options: tuple[str, ...], quick: bool) -> list[Row]:
    """What one benchmark records."""
    with tempfile.TemporaryDirectory() as folder:
        figure = ("--figure", f"{folder}/figure.png") if script == "long_context" else ()
        how = ("--quick",) if quick else options  # a quick run has few cases already
        command = [sys.executable, HERE / f"{script}.py", "--out", folder, *how, *figure]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        recorded = json.loads((Path(folder) / f"{script}.json").read_text(encoding="utf-8"))
    return list(recorded["rows"])


def summaries(stage: Stage, rows: list[Row]) -> Iterator[Row]:
    for row in rows:
        ours, ratio = row.get(stage.ours), row.get(stage.ratio)
        if ours is None or ratio is None:
            continue
        ranged = isinstance(ratio, dict)
        yield {
            "stage": stage.name.format(**row),
            "ours": ours["median"] if isinstance(ours, dict) else ours,
            "unit": stage.unit,
            "against": stage.against,
            "ratio": ratio["median"] if ranged else ratio,
            "spread": f"{ratio['min']:.2f}-{ratio['max']:.2f}" if ranged else "-",
        }


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    measured: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    found: list[Row] = []
    for stage in STAGES:
        if options.only not in stage.script:
            continue
        key = stage.script, () if options.quick else stage.options
        if key not in measured:
            measure.say(" ".join((stage.script, *stage.options)))
            measured[key] = rows_of(*key, options.quick)
        found += summaries(stage, measured[key])
    return {}, found


if __name__ == "__main__":
    measure.main(measure.parser("bench", __doc__, seconds=0.0).parse_args(), (TABLE,), run)
