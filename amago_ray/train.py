"""Command line: train from a gin configuration, sweep over it, look at a run, evaluate it, make one of AMAGO's weights.

Runs as `python -m amago_ray.train`, as the command `amago-ray`, and as a plain script, which is what a cluster submits.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amago_ray import config
from amago_ray.envs.makers import EnvFailure
from amago_ray.watch.metrics import AVERAGE_RETURN, read_metrics, summarize_episodes

if TYPE_CHECKING:
    from amago_ray.experiment import Experiment

ATTEMPT = re.compile(r"Average Attempt (\d+) Success in (.+)")

TRAIN_HELP = """\
train an agent from one or more gin configurations

examples:
  amago-ray --config configs/meta_frozen_lake.gin
  amago-ray --config configs/tmaze.gin --set 'TMaze.corridor_length = 50' --set 'Experiment.run_name = "tmaze50"'
  amago-ray --config configs/tmaze.gin --resume         go on after a crash or Ctrl-C
  amago-ray tune --config configs/tmaze.gin --param 'Agent.gamma=loguniform(0.9, 0.999)' --num-samples 8    a sweep
  amago-ray plot runs/tmaze runs/tmaze50                learning curves as a PNG
  amago-ray evaluate runs/tmaze --gif tmaze.gif         returns of the newest policy, and a look at it
  amago-ray import-amago policy_epoch_9.pt --config a.gin --out runs/a    a run of weights that AMAGO 3.x saved
other commands: {commands}; each has its own --help
"""


class Mistake(Exception):
    """Something that the user can put right, in one line."""


@contextmanager
def in_one_line() -> Iterator[None]:
    """While a run is set up, errors are about settings, environments and files: show the message, not the traceback.

    AMAGO_RAY_TRACEBACK=1 in the environment shows both.
    """
    try:
        yield
    except (ValueError, TypeError, EnvFailure, OSError, ImportError) as error:
        if os.environ.get("AMAGO_RAY_TRACEBACK"):
            raise
        raise Mistake(" ".join(str(error).split())) from error


def train(arguments: Sequence[str]) -> None:
    """Train, then say how the result compares with a random policy."""
    parser = argparse.ArgumentParser(
        prog="amago-ray",
        description=TRAIN_HELP.format(commands=", ".join(COMMANDS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", action="append", required=True, metavar="FILE", help="gin file; may be repeated, later ones win"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="'NAME = VALUE'", help="one gin binding, on top of the files"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the run's newest complete training state")
    parser.add_argument("--overwrite", action="store_true", help="start anew where a run of this name exists")
    parser.add_argument(
        "--init-from", type=Path, metavar="FILE", help="start from the weights in a policy.pt or policy_epoch_n.pt"
    )
    parser.add_argument("--no-final-test", action="store_true", help="skip the comparison at the end")
    options = parser.parse_args(arguments)
    if options.init_from and options.resume:
        raise Mistake("--init-from begins a run and --resume goes on with one: leave out either")

    with in_one_line():
        experiment = load_experiment(options.config, options.set)
        if options.init_from:
            check_initial_weights(experiment, options.init_from, options.overwrite)
    with experiment:
        with in_one_line():
            experiment.start(resume=options.resume, overwrite=options.overwrite)
            if options.init_from:
                experiment.load_policy(options.init_from)
        experiment.learn()
        print(f"\nThe run is in {experiment.directory.root}")
        if experiment.test_episodes and not options.no_final_test:
            from amago_ray.rollout.evaluate import final_test

            x = experiment
            trained, random = final_test(
                x.evaluate_test,
                x.make_val_env,
                x.test_episodes,
                x.test_max_timesteps,
                x.seed,
                x.parallel_actors,
                x.call_timeout_s,
                x.action_mask_key,
            )
            print(compare(trained, summarize_episodes(random)))


def load_experiment(configs: Sequence[str | Path], bindings: Sequence[str]) -> Experiment:
    """The experiment that gin files and bindings describe. Raises ValueError where a required setting is left out."""
    config.load(configs, bindings)
    from amago_ray import Experiment

    required = ("run_name", "make_train_env", "max_seq_len")
    missing = [name for name in required if not config.is_bound("Experiment", name)]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(f'Experiment.{name}' for name in missing)}")
    return Experiment()  # gin fills in the required ones


def check_initial_weights(experiment: Experiment, path: Path, overwrite: bool) -> None:
    """Raises ValueError, before anything starts or is removed, for weights that the run could not begin with."""
    from amago_ray.driver.probe import probe
    from amago_ray.rollout.evaluate import load_policy_weights

    load_policy_weights(probe(experiment), path)
    if overwrite and experiment.directory.root in path.resolve().parents:
        raise ValueError(f"--overwrite would remove --init-from {path}: choose another run_name")


def compare(trained: dict[str, float], random: dict[str, float]) -> str:
    """A small table: the trained policy beside a random one, by return and, in meta-RL, by first and last attempt."""
    rows = [("mean return", AVERAGE_RETURN)]
    attempts = sorted((int(m.group(1)), name) for name in trained if (m := ATTEMPT.fullmatch(name)))
    if attempts:
        first, last = attempts[0], attempts[-1]
        rows += [(f"success at attempt {first[0]}", first[1]), (f"success at attempt {last[0]}", last[1])]
    lines = [f"{'':24}{'trained':>10}{'random':>10}"]
    lines += [f"{label:24}{trained[key]:10.2f}{random.get(key, float('nan')):10.2f}" for label, key in rows]
    episodes = int(trained["Total Episodes"])
    return "\n".join(["", f"Final test over {episodes} rollouts, without exploration:", *lines])


def plot(arguments: Sequence[str]) -> None:
    """Draw learning curves."""
    parser = argparse.ArgumentParser(prog="amago-ray plot", description="draw the learning curves of runs as a PNG")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of one sweep, such as runs/tmaze"
    )
    parser.add_argument("--out", type=Path, help="the PNG; by default curves.png in the first run's folder")
    parser.add_argument(
        "--reached", type=float, metavar="RETURN", help="also say when each run's return first got this high"
    )
    options = parser.parse_args(arguments)
    from amago_ray.tune.results import SWEEP_FILE, plot_sweep
    from amago_ray.watch.curves import plot_runs

    with in_one_line():
        if (options.runs[0] / SWEEP_FILE).is_file():
            print(plot_sweep(options.runs[0], options.out))
            return
        print(plot_runs(options.runs, options.out or options.runs[0] / "curves.png"))
        for run in options.runs if options.reached is not None else ():
            for section, what in (("collect", "training (exploring)"), ("val", "validation")):
                print(f"{run.name}: {what} return {reached(read_metrics(run), section, options.reached)}")


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


def evaluate(arguments: Sequence[str]) -> None:
    """Evaluate the saved policy of a run, without Ray."""
    parser = argparse.ArgumentParser(
        prog="amago-ray evaluate", description="returns of a run's saved policy, and a picture of it at work"
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, such as runs/tmaze")
    parser.add_argument("--env", help="gymnasium id or gin name; by default the run's validation environments")
    parser.add_argument("--episodes", type=int, default=100, help="how many rollouts (default 100)")
    parser.add_argument("--epoch", type=int, help="weights of that epoch; by default the latest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--greedy", action="store_true", help="take the policy's mode instead of drawing from it")
    parser.add_argument("--set", action="append", default=[], metavar="'NAME = VALUE'", help="one gin binding")
    parser.add_argument("--gif", type=Path, help="also render one rollout into this file")
    options = parser.parse_args(arguments)
    if options.episodes < 1:
        raise Mistake(f"--episodes {options.episodes}: it must be 1 or more")
    from amago_ray.driver.probe import probe
    from amago_ray.rollout.evaluate import evaluate_policy, load_policy_weights, record_gif

    with in_one_line():
        experiment = load_experiment([options.run / "config.txt"], [*options.set, *_environment(options.env)])
        spec = probe(experiment)
        weights = load_policy_weights(spec, experiment_weights(options.run, options.epoch))
        results = evaluate_policy(
            spec, weights, experiment.make_val_env, options.episodes, options.seed, not options.greedy
        )
    for name, value in summarize_episodes(results).items():
        print(f"{name:60} {value:10.3f}")
    if options.gif:
        with in_one_line():
            print(record_gif(spec, weights, experiment.make_val_env, options.gif, options.seed, not options.greedy))


def experiment_weights(run: Path, epoch: int | None) -> Path:
    """The file of a run's newest policy weights, or of those of one epoch."""
    ckpts = run / "ckpts"
    return ckpts / "latest" / "policy.pt" if epoch is None else ckpts / "policy_weights" / f"policy_epoch_{epoch}.pt"


def import_amago(arguments: Sequence[str]) -> None:
    """Make a run of policy weights that AMAGO saved."""
    parser = argparse.ArgumentParser(
        prog="amago-ray import-amago",
        description="make a run of policy weights that AMAGO 3.x saved, to evaluate it or to train on from it",
    )
    parser.add_argument("weights", type=Path, metavar="FILE", help="policy_epoch_N.pt of AMAGO's ckpts/policy_weights")
    parser.add_argument(
        "--config", action="append", required=True, metavar="FILE", help="gin file that describes the same agent"
    )
    parser.add_argument("--set", action="append", default=[], metavar="'NAME = VALUE'", help="one gin binding")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run to make")
    options = parser.parse_args(arguments)
    import torch

    from amago_ray.agent.amago_weights import convert_amago_weights
    from amago_ray.agent.flat_weights import read_state_dict
    from amago_ray.atomic_files import write_atomically
    from amago_ray.driver.probe import probe

    out = options.out
    folder = [f"Experiment.run_name = {out.name!r}", f"Experiment.ckpt_base_dir = {str(out.parent)!r}"]
    with in_one_line():
        if out.exists():
            raise ValueError(f"--out {out}: this exists already; name a folder to be made")
        experiment = load_experiment(options.config, [*options.set, *folder])
        agent = probe(experiment).build()
        agent.load_state_dict(convert_amago_weights(read_state_dict(options.weights), agent))
        experiment.create_directory()
        directory = experiment.directory
        for path in (directory.latest_policy, directory.policy_epoch(0)):
            write_atomically(path, lambda temporary: torch.save(agent.state_dict(), temporary))
    print(
        f"{out} is made. To evaluate it, and to train on from it:\n"
        f"  amago-ray evaluate {out}\n"
        f"  amago-ray --config {out / 'config.txt'} --init-from {experiment_weights(out, None)}"
    )


def import_data(arguments: Sequence[str]) -> None:
    """Convert a dataset to the format of replay."""
    from amago_ray.commands.import_data import import_data

    with in_one_line():
        import_data(arguments, load_experiment)


def replay(arguments: Sequence[str]) -> None:
    """Look at what a run has stored; exit status 1 where it is damaged."""
    from amago_ray.commands.replay import inspect_replay

    with in_one_line():
        healthy = inspect_replay(arguments, load_experiment)
    if not healthy:
        raise SystemExit(1)


def tune(arguments: Sequence[str]) -> None:
    """Run a hyperparameter sweep; exit status 1 where a trial failed."""
    from amago_ray.commands.tune import tune

    with in_one_line():
        healthy = tune(arguments, load_experiment)
    if not healthy:
        raise SystemExit(1)


def _environment(name: str | None) -> list[str]:
    """Bindings that put a gymnasium id, or what gin knows by a name, in place of the environments of a run."""
    if name is None:
        return []
    value = repr(name) if "/" in name or "-v" in name else f"@{name}"
    return [f"Experiment.make_train_env = {value}", f"Experiment.make_val_env = {value}"]


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "plot": plot,
    "evaluate": evaluate,
    "import-amago": import_amago,
    "import-data": import_data,
    "replay": replay,
    "tune": tune,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Mistakes of the user end in one line on standard error and exit status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = COMMANDS.get(arguments[0]) if arguments else None
    try:
        if command is not None:
            command(arguments[1:])
        else:
            train(arguments)
    except Mistake as mistake:
        print(f"amago-ray: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\namago-ray: stopped; --resume goes on from the newest training state", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
