"""The command line: `python -m amago_ray.train`, the command `amago-ray`, and the script that a cluster is submitted.

Without a command's name it trains; every command is a file of `commands/`.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

from amago_ray import __version__
from amago_ray.commands.command_line import DEBUG, Mistake, is_unread, is_unwritten
from amago_ray.config import nearest

# The word of the command line -> its module of `commands`, with a function run(arguments) -> exit status.
COMMANDS = {
    "board": "board",
    "configs": "configs",
    "evaluate": "evaluate",
    "export": "export",
    "import-amago": "import_amago",
    "import-data": "import_data",
    "inspect": "inspect",
    "plot": "plot",
    "replay": "replay",
    "settings": "settings",
    "status": "status",
    "tune": "tune",
}

UNREAD = 128 + signal.SIGPIPE  # the exit status of what nobody reads any more


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status, 2 for a mistake of the user, which ends in one line on stderr.

    `--debug` shows the stack above that line. When the reader of its output goes away, as `head` does, it ends with
    141, as what a shell runs does; in silence, but for a training, which says how to go on. An output that is closed,
    or takes nothing more, is a mistake too.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:  # and the next file that is opened would be taken for it
        print("amago-ray: standard output is closed; send it to /dev/null where nobody reads it", file=sys.stderr)
        return 2
    with suppress(FileNotFoundError):  # of a folder that was removed meanwhile
        if (folder := os.getcwd()) not in sys.path:  # where a user's modules lie; last, for they are to hide no others
            sys.path.append(folder)
    name, arguments = "train", arguments or ["--help"]
    if not arguments[0].startswith("-"):
        if arguments[0] not in COMMANDS:
            print(f"amago-ray: there is no command {arguments[0]!r}{nearest(arguments[0], COMMANDS)}", file=sys.stderr)
            return 2
        name = COMMANDS[arguments.pop(0)]
    try:
        status = _run(name, arguments)
        sys.stdout.flush()  # what cannot be written is known here, and not at the interpreter's end
        return status
    except Mistake as mistake:
        if DEBUG in arguments and mistake.__cause__ is not None:
            traceback.print_exception(mistake.__cause__)
        print(f"amago-ray: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        advice = f"; {interrupt}" if str(interrupt) else ""
        print(f"\namago-ray: stopped{advice}", file=sys.stderr)
        if isinstance(interrupt.__cause__, BrokenPipeError):
            return _let_go_of_output(UNREAD)
        return 130
    except OSError as error:
        if is_unread(error):
            return _let_go_of_output(UNREAD)
        if not is_unwritten(error):
            raise
        print(f"amago-ray: standard output cannot be written: {error.strerror}", file=sys.stderr)
        return _let_go_of_output(2)


def _run(name: str, arguments: Sequence[str]) -> int:
    if arguments == ["--version"]:
        print(f"amago-ray {__version__}")
        return 0
    try:
        return importlib.import_module(f"amago_ray.commands.{name}").run(arguments)
    except SystemExit:  # of --help
        sys.stdout.flush()
        raise


def _let_go_of_output(status: int) -> int:
    """Let go of what cannot be written, or the interpreter stumbles over it once more as it ends; returns `status`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


if __name__ == "__main__":
    sys.exit(main())
