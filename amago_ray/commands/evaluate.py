"""`amago-ray evaluate`: returns of a run's saved policy, and a picture of it at work, without Ray and its data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amago_ray.commands.command_line import (
    WITHOUT_DATA,
    Mistake,
    in_one_line,
    latest_weights,
    load_experiment,
    override_options,
)
from amago_ray.watch.metrics import summarize_episodes

if TYPE_CHECKING:
    from amago_ray.experiment import Experiment


def run(arguments: Sequence[str]) -> int:
    """Evaluate the saved policy of a run, without Ray."""
    parser = argparse.ArgumentParser(
        prog="amago-ray evaluate",
        description="returns of a run's saved policy, and a picture of it at work",
        parents=[override_options()],
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, such as runs/tmaze")
    parser.add_argument("--env", help="gymnasium id or gin name; by default the run's validation environments")
    parser.add_argument("--episodes", type=int, default=100, help="how many rollouts (default 100)")
    parser.add_argument("--epoch", type=int, help="weights of that epoch; by default the latest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--greedy", action="store_true", help="take the policy's mode instead of drawing from it")
    parser.add_argument("--gif", type=Path, help="also render one rollout into this file")
    options = parser.parse_args(arguments)
    if options.episodes < 1:
        raise Mistake(f"--episodes {options.episodes}: it must be 1 or more")
    from amago_ray.driver.probe import probe
    from amago_ray.rollout.evaluate import evaluate_policy, load_policy_weights, record_gif

    with in_one_line():
        bindings = [*WITHOUT_DATA, *options.set, *_environment(options.env)]
        experiment = load_experiment([options.run / "config.txt"], bindings)
        spec = probe(experiment)
        weights = load_policy_weights(spec, latest_weights(options.run, options.epoch))
        if options.gif:
            _check_gif(experiment)
        results = evaluate_policy(
            spec,
            weights,
            experiment.make_val_env,
            options.episodes,
            options.seed,
            not options.greedy,
            rollout_limit_s=experiment.call_timeout_s,
        )
    for name, value in summarize_episodes(results).items():
        print(f"{name:60} {value:10.3f}")
    if options.gif:
        with in_one_line():
            print(record_gif(spec, weights, experiment.make_val_env, options.gif, options.seed, not options.greedy))
    return 0


def _check_gif(experiment: Experiment) -> None:
    """Raises ValueError, before anything is played, where the environment cannot be drawn."""
    from amago_ray.rollout.evaluate import check_renderable

    try:
        check_renderable(experiment.make_val_env)
    except ValueError as error:
        raise ValueError(f"--gif: {error}") from error


def _environment(name: str | None) -> list[str]:
    """Bindings that put a gymnasium id, or what gin knows by a name, in place of the environments of a run."""
    if name is None:
        return []
    value = repr(name) if "/" in name or "-v" in name else f"@{name}"
    return [f"Experiment.make_train_env = {value}", f"Experiment.make_val_env = {value}"]
