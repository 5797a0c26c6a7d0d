"""`amago-ray evaluate`: returns of a run's saved policies, and a picture of one at work, without Ray and its data."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from amago_ray.commands.command_line import (
    OF_TRAINING,
    WITHOUT_DATA,
    Mistake,
    Parser,
    check_drawing,
    check_kept,
    check_seed,
    check_writable,
    environment_bindings,
    in_one_line,
    latest_weights,
    load_experiment,
    override_options,
    own_output,
)
from amago_ray.messages import EpisodeResult, Trajectory
from amago_ray.run_directory import RunDirectory
from amago_ray.watch.checkpoints import plot_checkpoints, table
from amago_ray.watch.metrics import summarize_episodes
from amago_ray.watch.run_status import config_of

if TYPE_CHECKING:
    from amago_ray.agent.spec import AgentSpec
    from amago_ray.experiment import Experiment


def run(arguments: Sequence[str]) -> int:
    """Evaluate one or several saved policies of a run, without Ray."""
    options = _parsed(arguments)
    with in_one_line():
        config = config_of(options.run)
    _check(options)
    epochs = _epochs(options.run, options.epoch)
    several = options.epoch is not None and (len(epochs) > 1 or "all" in options.epoch)
    if several and options.gif:
        raise Mistake("--gif draws one policy: name one --epoch")
    if options.out and not several:
        raise Mistake("--out is of the picture of several policies: name several for --epoch, or all")
    with own_output() as out:
        _run(options, config, epochs, several, out)
    return 0


def _run(
    options: argparse.Namespace, config: Path, epochs: Sequence[int | None], several: bool, output: TextIO
) -> None:
    """output: for what is to be read; environments may print, too."""
    from amago_ray.driver.probe import probe

    with in_one_line():
        bindings = [*WITHOUT_DATA, *options.set, *environment_bindings(options.env)]
        experiment = load_experiment([config], bindings, OF_TRAINING, env_option=True)
        spec = probe(experiment)
        if options.gif:
            _check_gif(experiment)
            check_writable(options.gif, "--gif")
        out = options.out or options.run / "evaluation.png"
        if several:
            check_writable(out)
    if several:
        evaluated: dict[int, list[EpisodeResult]] = {}
        for epoch in epochs:
            assert epoch is not None
            evaluated[epoch] = _evaluate(experiment, spec, options, epoch, f"epoch_{epoch}")
        print(table(evaluated), file=output)
        with in_one_line():
            picture = plot_checkpoints(evaluated, experiment.run_name, out)
        print(picture, file=output)
        return
    for name, value in summarize_episodes(_evaluate(experiment, spec, options, epochs[0])).items():
        print(f"{name:60} {value:10.3f}", file=output)
    if options.gif:
        print(_draw(experiment, spec, options, epochs[0]), file=output)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. RUN may come last: --epoch, which takes several words, has taken it then."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is None and options.epoch and not (options.epoch[-1].isdecimal() or options.epoch[-1] == "all"):
        options.run = Path(options.epoch.pop())
    if options.run is None or options.epoch == []:
        parser.error("the following arguments are required: RUN, and an N for --epoch")
    return options


def _parser() -> Parser:
    parser = Parser(
        prog="amago-ray evaluate",
        description="returns of a run's saved policies, and a picture of one at work",
        parents=[override_options()],
    )
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a run's folder, such as runs/tmaze")
    parser.add_argument("--env", help="gymnasium id or gin name; by default the run's validation environments")
    parser.add_argument("--episodes", type=int, default=100, help="how many rollouts of each policy (default 100)")
    parser.add_argument(
        "--epoch",
        nargs="+",
        metavar="N",
        help="weights of that epoch, counted from 0 as file names are; by default the latest. Of several, or of 'all' "
        "that were kept, a table and a picture",
    )
    parser.add_argument(
        "--best", action="store_true", help="weights with the best validation, which the callback KeepBestPolicy keeps"
    )
    parser.add_argument(
        "--out", type=Path, metavar="PNG", help="of that picture; by default evaluation.png in the run's folder"
    )
    parser.add_argument("--seed", type=int, default=0, help="of environments and drawn actions (default 0)")
    parser.add_argument("--greedy", action="store_true", help="take the policy's mode instead of drawing from it")
    parser.add_argument(
        "--temperature", type=float, help="of drawn actions: sharper below 1; by default the run's Agent.temperature"
    )
    parser.add_argument("--gif", type=Path, help="also render one rollout into this file")
    parser.add_argument(
        "--save-trajectories",
        type=Path,
        metavar="DIR",
        help="also keep the rollouts in this new folder, one of AMAGO's npz files each",
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    check_seed(options.seed)
    if options.episodes < 1:
        raise Mistake(f"--episodes {options.episodes}: it must be 1 or more")
    if options.best and options.epoch is not None:
        raise Mistake("--best is one policy and --epoch names others: leave out either")
    if options.best and not _directory(options.run).best_policy.is_file():
        raise Mistake(
            f"--best: {options.run} has kept no best policy: Experiment.callbacks = [@KeepBestPolicy()] keeps one from "
            "the first validation on"
        )
    check_drawing(options.temperature, options.greedy)
    folder = options.save_trajectories
    if folder is not None and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise Mistake(f"--save-trajectories {folder}: there is something already; name a folder to be made")


def _epochs(run: Path, words: Sequence[str] | None) -> list[int | None]:
    """The epochs that --epoch names, in order, each once; [None] is the latest policy."""
    if words is None:
        return [None]
    kept = _directory(run).policy_epochs()
    if "all" in words:
        if len(words) > 1:
            raise Mistake("--epoch all: name no other epochs beside it")
        if not kept:
            raise Mistake(f"--epoch all: {run} has kept no policies yet (Experiment.ckpt_interval)")
        return list(kept)
    for word in words:
        if not word.isdecimal():
            raise Mistake(f"--epoch {word}: write numbers of epochs, or all")
        check_kept(run, int(word))
    return list(dict.fromkeys(sorted(map(int, words))))


def _evaluate(
    experiment: Experiment, spec: AgentSpec, options: argparse.Namespace, epoch: int | None, subfolder: str = "."
) -> list[EpisodeResult]:
    """Rollouts of one policy; those of every epoch are played with the same seeds. subfolder: of saved rollouts."""
    from amago_ray.driver.plan import TEST_SEEDS
    from amago_ray.rollout.evaluate import evaluate_policy, load_policy_weights
    from amago_ray.settings import env_processes

    with in_one_line():
        return evaluate_policy(
            spec,
            load_policy_weights(spec, _weights(options, epoch)),
            experiment.make_val_env,
            options.episodes,
            options.seed + TEST_SEEDS,
            not options.greedy,
            rollout_limit_s=experiment.call_timeout_s,
            temperature=options.temperature,
            write=_writer(experiment, options.save_trajectories, subfolder),
            env_processes=env_processes(experiment),
        )


def _weights(options: argparse.Namespace, epoch: int | None) -> Path:
    """The file that is evaluated."""
    return _directory(options.run).best_policy if options.best else latest_weights(options.run, epoch)


def _directory(run: Path) -> RunDirectory:
    return RunDirectory(run.resolve().parent, run.resolve().name)


def _writer(experiment: Experiment, folder: Path | None, subfolder: str) -> Callable[[Trajectory], None] | None:
    if folder is None:
        return None
    from amago_ray.envs.makers import env_spaces
    from amago_ray.replay.export import npz_writer
    from amago_ray.settings import env_processes

    try:
        return npz_writer(env_spaces(experiment.make_val_env, env_processes(experiment)), folder / subfolder)
    except ValueError as error:
        raise ValueError(f"--save-trajectories: {error}") from error


def _draw(experiment: Experiment, spec: AgentSpec, options: argparse.Namespace, epoch: int | None) -> Path:
    from amago_ray.driver.plan import TEST_SEEDS
    from amago_ray.rollout.evaluate import load_policy_weights, record_gif

    with in_one_line():
        weights = load_policy_weights(spec, _weights(options, epoch))
        how = (options.seed + TEST_SEEDS, not options.greedy, options.temperature)
        return record_gif(spec, weights, experiment.make_val_env, options.gif, *how)


def _check_gif(experiment: Experiment) -> None:
    """Raises ValueError, before anything is played, where the environment cannot be drawn."""
    from amago_ray.rollout.evaluate import check_renderable

    try:
        check_renderable(experiment.make_val_env)
    except ValueError as error:
        raise ValueError(f"--gif: {error}") from error
