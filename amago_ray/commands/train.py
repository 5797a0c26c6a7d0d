"""`amago-ray --config FILE`: train, and compare the result with a random policy."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from amago_ray.commands.command_line import (
    Mistake,
    Parser,
    bindings_of,
    in_one_line,
    load_experiment,
    settings_options,
    short_name_options,
    when_interrupted,
    while_it_trains,
)
from amago_ray.watch.metrics import AVERAGE_RETURN, summarize_episodes

if TYPE_CHECKING:
    from amago_ray.driver.resume import Resume
    from amago_ray.experiment import Experiment

ATTEMPT = re.compile(r"Average Attempt (\d+) Success in (.+)")

HELP = """\
train an agent from one or more gin configurations: files, or names of those that come along

examples:
  amago-ray --config meta_frozen_lake
  amago-ray --config tmaze --set 'TMaze.corridor_length = 20' --set 'Experiment.run_name = "tmaze20"'
  amago-ray --config tmaze --traj-encoder mamba --agent multitask --trials 3
  amago-ray --config mine.gin --resume                  go on after a crash or Ctrl-C
  amago-ray --config mine.gin --resume auto             begin or go on, whichever it takes: for a job queue
  amago-ray configs                                     which configurations come along
  amago-ray tune --config tmaze --param 'Agent.gamma=loguniform(0.9, 0.999)' --num-samples 8    a sweep
  amago-ray status runs/tmaze                           how a run is doing, from any terminal
  amago-ray board runs                                  runs as they train, in a web browser
  amago-ray plot runs/tmaze runs/tmaze20                learning curves as a PNG
  amago-ray evaluate runs/tmaze --gif tmaze.gif         returns of the newest policy, and a look at it
  amago-ray evaluate runs/tmaze --epoch all             a table and a picture of every policy that was kept
  amago-ray export runs/tmaze --format onnx             a file that acts where amago_ray is not installed
  amago-ray import-amago policy_epoch_9.pt --config a.gin --out runs/a    a run of weights that AMAGO 3.x saved
other commands: board, configs, evaluate, export, import-amago, import-data, inspect, plot, replay, settings,
status, tune; each has a --help
every setting, with default and meaning: amago-ray settings
an error of a setting, an environment or a file is one line and exit status 2; --debug shows where it comes from
"""


def run(arguments: Sequence[str]) -> int:
    """Train, once or with several seeds, then say how the result compares with a random policy."""
    options = _parser().parse_args(arguments)
    if options.init_from and options.resume:
        raise Mistake("--init-from begins a run and --resume goes on with one: leave out either")
    if options.overwrite and options.resume:
        raise Mistake("--overwrite begins a run anew and --resume goes on with it: leave out either")
    if options.trials < 1:
        raise Mistake(f"--trials {options.trials}: it must be 1 or more")
    with in_one_line():
        trials = trials_of(load_experiment(options.config, bindings_of(options)), options.trials)
        if options.init_from:
            check_initial_weights(trials[0], options.init_from, options.overwrite)
        if not (options.resume or options.overwrite):
            _check_all_are_new(trials)
    for trial in trials:
        with when_interrupted(partial(advice, trial)):
            # Of several trials, those that were never begun have nothing to resume.
            train(trial, options, resume=options.resume if len(trials) == 1 else options.resume and "auto")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="amago-ray",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[settings_options(), short_name_options()],
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        choices=[True, "auto"],
        metavar="auto",
        help="go on from the run's newest complete training state; with 'auto', begin where there is none: one command "
        "for a job queue that starts it again and again",
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew where a run of this name exists")
    parser.add_argument(
        "--init-from", type=Path, metavar="FILE", help="start from the weights in a policy.pt or policy_epoch_n.pt"
    )
    parser.add_argument("--no-final-test", action="store_true", help="skip the comparison at the end")
    parser.add_argument(
        "--trials",
        type=int,
        default=1,
        metavar="N",
        help="repeat the run with seeds seed .. seed + N - 1, as NAME_trial_0 .. NAME_trial_{N-1}",
    )
    return parser


def trials_of(experiment: Experiment, count: int) -> list[Experiment]:
    """The experiment itself, or `count` of it with seeds and run names of their own."""
    if count == 1:
        return [experiment]
    name, seed = experiment.run_name, experiment.seed
    return [replace(experiment, run_name=f"{name}_trial_{i}", seed=seed + i) for i in range(count)]


def train(experiment: Experiment, options: argparse.Namespace, resume: Resume) -> None:
    """One run, from its start to the comparison at its end."""
    with experiment:
        with in_one_line():
            experiment.start(resume=resume, overwrite=options.overwrite)
            if options.init_from:
                experiment.load_policy(options.init_from)
        with while_it_trains():
            experiment.learn()
        print(f"\nThe run is in {experiment.directory.root}")
        if experiment.test_episodes and not options.no_final_test:
            _compare_with_random(experiment)


def _compare_with_random(experiment: Experiment) -> None:
    """The comparison at the end. Where it cannot be made, a line says why: the run itself is finished."""
    from amago_ray.rollout.evaluate import final_test
    from amago_ray.settings import env_processes

    x = experiment
    try:
        trained, random = final_test(
            x.evaluate_test,
            x.make_val_env,
            x.test_episodes,
            x.test_max_timesteps,
            x.seed,
            x.parallel_actors,
            x.call_timeout_s,
            x.action_mask_key,
            env_processes(x),
        )
    except ValueError as error:
        print(f"no final test: {error} (Experiment.test_max_timesteps={x.test_max_timesteps})")
        return
    print(compare(trained, summarize_episodes(random)))


def advice(experiment: Experiment) -> str:
    """What somebody who has pressed Ctrl-C can do next."""
    if _is_saved(experiment):
        saved, done = experiment.directory.saved_epochs()[-1] + 1, experiment.progress.epoch + 1
        again = f", and makes those up to {done} again" if done > saved else ""
        return f"--resume goes on from the newest training state, after epoch {saved}{again}"
    if experiment.directory.exists():
        return f"no training state of {experiment.run_name} was saved yet: --overwrite starts it anew"
    return "nothing was trained yet"


def _is_saved(experiment: Experiment) -> bool:
    return bool(experiment.directory.saved_epochs())


def _check_all_are_new(trials: Sequence[Experiment]) -> None:
    """Raises ValueError before the first of several trials begins where a later one could not."""
    begun = [trial.run_name for trial in trials if trial.directory.exists()]
    if len(trials) > 1 and begun:
        raise ValueError(
            f"{', '.join(begun)} in {trials[0].directory.root.parent} already hold runs: resume them (--resume), "
            "overwrite them (--overwrite), or choose another run_name"
        )


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
