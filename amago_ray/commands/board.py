"""`amago-ray board`: runs as they train, in a web browser."""

from __future__ import annotations

import argparse
import asyncio
import errno
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from amago_ray.commands.command_line import Mistake, Parser, in_one_line

DESCRIPTION = """\
look at runs in a web browser, while they train and after: curves, what bounds them, processes, replay, settings,
videos, and the policy at work, step by step

It reads the folders of runs and nothing else, also those of other machines. It is only reachable from this machine
unless --host says otherwise; there is no password. Of a remote machine, forward the port: ssh -L 6010:localhost:6010 it

examples:
  amago-ray board runs                       all runs below a folder
  amago-ray board runs/tmaze runs/tmaze20    these
"""
PORT = 6010


def run(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C."""
    parser = Parser(
        prog="amago-ray board", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN_OR_FOLDER", help="a run's folder, or one with runs below it"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"where to serve ({PORT}); 0 for any that is free")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind to (127.0.0.1); 0.0.0.0 lets everybody in who can reach it"
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        raise Mistake(f"--port {options.port}: it must be from 0 to 65535")
    for module in ("aiohttp", "plotly"):
        if importlib.util.find_spec(module) is None:
            raise Mistake(f"the board needs {module}: pip install 'amago_ray[board]'")
    from amago_ray.watch.board.library import Library
    from amago_ray.watch.board.server import Board, serve

    with in_one_line():
        library = Library(options.folders)
    board = Board(library, [sys.executable, "-m", "amago_ray.train", "inspect"], options.host)
    try:
        asyncio.run(serve(board, options.host, options.port, _say))
    except OSError as error:
        raise Mistake(f"--host {options.host} --port {options.port}: {_reason(error)}") from error
    return 0


def _say(address: str) -> None:
    print(f"the board is at {address} (Ctrl-C ends it)", flush=True)


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "something else is served there; choose another --port, or 0 for any that is free"
    return error.strerror or str(error)
