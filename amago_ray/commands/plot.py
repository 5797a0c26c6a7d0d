"""`amago-ray plot`: learning curves of runs, or the trials of a sweep, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amago_ray.commands.command_line import Mistake, Parser, check_writable, in_one_line
from amago_ray.tune.results import SWEEP_FILE, plot_sweep
from amago_ray.watch.curves import plot_runs, without_returns
from amago_ray.watch.metrics import AVERAGE_RETURN, read_numbers


def run(arguments: Sequence[str]) -> int:
    """Draw learning curves."""
    parser = Parser(prog="amago-ray plot", description="draw the learning curves of runs as a PNG")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of one sweep, such as runs/tmaze"
    )
    parser.add_argument(
        "--out", type=Path, help="the PNG; by default curves.png in the first run's folder, or sweep.png in a sweep's"
    )
    parser.add_argument(
        "--reached", type=float, metavar="RETURN", help="also say when each run's return first got this high"
    )
    options = parser.parse_args(arguments)
    if options.reached is not None and not math.isfinite(options.reached):
        raise Mistake(f"--reached {options.reached}: it must be a finite number")
    with in_one_line():
        sweep = next((folder for folder in options.runs if (folder / SWEEP_FILE).is_file()), None)
        if sweep is not None:
            _check_alone(sweep, options.runs, options.reached)
            out = options.out or sweep / "sweep.png"
            check_writable(out)
            print(plot_sweep(sweep, out))
            return 0
        left_out, out = without_returns(options.runs), options.out or options.runs[0] / "curves.png"
        check_writable(out)
        picture = plot_runs(options.runs, out)
        for folder in left_out:
            print(f"{folder} has no returns yet and is left out")
        print(picture)
        drawn = [folder for folder in options.runs if folder not in left_out]
        for folder in drawn if options.reached is not None else ():
            for section, what in (("collect", "training (exploring)"), ("val", "validation")):
                print(f"{folder.name}: {what} return {reached(read_numbers(folder), section, options.reached)}")
    return 0


def _check_alone(sweep: Path, runs: Sequence[Path], target: float | None) -> None:
    """Raises ValueError where a sweep is asked for with what its picture has no place for."""
    if len(runs) > 1:
        raise ValueError(f"{sweep} is a sweep, which is drawn by itself: name nothing beside it, or runs of it")
    if target is not None:
        raise ValueError(f"--reached {target:g}: {sweep} is a sweep; name runs of it")


def reached(rows: Sequence[Mapping[str, Any]], section: str, target: float) -> str:
    """When the mean return of a section of the metrics log first got to `target`."""
    key = f"{section}/{AVERAGE_RETURN}"
    for row in rows:
        if row.get(key) is not None and row[key] >= target:
            return (
                f"reached {target:g} after {row['wall_s']:.0f} s of training, {row['total_frames']:,} frames and "
                f"{row['gradient_steps']:,} updates"
            )
    return f"never reached {target:g}"
