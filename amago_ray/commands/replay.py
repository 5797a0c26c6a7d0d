"""`amago-ray replay`: look at what a run has stored, verify it, export it."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from amago_ray.atomic_files import check_room, without_empty_parents
from amago_ray.commands.command_line import (
    NOT_OF_DATA,
    WITHOUT_DATA,
    Parser,
    duration,
    in_one_line,
    load_experiment,
)
from amago_ray.envs.makers import env_spaces
from amago_ray.messages import Trajectory
from amago_ray.replay.datasets.dataset import RowLayout
from amago_ray.replay.export import export_minari, export_npz
from amago_ray.replay.inspection import Contents, StoredData, StoredShard, find_stored_data, verify
from amago_ray.replay.storage.records import Corrupt
from amago_ray.settings import env_processes
from amago_ray.watch.replay_histograms import plot_contents

UNFINISHED = ".unfinished"  # suffix of the folder that an export is written in until it is complete
TABLE_WIDTH = 120  # where the output is no terminal

DESCRIPTION = """\
look at the trajectories that a run has stored, also while it runs: counts, returns and lengths by environment, and a
picture of them

RUN is the folder of a run, a replay folder, or what import-data wrote.

examples:
  amago-ray replay runs/tmaze                                      tables, and runs/tmaze/replay.png
  amago-ray replay runs/tmaze --verify                             is everything as it was written?
  amago-ray replay runs/tmaze --export data/tmaze --format minari
"""


def run(arguments: Sequence[str]) -> int:
    """Look at what a run has stored; exit status 1 where something of it is damaged."""
    parser = Parser(
        prog="amago-ray replay", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="see above")
    parser.add_argument("--out", type=Path, metavar="PNG", help="the picture; by default replay.png in RUN")
    parser.add_argument("--verify", action="store_true", help="compare all that is stored with its checksums instead")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write every trajectory into a new folder instead")
    parser.add_argument(
        "--format", choices=("npz", "minari"), default="npz", help="of --export: AMAGO 3.x's files (default), or Minari"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="of --export: gin file that says which environments; RUN's own"
    )
    options = parser.parse_args(arguments)
    with in_one_line():
        stored = find_stored_data(options.run)
        if options.verify:
            healthy = _verify(stored)
        elif options.export is not None:
            healthy = _export(stored, options.export, options.format, options.config or stored.config)
        else:
            healthy = _summarize(stored, options.run, options.out or options.run / "replay.png")
    return 0 if healthy else 1


# ---------------------------------------------------------------- tables


def _summarize(stored: StoredData, run: Path, out: Path) -> bool:
    shards = stored.open()
    damage = [text for shard in shards for text in shard.damage]
    try:
        contents = Contents.of(shards)
    except Corrupt as error:
        raise ValueError(f"{error}; amago-ray replay {run} --verify tells what is damaged") from error
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    console.print(shard_table(shards))
    unwritten: OSError | None = None
    if len(contents):
        console.print(environment_table(contents))
        low, high = contents.weight_version.min(), contents.weight_version.max()
        console.print(f"Weights of version {low:,} to {high:,} began these trajectories.")
        pieces = int((contents.first_time_idx > 0).sum())
        if pieces:
            console.print(f"{pieces:,} of them are later pieces of rollouts that were cut; each counts by itself.")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            plot_contents(contents, run.resolve().name, out)
            console.print(Text(f"{out}"), soft_wrap=True)
        except OSError as error:
            unwritten = error
    elif not damage:
        console.print("Nothing is visible yet: trajectories become so when an epoch ends.")
    for text in damage:
        console.print(Text(f"damaged: {text}"), style="red", soft_wrap=True)
    for shard in shards:
        shard.close()
    if unwritten is not None:
        why = unwritten.strerror or unwritten
        raise ValueError(f"the picture {out} cannot be written ({why}): --out says where") from unwritten
    return not damage


def shard_table(shards: Sequence[StoredShard]) -> Table:
    """What each shard holds, and all together."""
    headers = ("shard", "trajectories", "timesteps", "on disk", "segments", "compression")
    table = _table(*headers, "newest", "oldest", "commits", "evicted", "staged")
    for shard in shards:
        table.add_row(shard.folder.name.removeprefix("shard_"), *_shard_row([shard]))
    if len(shards) > 1:
        table.add_section()
        table.add_row("all", *_shard_row(shards))
    return table


def _shard_row(shards: Sequence[StoredShard]) -> tuple[str, ...]:
    age_s = time.time() - np.concatenate([shard.written_at for shard in shards])
    stored = sum(shard.num_bytes for shard in shards)
    return (
        f"{sum(map(len, shards)):,}",
        f"{sum(shard.num_transitions for shard in shards):,}",
        decimal(sum(shard.bytes_on_disk for shard in shards)),
        f"{sum(shard.num_segments for shard in shards):,}",
        f"{sum(shard.uncompressed_bytes for shard in shards) / stored:.2f}x" if stored else "-",
        duration(age_s.min()) if len(age_s) else "-",
        duration(age_s.max()) if len(age_s) else "-",
        f"{max(shard.commits for shard in shards):,}",
        f"{sum(shard.table.first for shard in shards):,}",
        f"{sum(shard.num_staged for shard in shards):,}",
    )


def environment_table(contents: Contents) -> Table:
    """Mean, least and largest return and length by environment name."""
    table = _table("environment", "trajectories", "timesteps", "return", "min", "max", "length", "min", "max")
    for i, name in enumerate(contents.env_names):
        mine = contents.env == i
        returns, lengths = contents.returns[mine], contents.lengths[mine]
        table.add_row(
            Text(name),  # its brackets mean nothing
            f"{len(lengths):,}",
            f"{lengths.sum():,}",
            *(f"{x:,.3f}" for x in (returns.mean(), returns.min(), returns.max())),
            f"{lengths.mean():,.1f}",
            f"{lengths.min():,}",
            f"{lengths.max():,}",
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


# ---------------------------------------------------------------- verifying


def _verify(stored: StoredData) -> bool:
    total = sum(path.stat().st_size for folder in stored.shards for path in folder.glob("*.segment"))
    started = time.monotonic()
    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("verifying", total=total)
        found = verify(stored.shards, lambda num_bytes: progress.advance(task, num_bytes))
    took_s = max(time.monotonic() - started, 1e-9)
    for damage in found.damage:
        print(f"damaged: {damage}")
    if found.unfinished:
        print(f"{found.unfinished:,} bytes at the end belong to a record that was never finished: nothing is lost")
    print(
        f"{found.records:,} records with {found.trajectories:,} whole trajectories in {found.segments:,} segments, "
        f"{decimal(found.num_bytes)} in {took_s:.2f} s ({decimal(int(found.num_bytes / took_s))}/s): "
        + (f"{len(found.damage)} damaged" if found.damage else "all as they were written")
    )
    return not found.damage


# ---------------------------------------------------------------- exporting


def _export(stored: StoredData, out: Path, format: str, config: Path | None) -> bool:
    if out.exists():
        raise ValueError(f"--export {out}: this exists already; name a folder to be made")
    if config is None:
        raise ValueError("--export needs the environments' spaces, and there is no config.txt: add --config FILE")
    experiment = load_experiment([config], WITHOUT_DATA, NOT_OF_DATA)  # its dataset may be what is being exported
    layout = RowLayout(*env_spaces(experiment.make_train_env, env_processes(experiment)))
    shards = stored.open()
    for shard in shards:
        shard.show_staged()
    write = export_minari if format == "minari" else export_npz
    unfinished = out.with_name(out.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    with without_empty_parents(out):
        try:
            unfinished.mkdir(parents=True)
            check_room(unfinished, sum(shard.uncompressed_bytes for shard in shards))
            num = write(_with_progress(shards), layout, unfinished / out.name)
            (unfinished / out.name).rename(out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    pieces = sum(int((shard.table.rows["first_time_idx"] > 0).sum()) for shard in shards)
    damage = [text for shard in shards for text in shard.damage]
    for text in damage:
        print(f"damaged: {text}")
    for shard in shards:
        shard.close()
    source = f"{out} --config {config}" if format == "npz" else f"{out}"
    if pieces and format == "minari":
        print(f"{pieces:,} episodes are later pieces of rollouts that were cut: see first_time_idx of their metadata")
    print(f"{num:,} trajectories are in {out}. To read them again: amago-ray import-data {source} --out DIR")
    return not damage


def _with_progress(shards: Sequence[StoredShard]) -> Iterator[Trajectory]:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        every = chain.from_iterable(shard.trajectories() for shard in shards)
        yield from progress.track(every, total=sum(map(len, shards)), description="exporting")
