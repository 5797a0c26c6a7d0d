"""What can be wrong with settings, environments, data, files and machines: how each is provoked, and what must be said.

`docs/errors.md` is made of this, by `python tests/error_cases.py > docs/errors.md`: a row for each case, with the line
that the command prints.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from error_case import Case
from error_scene import Outcome, Scene, forget_finished_run
from errors_of_files import DATA, RUNS
from errors_of_machines import MACHINES
from errors_of_settings import CONTRADICTIONS, ENVIRONMENTS, LISTS, SETTINGS

GROUPS: dict[str, tuple[Case, ...]] = {
    "Settings": SETTINGS,
    "Lists": LISTS,
    "Settings that contradict one another": CONTRADICTIONS,
    "Environments": ENVIRONMENTS,
    "Data": DATA,
    "Weights, runs and commands": RUNS,
    "Machines": MACHINES,
}

INTRODUCTION = """\
# Errors

Whatever is wrong with a setting, an environment, a file or a machine is said in one line, within seconds, with exit
status 2, and before any process is started where that is possible. `--debug`, after any command, shows the stack above
the line. Exit status 1 with a traceback is a bug, of this package or of your own callback or environment.

This page is made by the tests that provoke each of these (`tests/error_cases.py`). `/data` stands for a folder.
"""
CHANGING = (
    (r"127\.0\.0\.1:\d+", "127.0.0.1:6379"),
    (r"--port \d+", "--port 6010"),
    (r"n{100,}", "nnn...nnn"),
    (r"/\S*/\.minari", "~/.minari"),
    (r"; known: (\w+, )+\w+", ""),  # those of a user's modules are named, too, and here those of other tests
)


def shown(outcome: Outcome, folder: Path) -> str:
    """The line of an outcome as the page shows it: on every machine the same."""
    line = outcome.line.replace(str(folder), "/data")
    for pattern, replacement in CHANGING:
        line = re.sub(pattern, replacement, line)
    return line


def row(case: Case, line: str) -> str:
    return f"| {case.what} | `` {line.replace('|', chr(92) + '|')} `` |"


def page(lines: dict[str, str]) -> str:
    """docs/errors.md. lines: what is printed, by what is wrong."""

    def parts() -> Iterator[str]:
        yield INTRODUCTION
        for group, cases in GROUPS.items():
            yield f"## {group}\n\n| what is wrong | what is printed |\n|---|---|"
            yield "\n".join(row(case, lines[case.what]) for case in cases) + "\n"

    return "\n".join(parts())


def provoke_all() -> dict[str, str]:
    """What is printed, by what is wrong."""
    lines = {}
    for case in (case for cases in GROUPS.values() for case in cases):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            lines[case.what] = shown(case.provoke(Scene(Path(folder), patch)), Path(folder))
    forget_finished_run()
    return lines


if __name__ == "__main__":
    sys.stdout.write(page(provoke_all()))
