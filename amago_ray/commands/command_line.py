"""What the commands share: options, mistakes in one line, and the experiment that gin files describe."""

from __future__ import annotations

import argparse
import ctypes
import errno
import io
import os
import select
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from amago_ray import cli_utils, config
from amago_ray.atomic_files import without_empty_parents
from amago_ray.config.mistakes import MISSING_VALUE
from amago_ray.config.value_checks import check_temperature
from amago_ray.envs.makers import EnvFailure
from amago_ray.messages import CannotGoOn
from amago_ray.run_directory import RunDirectory

if TYPE_CHECKING:
    from amago_ray.experiment import Experiment

DEBUG = "--debug"
MOST_SEED = 2**31 - 1
NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
# For commands that need an experiment's environments and agent: its data may not be at hand, nor made yet.
WITHOUT_DATA = (
    "Experiment.dataset = None",
    "Experiment.schedule = 'alternate'",
    "Experiment.train_batches_per_epoch = 0",
)
# Settings without which a policy plays as it did, and those without which data are what they were: where a run's
# config.txt has no text for them, such commands go on.
OF_TRAINING = ("exploration_wrapper_type", "relabeler_type", "dataset", "callbacks")
NOT_OF_DATA = (*OF_TRAINING, "tstep_encoder_type", "traj_encoder_type", "agent_type", "make_val_env")
# Option -> (the setting that it chooses, what its names stand for).
SHORT_NAMES = {
    "--agent": ("agent_type", cli_utils.AGENTS),
    "--tstep-encoder": ("tstep_encoder_type", cli_utils.TSTEP_ENCODERS),
    "--traj-encoder": ("traj_encoder_type", cli_utils.TRAJ_ENCODERS),
    "--exploration": ("exploration_wrapper_type", cli_utils.EXPLORATIONS),
}


class Mistake(Exception):
    """Something that the user can put right, in one line."""


class Parser(argparse.ArgumentParser):
    """Of the words of a command. What it cannot read is a `Mistake`, in one line as any other."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.add_argument(DEBUG, action="store_true", help="show where in the code an error comes from, too")

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse passes over what goes wrong here

    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message}; {self.prog} --help shows what there is")


@contextmanager
def in_one_line() -> Iterator[None]:
    """While a run is set up, errors are about settings, environments and files: show the message, not the traceback."""
    try:
        yield
    except (ValueError, TypeError, EnvFailure, OSError, ImportError, MemoryError) as error:
        if is_unread(error) or is_unwritten(error):
            raise
        raise Mistake(config.explain(error)) from error
    except RuntimeError as error:
        if MISSING_VALUE.search(str(error)) is None:
            raise
        raise Mistake(config.explain(error)) from error


@contextmanager
def while_it_trains() -> Iterator[None]:
    """While a run goes on, errors are bugs, which a traceback belongs to, but for those of data, memory and disks."""
    try:
        yield
    except (CannotGoOn, OSError) as error:
        if is_unread(error) or is_unwritten(error):
            raise
        raise Mistake(config.explain(error)) from error


@contextmanager
def when_interrupted(advice: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C within, or an output that nobody reads any more, says how to go on, which is known only when it comes."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(advice()) from interrupt
    except BrokenPipeError as error:
        if not is_unread(error):
            raise
        raise KeyboardInterrupt(f"nobody reads its output; {advice()}") from error


@contextmanager
def own_output() -> Iterator[TextIO]:
    """Standard output, for what the command itself writes there: whatever else is printed goes to standard error.

    That is what environments print, simulators in C and processes that they start among it. It is to be entered before
    a user's modules are imported.
    """
    before = sys.stdout
    before.flush()
    try:
        descriptor = before.fileno()
    except io.UnsupportedOperation:  # another stream stands in for it, as a test's
        with redirect_stdout(sys.stderr):
            yield before
        return
    _flush_c()
    out = open(os.dup(descriptor), "w", encoding=before.encoding, errors=before.errors)
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else 2, descriptor)
        yield out
        out.flush()
    finally:
        sys.stdout = before  # an environment may have put another in its place
        with suppress(OSError):
            before.flush()
        _flush_c()
        os.dup2(out.fileno(), descriptor)
        with suppress(OSError):  # what could not be written, and was told of
            out.close()


def _flush_c() -> None:
    """Write what C has printed and still holds, which it would write later, to whatever standard output is then."""
    with suppress(OSError, AttributeError):  # where there is no such library
        ctypes.CDLL(None).fflush(None)


def is_unread(error: BaseException) -> bool:
    """Whether `error` is of a standard output whose reader has gone, as that of `amago-ray configs | head` does."""
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        descriptor = sys.stdout.fileno()
    except io.UnsupportedOperation:  # another stream stands in for it, as a test's
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def is_unwritten(error: BaseException) -> bool:
    """Whether `error` is of a standard output that takes nothing more, as that of `amago-ray configs > /dev/full`."""
    if not isinstance(error, OSError) or error.errno not in NOT_WRITTEN or error.filename is not None:
        return False
    try:
        os.write(sys.stdout.fileno(), b"\n")  # a file of another kind may be what is full: no other way tells
    except io.UnsupportedOperation:  # another stream stands in for it, as a test's
        return False
    except OSError as again:
        return again.errno == error.errno
    return False


def settings_options(required: bool = True) -> argparse.ArgumentParser:
    """Parent of the commands that gin files describe an experiment to. required: whether --config is."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--config",
        action="append",
        default=[],
        required=required,
        metavar="FILE",
        help="gin file, or the name of one that comes along (`amago-ray configs`); may be repeated, later ones win. It "
        "can import modules and call what they hold: it is code, so use those that you trust",
    )
    _add_set(parent)
    return parent


def override_options() -> argparse.ArgumentParser:
    """Parent of the commands that read a run's own configuration."""
    parent = argparse.ArgumentParser(add_help=False)
    _add_set(parent)
    return parent


def short_name_options() -> argparse.ArgumentParser:
    """Parent of the commands that choose an agent, encoders and exploration by short names."""
    parent = argparse.ArgumentParser(add_help=False)
    for option, (setting, names) in SHORT_NAMES.items():
        parent.add_argument(option, choices=tuple(names), help=f"of Experiment.{setting}, over the files")
    return parent


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="'NAME = VALUE'", help="one gin binding, on top of the files"
    )


def check_writable(out: Path, option: str = "--out") -> None:
    """Raises ValueError, before there is anything to write, for a file that cannot be written. Leaves nothing."""
    try:
        with without_empty_parents(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            if out.exists():
                open(out, "ab").close()
            else:
                tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror or error}): {option} says where") from error


def check_seed(seed: int) -> None:
    """Raises Mistake for a seed that environments and generators of random numbers do not take."""
    if not 0 <= seed <= MOST_SEED:
        raise Mistake(f"--seed {seed}: it must be from 0 to {MOST_SEED}")


def check_drawing(temperature: float | None, greedy: bool) -> None:
    """Raises Mistake for a temperature that actions cannot be drawn at, or beside --greedy."""
    if temperature is None:
        return
    if greedy:
        raise Mistake("--greedy draws no actions, and --temperature is of those that are drawn: leave out either")
    try:
        check_temperature(temperature, f"--temperature {temperature}")
    except ValueError as error:
        raise Mistake(str(error)) from error


def check_kept(run: Path, epoch: int | None) -> None:
    """Raises Mistake for an epoch whose policy `run` has not kept, naming those that it has. None is the newest."""
    kept = RunDirectory(run.resolve().parent, run.resolve().name).policy_epochs()
    if epoch is not None and epoch not in kept:
        raise Mistake(f"--epoch {epoch}: {run} has kept the policies of {', '.join(map(str, kept)) or 'none'}")


def bindings_of(options: argparse.Namespace) -> list[str]:
    """What short names and --set bind, in the order in which later ones win."""
    chosen = [
        f"Experiment.{setting} = @{names[value]}"
        for option, (setting, names) in SHORT_NAMES.items()
        if (value := getattr(options, option.removeprefix("--").replace("-", "_"), None)) is not None
    ]
    return [*chosen, *options.set]


def environment_bindings(name: str | None) -> list[str]:
    """Bindings that put a gymnasium id, or what gin knows by a name, in place of the environments of a run."""
    if name is None:
        return []
    value = repr(name) if "/" in name or "-v" in name else f"@{name}"
    return [f"Experiment.make_train_env = {value}", f"Experiment.make_val_env = {value}"]


def load_experiment(
    configs: Sequence[str | Path],
    bindings: Sequence[str],
    does_without: Sequence[str] = (),
    env_option: bool = False,
) -> Experiment:
    """The experiment that gin files and bindings describe.

    does_without: settings that may be left out of a run's config.txt because Python gave them. env_option: whether the
    command has --env. Raises ValueError where a required setting is left out.
    """
    config.load(configs, bindings)
    config.do_without(does_without)
    from amago_ray import Experiment

    config.refuse(config.left_out(), env_option)

    required = ("run_name", "make_train_env", "max_seq_len")
    missing = [name for name in required if not config.is_bound("Experiment", name)]
    if missing:
        given = "; one that was given in Python gets a name by gymnasium.register or @gin.configurable"
        raise ValueError(
            f"the configuration lacks {', '.join(f'Experiment.{name}' for name in missing)}"
            f"{given if missing == ['make_train_env'] else ''}"
        )
    return Experiment()  # gin fills in the required ones


def latest_weights(run: Path, epoch: int | None = None) -> Path:
    """The file of a run's newest policy weights, or of those of one epoch."""
    directory = RunDirectory(run.parent, run.name)
    kept = directory.policy_epochs()
    if epoch is None and not directory.latest_policy.is_file() and kept:
        epoch = kept[-1]  # of a run with always_save_latest=False that has not ended
    return directory.latest_policy if epoch is None else directory.policy_epoch(epoch)


def duration(seconds: float) -> str:
    """A time in a few characters, in the largest unit of which there are two or more."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
