"""The command `amago-ray tune`: a sweep from gin files and options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import gin

from amago_ray.commands.command_line import (
    Parser,
    bindings_of,
    in_one_line,
    load_experiment,
    settings_options,
    short_name_options,
)
from amago_ray.tune.results import SweepResults, plot_sweep
from amago_ray.tune.sweep import Sweep, split_param
from amago_ray.tune.trial import run_sweep

HELP = """\
search for good settings: many runs of one configuration with different values

examples:
  amago-ray tune --config configs/cartpole.gin --config configs/sweeps/three_settings.gin
  amago-ray tune --config configs/cartpole.gin --param 'Agent.gamma=loguniform(0.9, 0.999)' \\
      --param 'Experiment.batch_size=choice([16, 32])' --scheduler asha --num-samples 8
  amago-ray tune --config configs/cartpole.gin --config configs/sweeps/seeds.gin --resume    go on after a crash
"""


def run(arguments: Sequence[str]) -> int:
    """Run a sweep, then print its table and draw its picture. Exit status 1 where a trial failed."""
    parser = Parser(
        prog="amago-ray tune",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[settings_options(), short_name_options()],
    )
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="'NAME=DISTRIBUTION'",
        help="a setting to vary: loguniform(low, high), choice([...]), grid_search([...]), ...; may be repeated",
    )
    parser.add_argument("--metric", help="what trials are judged by (val/return)")
    parser.add_argument("--mode", choices=("max", "min"), help="whether more or less of it is better (max)")
    parser.add_argument("--scheduler", choices=("fifo", "asha", "pbt"), help="which trials go on (fifo)")
    parser.add_argument("--num-samples", type=int, metavar="N", help="trials, or passes over a grid (1)")
    parser.add_argument(
        "--max-concurrent", type=int, metavar="N", help="trials at a time (as many as there is room for)"
    )
    parser.add_argument("--name", help="of the sweep's folder; by default that of the run with _sweep at its end")
    parser.add_argument("--resume", action="store_true", help="go on with a sweep that was killed")
    options = parser.parse_args(arguments)

    with in_one_line():
        experiment = load_experiment(options.config, bindings_of(options))
        folder = run_sweep(experiment, _sweep(options), options.name or f"{experiment.run_name}_sweep", options.resume)
        results = SweepResults.read(folder)
        print(f"\n{results.table()}\n\nThe sweep is in {folder}")
        if any(trial.best is not None for trial in results.trials.values()):
            print(plot_sweep(folder))
    return 1 if any(trial.status == "failed" for trial in results.trials.values()) else 0


def _sweep(options: argparse.Namespace) -> Sweep:
    """The settings in gin, and what the command line says on top."""
    given: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("metric", "mode", "scheduler", "num_samples", "max_concurrent")
        if getattr(options, name) is not None
    }
    if options.param:
        try:
            configured = gin.query_parameter("Sweep.params")
        except ValueError:  # none there
            configured = {}
        if isinstance(configured, Mapping):  # what else it is, Sweep refuses
            configured = {**configured, **dict(split_param(param) for param in options.param)}
        given["params"] = configured
    return Sweep(**given)
