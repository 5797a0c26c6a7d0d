"""`amago-ray status`: how runs are doing, from any terminal, while they train and after."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from amago_ray.commands.command_line import Parser, duration, in_one_line
from amago_ray.replay.inspection import Contents
from amago_ray.watch.board.library import Library
from amago_ray.watch.metrics import METRICS_FILE
from amago_ray.watch.run_status import Return, RunStatus, run_status

TABLE_WIDTH = 120  # where the output is no terminal
SHOWN_STATES = 6  # newest training states that are named
MOST_COLUMNS = 4  # runs of which everything is told
CHIEF_FACTS = ("state", "epoch", "frames", "updates", "return, validation", "best validation")
STYLES = {"running": "green", "starting": "cyan", "finished": "blue", "stopped": "blue"}  # all others: red
DESCRIPTION = """\
how runs are doing, from their files alone: from any terminal that sees the folder, while they train and after

A run is silent when its process was killed, or when nothing was logged for a minute and three times its longest
epoch: it hangs, or its end was not seen from here. Epochs count from 1 here; --epoch of other commands from 0.
Exit status 1 where one is silent or has failed, else 2 where a folder has no run, such as a misspelt one.

examples:
  amago-ray status runs/tmaze
  watch amago-ray status runs        all that are below a folder, such as a sweep's, again and again
"""


def run(arguments: Sequence[str]) -> int:
    """Print facts of each run, and a line for what is none.

    Returns 1 where a run is silent, which may be over soon, or has failed; else 2 where there is no run, which stays
    until it is seen.
    """
    parser = Parser(
        prog="amago-ray status", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of runs, such as a sweep"
    )
    options = parser.parse_args(arguments)
    with in_one_line():
        found: list[RunStatus] = []
        others: list[ValueError | OSError] = []  # of folders that are no run's, or damaged
        unread: list[str] = []  # what is left out of those that are
        for name, folder in _runs_of(options.runs):
            try:
                status = replace(run_status(folder), name=name)
            except (ValueError, OSError) as error:
                others.append(error)
                continue
            found.append(status)
            if status.broken:
                unread.append(f"{folder / METRICS_FILE}: {status.broken} of its lines cannot be read and are left out")
        if not found:
            raise others[0]
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    console.print(status_table(found))
    for other in (*unread, *others):
        print(f"amago-ray: {other}", file=sys.stderr)
    if any(status.state in ("silent", "failed") for status in found):
        return 1
    return 2 if others else 0


def _runs_of(folders: Sequence[Path]) -> list[tuple[str, Path]]:
    """Names and folders of the runs in `folders`, each once; a folder itself, where it has none."""
    library = Library([folder for folder in folders if folder.is_dir()])
    library.scan()
    names = {run.root: name for name, run in library.runs.items()}
    found: dict[Path, str] = {}
    for folder in folders:
        root = folder.resolve()
        runs = [each for each in names if root in (each, *each.parents)]
        found |= {each: names[each] for each in runs} or {folder: folder.name}
    return [(name, folder) for folder, name in found.items()]


def status_table(runs: Sequence[RunStatus]) -> Table:
    """A column for each run and a row for each fact; of many runs, a row for each with the chief facts."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    facts = [(Text(each.name), _facts(each)) for each in runs]  # the brackets of a name mean nothing
    if len(runs) > MOST_COLUMNS:
        for fact in CHIEF_FACTS:
            table.add_column(fact, overflow="fold")
        for name, of_run in facts:
            table.add_row(name, *(of_run[fact] for fact in CHIEF_FACTS))
        return table
    for name, _ in facts:
        table.add_column(name, overflow="fold")
    for fact in facts[0][1]:
        table.add_row(fact, *(of_run[fact] for _, of_run in facts))
    return table


def _facts(status: RunStatus) -> dict[str, Text]:
    states = [str(epoch) for epoch in status.saved[-SHOWN_STATES:]]
    more = len(status.saved) - len(states)
    facts = {
        "newest row": f"{'' if status.epoch else 'none; started '}{duration(status.age_s)} ago",
        "epoch": f"{status.epoch:,} of {status.epochs:,}",
        "frames": f"{status.frames:,}{_per_second(status.frames_per_s)}",
        "updates": f"{status.updates:,}{_per_second(status.updates_per_s)}",
        "trained for": duration(status.wall_s),
        "return, collecting": _return(status.collect_return),
        "return, validation": _return(status.val_return),
        "best validation": _return(status.best_return),
        "saved states": f"after epoch {', '.join(states)}{f' and {more} before' if more else ''}" if states else "none",
        "replay": _replay(status.replay, status.replay_error),
    }
    state = Text(_state(status), style=STYLES.get(status.state, "red"))
    return {"state": state} | {name: Text(fact) for name, fact in facts.items()}


def _state(status: RunStatus) -> str:
    if status.killed:
        return "not running: its process was killed"
    if status.state == "silent":
        return f"silent for {duration(status.age_s)}"
    return status.state if status.reason is None else f"{status.state}: {status.reason}"


def _per_second(rate: float | None) -> str:
    return "" if rate is None else f"  ({rate:,.0f}/s)" if rate >= 10 else f"  ({rate:.2g}/s)"


def _return(result: Return | None) -> str:
    return "none yet" if result is None else f"{result.value:,.3f}  (epoch {result.epoch:,})"


def _replay(contents: Contents | None, error: str | None) -> str:
    if contents is None:
        return "nothing is stored in files" if error is None else error
    if not len(contents):
        return "nothing is visible yet" if error is None else error
    known = "" if error is None else f"; it {error}"
    return (
        f"{len(contents):,} trajectories, {contents.lengths.sum():,} timesteps; mean return "
        f"{contents.returns.mean():,.3f}; newest {duration(contents.age_s.min())} old{known}"
    )
