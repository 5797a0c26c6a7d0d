"""`amago-ray settings`: every setting of an experiment, with its default and its meaning."""

from __future__ import annotations

from collections.abc import Sequence

from amago_ray.commands.command_line import Parser


def run(arguments: Sequence[str]) -> int:
    """Print the settings of `Experiment`."""
    parser = Parser(
        prog="amago-ray settings",
        description="every setting of Experiment, with its default and its meaning, as Markdown (docs/settings.md)",
    )
    parser.parse_args(arguments)
    from amago_ray.settings import table

    print(table(), end="")
    return 0
