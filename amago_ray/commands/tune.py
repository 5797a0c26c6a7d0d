"""The command `amago-ray tune`: a sweep from gin files and options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import gin

from amago_ray.experiment import Experiment
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


def tune(arguments: Sequence[str], load_experiment: Callable[[Sequence[str], Sequence[str]], Experiment]) -> bool:
    """Run a sweep, then print its table and draw its picture. Returns whether no trial failed.

    Raises ValueError, in one line, for settings that cannot work.
    """
    parser = argparse.ArgumentParser(
        prog="amago-ray tune", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", action="append", required=True, metavar="FILE", help="gin file; may be repeated")
    parser.add_argument("--set", action="append", default=[], metavar="'NAME = VALUE'", help="one gin binding")
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

    experiment = load_experiment(options.config, options.set)
    name = options.name or f"{experiment.run_name}_sweep"
    folder = run_sweep(experiment, _sweep(options), name, options.resume)
    results = SweepResults.read(folder)
    print(f"\n{results.table()}\n\nThe sweep is in {folder}")
    if any(trial.best is not None for trial in results.trials.values()):
        print(plot_sweep(folder))
    return all(trial.status != "failed" for trial in results.trials.values())


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
        given["params"] = {**configured, **dict(split_param(param) for param in options.param)}
    return Sweep(**given)
