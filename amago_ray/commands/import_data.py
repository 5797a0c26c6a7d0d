"""`amago-ray import-data`: datasets of other formats as replay segments, checked against a configuration."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import gin
from rich.filesize import decimal
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from amago_ray import config
from amago_ray.commands.command_line import (
    NOT_OF_DATA,
    WITHOUT_DATA,
    Parser,
    in_one_line,
    load_experiment,
    settings_options,
)
from amago_ray.envs.makers import check_env, env_spaces
from amago_ray.messages import Trajectory, TrajectoryId
from amago_ray.replay.datasets.dataset import NOT_FROM_A_WORKER, RowLayout, TrajectoryDataset
from amago_ray.replay.datasets.recorded_spaces import layout_of, record_spaces
from amago_ray.replay.datasets.stored_source import UNBOUNDED
from amago_ray.replay.readers import AmagoDataset, MinariDataset, StoredDataset
from amago_ray.replay.storage.config import StoreConfig
from amago_ray.replay.storage.folders import shard_folder, shard_folders
from amago_ray.replay.storage.segments import Hints
from amago_ray.replay.storage.store import TrajectoryStore
from amago_ray.replay.storage.trajectory_pack import pack
from amago_ray.settings import env_processes

MESSAGE_BYTES = 8 << 20
ANOTHER = "name a folder that can be written to"
HINTS = Hints("free some space, or name a folder on another disk", ANOTHER, ANOTHER)
UNFINISHED = ".unfinished"  # suffix of the folder that an import is written to until it is complete

DESCRIPTION = """\
convert a dataset to the format of replay, which is sampled from without reading whole trajectories

SOURCE is one of
  a folder of .npz files that AMAGO 3.x wrote        runs/old/buffer
  a Minari dataset, by id or by its folder           D4RL/pen/human-v2
  the replay/ folder of a run                        runs/tmaze/replay
  an RLDataset of yours, by its name in gin          @MyDataset   (its module is imported by --config)

--config names the runs that will learn from the data; a Minari dataset and the replay/ folder of a run do without

examples:
  amago-ray import-data D4RL/pen/human-v2 --out data/pen
  amago-ray import-data runs/old/buffer --config configs/tmaze.gin --out data/tmaze
"""


@dataclass(frozen=True)
class Imported:
    """What an import has written."""

    trajectories: int
    timesteps: int
    num_bytes: int
    mean_return: float


def run(arguments: Sequence[str]) -> int:
    """Convert a dataset to the format of replay; exit status 1 where something of it is damaged."""
    parser = Parser(
        prog="amago-ray import-data",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[settings_options(required=False)],
    )
    parser.add_argument("source", metavar="SOURCE", help="see above")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to be made")
    options = parser.parse_args(arguments)
    with in_one_line():
        healthy = import_data(options.source, options.out, options.config, options.set)
    return 0 if healthy else 1


def import_data(source: str, out: Path, configs: Sequence[str], bindings: Sequence[str]) -> bool:
    """Write what SOURCE stands for into the folder `out`, which must not exist yet; False where some is damaged.

    configs, bindings: of the runs that will learn from the data; a Minari dataset and what replay stored do without.
    Raises ValueError for a source that cannot be read or does not fit the configuration.
    """
    if out.exists():
        raise ValueError(f"--out {out}: this exists already; name a folder to be made")
    compressed: tuple[str, ...] = ()
    layout: RowLayout | None = None
    if configs:
        experiment = load_experiment(configs, [*bindings, *WITHOUT_DATA], NOT_OF_DATA)
        processes = env_processes(experiment)
        check_env(experiment.make_train_env, processes=processes)
        layout = RowLayout(*env_spaces(experiment.make_train_env, processes))
        compressed = tuple(experiment.replay_compression)
    else:
        config.load([], bindings)
    dataset = dataset_of(source)
    if layout is None:
        layout = _own_layout(dataset)
        if layout is None:
            raise ValueError(f"{source} does not say of which environments it is: add --config FILE")
    written = write_dataset(dataset, layout, out, compressed)
    for text in dataset.damage:
        print(f"damaged: {text}")
    print(
        f"{written.trajectories:,} trajectories, {written.timesteps:,} timesteps, mean return "
        f"{written.mean_return:.4g}, {decimal(written.num_bytes)}. To learn from them:\n"
        f'  Experiment.dataset = @StoredDataset()\n  StoredDataset.path = "{out}"'
    )
    return not dataset.damage


def _own_layout(dataset: TrajectoryDataset) -> RowLayout | None:
    """How the data themselves say that they are stored; None where they do not."""
    if dataset.spaces is not None:
        return RowLayout(*dataset.spaces)
    recorded = dataset.recorded if isinstance(dataset, StoredDataset) else None
    return None if recorded is None else layout_of(recorded)


def dataset_of(source: str) -> TrajectoryDataset:
    """The dataset that SOURCE of the command stands for. Raises ValueError where there is none."""
    if source.startswith("@"):
        name = source.removeprefix("@").removesuffix("()")
        try:
            make = gin.get_configurable(name)
        except ValueError as error:
            raise ValueError(
                f"SOURCE {source}: nothing is configurable by this name"
                f"{config.nearest(name, config.configurable_names())}"
            ) from error
        dataset = make()
        if not isinstance(dataset, TrajectoryDataset):
            raise ValueError(f"SOURCE {source}: this is no RLDataset")
        return dataset
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return MinariDataset(source)
    if shard_folders(folder):
        return StoredDataset(folder)
    if (folder / "metadata.json").exists() or (folder / "data" / "metadata.json").exists():
        return MinariDataset(source)
    return AmagoDataset(folder)


def write_dataset(
    dataset: TrajectoryDataset, layout: RowLayout, out: Path, compressed: tuple[str, ...] = (), show: bool = True
) -> Imported:
    """Write every readable trajectory of a dataset to the folder `out`, which appears once it is complete.

    The commits of the run that stored them stay, and with them their ages.
    layout: that every trajectory must fit. compressed: observation arrays to be compressed. show: progress.
    Raises ValueError, naming the trajectory, for one that does not fit, and where there is none at all.
    """
    dataset.check_spaces(layout)
    unfinished = out.with_name(out.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    store = TrajectoryStore(StoreConfig(shard_folder(unfinished, 0), UNBOUNDED, compressed=compressed, hints=HINTS))
    total_reward = 0.0
    try:
        for commit, trajectories in groupby(_numbered(dataset, layout, show), key=itemgetter(0)):
            for message in _messages(trajectory for _, trajectory in trajectories):
                store.push(pack(message))
                total_reward += sum(t.total_reward for t in message)
            store.commit(commit)
        if not len(store):
            raise ValueError(f"{type(dataset).__name__} holds no trajectories{_because_of(dataset.damage)}")
        record_spaces(unfinished, layout)
        written = Imported(len(store), store.num_transitions, store.num_bytes, total_reward / len(store))
    except BaseException:
        store.close()
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    store.close()
    unfinished.rename(out)
    return written


def _numbered(dataset: TrajectoryDataset, layout: RowLayout, show: bool) -> Iterator[tuple[int, Trajectory]]:
    """All readable trajectories of a dataset, each behind its commit, under running numbers.

    Numbered in order, whoever made them: a store would take a number that it has skipped for a repeat.
    """
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not show) as progress:
        readable = progress.track(dataset.readable(), total=len(dataset), description="importing")
        for number, index in enumerate(readable):
            found = dataset.trajectory(index, layout)
            yield dataset.commit_of(index), replace(found, id=TrajectoryId(NOT_FROM_A_WORKER, 0, number))


def _messages(trajectories: Iterable[Trajectory]) -> Iterator[list[Trajectory]]:
    """The same in lists of MESSAGE_BYTES or a little more; the last one is what is left."""
    gathered, gathered_bytes = list[Trajectory](), 0
    for trajectory in trajectories:
        gathered.append(trajectory)
        gathered_bytes += trajectory.num_bytes
        if gathered_bytes >= MESSAGE_BYTES:
            yield gathered
            gathered, gathered_bytes = [], 0
    if gathered:
        yield gathered


def _because_of(damage: Sequence[str]) -> str:
    return f" that can be read: {damage[0]}" if damage else ""
