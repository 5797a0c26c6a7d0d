"""`amago-ray plot`: learning curves of runs, or the trials of a sweep, as a PNG."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from amago_ray.commands.command_line import Mistake, Parser, check_writable, in_one_line
from amago_ray.tune.results import SWEEP_FILE, plot_sweep
from amago_ray.watch.curves import check_returns, draw_runs, read_run
from amago_ray.watch.metrics import AVERAGE_RETURN
from amago_ray.watch.run_log import RunLog


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
            print(plot_sweep(sweep, out, _tell))
            return 0
        runs, out = {folder: read_run(folder) for folder in options.runs}, options.out or options.runs[0] / "curves.png"
        check_writable(out)
        for run in runs.values():
            if run.log.unread is not None:
                _tell(run.log.unread)
        check_returns(options.runs, list(runs.values()))
        drawn = {folder: run for folder, run in runs.items() if run.has_returns}
        picture = draw_runs([runs[folder] for folder in options.runs if folder in drawn], out)
        for folder in runs:
            if folder not in drawn:
                print(f"{folder} has no returns yet and is left out")
        print(picture)
        for folder, run in drawn.items() if options.reached is not None else ():
            for section, what in (("collect", "training (exploring)"), ("val", "validation")):
                print(f"{folder.name}: {what} return {reached(run.log, section, options.reached)}")
    return 0


def _tell(text: str) -> None:
    print(f"amago-ray: {text}", file=sys.stderr)


def _check_alone(sweep: Path, runs: Sequence[Path], target: float | None) -> None:
    """Raises ValueError where a sweep is asked for with what its picture has no place for."""
    if len(runs) > 1:
        raise ValueError(f"{sweep} is a sweep, which is drawn by itself: name nothing beside it, or runs of it")
    if target is not None:
        raise ValueError(f"--reached {target:g}: {sweep} is a sweep; name runs of it")


def reached(log: RunLog, section: str, target: float) -> str:
    """When the mean return of a section of the metrics log first got to `target`."""
    for row, value in log.finite(f"{section}/{AVERAGE_RETURN}"):
        if value >= target:
            wall_s, frames, updates = (log.axes[name][row] for name in ("wall_s", "total_frames", "gradient_steps"))
            return (
                f"reached {target:g} after {wall_s:.0f} s of training, {int(frames):,} frames and "
                f"{int(updates):,} updates"
            )
    return f"never reached {target:g}"
