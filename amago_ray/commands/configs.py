"""`amago-ray configs`: the configurations that come along, for `--config NAME`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence

from amago_ray.commands.command_line import Parser, in_one_line
from amago_ray.config import shipped

HELP = """\
list the configurations that come along, or print some of them

examples:
  amago-ray configs                        their names, and what each begins with
  amago-ray configs tmaze > mine.gin       one to change
"""


def run(arguments: Sequence[str]) -> int:
    """Print names and introductions, or whole files."""
    parser = Parser(prog="amago-ray configs", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a configuration to print")
    options = parser.parse_args(arguments)
    with in_one_line():
        files = [shipped.get(name) for name in options.names]
    for file in files:
        print(file.read_text(encoding="utf-8"), end="")
    if not files:
        names = shipped.names()
        width = max(map(len, names))
        for name in names:
            sentence = shipped.introduction(shipped.get(name)).split(". ")[0].rstrip(".:")
            print(f"{name:{width}}  {textwrap.shorten(sentence, 118 - width, placeholder=' ...')}")
    return 0
