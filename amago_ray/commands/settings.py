"""`amago-ray settings`: every setting of an experiment, with its default and its meaning."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def run(arguments: Sequence[str]) -> int:
    """Print the settings of `Experiment`."""
    parser = argparse.ArgumentParser(
        prog="amago-ray settings",
        description="every setting of Experiment, with its default and its meaning, as Markdown (docs/settings.md)",
    )
    parser.parse_args(arguments)
    from amago_ray.settings import table

    print(table(), end="")
    return 0
