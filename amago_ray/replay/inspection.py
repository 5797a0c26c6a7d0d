"""What is stored in a replay folder: found, counted and verified, without changing it and while its run goes on."""

from __future__ import annotations

import ast
import errno
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amago_ray.atomic_files import read_text
from amago_ray.messages import Trajectory
from amago_ray.replay.datasets.stored_source import UNBOUNDED
from amago_ray.replay.sampling.selection import PriorityFile
from amago_ray.replay.storage import records
from amago_ray.replay.storage.config import StoreConfig, share_of
from amago_ray.replay.storage.folders import shard_folders, shard_number
from amago_ray.replay.storage.records import DATA, Corrupt, Entry
from amago_ray.replay.storage.segments import (
    FileSegment,
    StorageError,
    check_columns,
    ends_early,
    read_header,
    segment_numbers,
    segment_path,
    whole_entries,
)
from amago_ray.replay.storage.store import TrajectoryStore

OPEN_ATTEMPTS = 20  # a run that evicts may delete a segment between our listing it and opening it


class NothingStored(ValueError):
    """No data are stored where they were looked for."""


@dataclass(frozen=True)
class StoredData:
    """Where data are stored.

    shards: a folder of segments each. config: of the run that stored them, None where there is none.
    capacity_bytes: of one shard, beyond which the run has evicted what may still be on the disk; capacity_trajectories:
    likewise, of all `num_shards` shards of the run.
    """

    shards: tuple[Path, ...]
    config: Path | None
    capacity_bytes: int = UNBOUNDED
    capacity_trajectories: int = UNBOUNDED
    num_shards: int = 1

    def open(self) -> list[StoredShard]:
        """Open every shard to look at it. Raises StorageError."""
        shares = [share_of(self.capacity_trajectories, shard_number(s), self.num_shards) for s in self.shards]
        return [StoredShard(folder, self.capacity_bytes, n) for folder, n in zip(self.shards, shares, strict=True)]


def find_stored_data(path: Path) -> StoredData:
    """The shards of a run's folder, of a replay folder, of imported data, or a single shard's folder.

    Raises NothingStored where there is nothing of the kind, ValueError for a config.txt that cannot be read.
    """
    if not path.is_dir():
        raise NothingStored(f"{path}: there is no such folder")
    path = path.resolve()
    config = next((c for c in _config_places(path) if c.is_file()), None)
    settings = {} if config is None else run_settings(config)
    places = [path, path / "replay"]
    if settings.get("replay_dir") is not None:
        places.append(Path(settings["replay_dir"]).expanduser() / settings["run_name"])
    shards = next((found for place in places if (found := _shards_in(place))), ())
    if not shards:
        raise NothingStored(
            f"{path} holds no stored data: name the folder of a run, its replay folder, or what import-data wrote "
            "(a run with Experiment.replay_durable = False keeps nothing)"
        )
    try:
        num = settings["num_replay_shards"]
        return StoredData(
            shards,
            config,
            capacity_bytes=int(settings["replay_capacity_gb"] * 1e9 / num),
            capacity_trajectories=int(settings["replay_capacity_trajectories"] or UNBOUNDED),
            num_shards=int(num),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):  # of a file that is damaged, or of no run
        return StoredData(shards, config)


def run_settings(config: Path) -> dict[str, Any]:
    """Those of a run's `Experiment` settings that are plain values, from its config.txt; the run need not be loadable.

    The file ends with the settings as the run was started, so later lines win.
    """
    settings = {}
    for name, value in re.findall(r"^Experiment\.(\w+) = (.+)$", read_text(config), re.MULTILINE):
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # a reference, such as @Agent
            continue
    return settings


def _config_places(path: Path) -> list[Path]:
    """Where the config.txt of the run lies, seen from its folder, its replay folder or the folder of a shard."""
    replay = path.parent if path.name.startswith("shard_") else path
    return [folder / "config.txt" for folder in ([replay.parent] if replay.name == "replay" else [path])]


def _shards_in(folder: Path) -> tuple[Path, ...]:
    return (folder,) if next(folder.glob("*.segment"), None) is not None else shard_folders(folder)


class StoredShard(TrajectoryStore):
    """One shard's folder, opened to be looked at. Raises StorageError where that is not possible.

    capacity_bytes, capacity_trajectories: what is beyond them, though still on the disk, counts as evicted.
    """

    def __init__(self, folder: Path, capacity_bytes: int = UNBOUNDED, capacity_trajectories: int = UNBOUNDED):
        self.folder = folder
        config = StoreConfig(folder, capacity_bytes, capacity_trajectories)
        for attempt in range(OPEN_ATTEMPTS):
            try:
                super().__init__(config, read_only=True)
                break
            except StorageError as error:
                self.close()
                if error.errno != errno.ENOENT or attempt + 1 == OPEN_ATTEMPTS:
                    raise

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of the segments that hold something visible or newer."""
        return sum(segment.size for segment in self._segments.values())

    @property
    def uncompressed_bytes(self) -> int:
        """Bytes of the visible trajectories' columns, were none of them compressed."""
        row_bytes = {n: sum(c.row_bytes for c in schema.columns) for n, schema in self._schemas.items()}
        return int((self.table.rows["num_rows"] * self._by_record(lambda r: row_bytes[r.segment], np.int64)).sum())

    @property
    def written_at(self) -> np.ndarray:
        """(n,) float64: when each visible trajectory was stored, in seconds since 1970."""
        return self._by_record(lambda record: record.time_s, np.float64)

    def _by_record(self, fact: Callable[[records.Record], Any], dtype: Any) -> np.ndarray:
        """(n,): a fact of the record that each visible trajectory lies in."""
        keys, place = np.unique(self.table.rows["record"], return_inverse=True)
        return np.array([fact(self._records[key]) for key in keys.tolist()], dtype=dtype)[place]

    def show_staged(self) -> None:
        """Make visible, here only, what the run has stored and not committed yet."""
        self._show_staged(self.commits)

    def trajectories(self) -> Iterator[Trajectory]:
        """Every visible trajectory that is whole, oldest first. `damage` tells of those that are not."""
        for number in range(self.table.first, self.table.end):
            if not self.damaged(np.array([number])):
                yield self.trajectory(number)


def read_priorities(folder: Path) -> np.ndarray:
    """(n,) float32: priorities of a shard's trajectories, none where it keeps none. Raises Corrupt.

    The file is only looked at: `PriorityFile` would tidy up behind a writer that is still at work.
    """
    path = folder / "priorities"
    if not path.is_file():
        return np.zeros(0, dtype=np.float32)
    stored, size = path.read_bytes(), PriorityFile.HEAD.itemsize
    head = np.frombuffer(stored[:size].ljust(size, b"\0"), dtype=PriorityFile.HEAD)[0]
    if len(stored) % 4 or zlib.crc32(stored[: size - 8]) != head["crc"]:
        raise Corrupt(f"{path}, byte 0: it is not as it was written")
    return np.frombuffer(stored[size:], dtype="<f4")


@dataclass(frozen=True)
class Contents:
    """The visible trajectories of one or several shards, one entry of each array per trajectory.

    env: index into env_names. lengths: in timesteps. returns: sums of rewards. age_s: since it was stored.
    age_epochs: since it became visible. first_time_idx: above 0 for later pieces of a rollout that was cut.
    priorities: as many as are kept, in no particular order.
    """

    env_names: tuple[str, ...]
    env: np.ndarray
    lengths: np.ndarray
    returns: np.ndarray
    age_s: np.ndarray
    age_epochs: np.ndarray
    weight_version: np.ndarray
    first_time_idx: np.ndarray
    priorities: np.ndarray

    @staticmethod
    def of(shards: Sequence[StoredShard]) -> Contents:
        """What shards hold now. Raises Corrupt for priorities that cannot be read."""
        now = time.time()
        rows = np.concatenate([shard.table.rows for shard in shards])
        names = [np.array([s.env_name(i) for i in s.table.rows["env"].tolist()], dtype=object) for s in shards]
        env_names, env = np.unique(np.concatenate(names).astype(str), return_inverse=True)
        return Contents(
            env_names=tuple(env_names.tolist()),
            env=env,
            lengths=rows["num_rows"] - 1,
            returns=rows["total_reward"],
            age_s=now - np.concatenate([shard.written_at for shard in shards]),
            age_epochs=np.concatenate([shard.commits - shard.table.rows["commit"] for shard in shards]),
            weight_version=rows["weight_version"],
            first_time_idx=rows["first_time_idx"],
            priorities=np.concatenate([read_priorities(shard.folder) for shard in shards]),
        )

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Damage:
    """Something stored that is not what was written. offset: in bytes. lost: what cannot be read any more."""

    file: Path
    offset: int
    what: str
    lost: str

    def __str__(self) -> str:
        return f"{self.file}, byte {self.offset:,}: {self.what}; lost: {self.lost}"


@dataclass
class Verification:
    """What a walk over all checksums has found.

    unfinished: bytes at the end of a newest segment that its writer has not finished, and has told nobody were stored.
    """

    segments: int = 0
    records: int = 0
    trajectories: int = 0
    num_bytes: int = 0
    unfinished: int = 0
    damage: tuple[Damage, ...] = ()


def verify(shards: Sequence[Path], advance: Callable[[int], None] = lambda num_bytes: None) -> Verification:
    """Compare everything that is stored with its checksums. advance: told of bytes as they are done.

    Raises StorageError where a file cannot be opened.
    """
    found = Verification()
    for folder in shards:
        numbers = segment_numbers(folder)
        for number in numbers:
            try:
                segment = FileSegment(segment_path(folder, number), write=False)
            except StorageError as error:
                if error.errno == errno.ENOENT:  # evicted meanwhile by the run
                    continue
                raise
            with closing(segment):
                _verify_segment(segment, number, number == numbers[-1], found, advance)
        damage = [*_missing_segments(folder, numbers), *_bad_priorities(folder)]
        found.damage += tuple(damage)
    return found


def _verify_segment(
    segment: FileSegment, number: int, newest: bool, found: Verification, advance: Callable[[int], None]
) -> None:
    found.segments += 1
    found.num_bytes += segment.size

    def add(offset: int, error: Exception, lost: str) -> None:
        what = str(error).removeprefix(f"{segment.name}, byte {offset}: ").removeprefix(f"{segment.name}: ")
        found.damage += (Damage(segment.path, offset, what, lost),)

    def broken(error: Corrupt, offset: int, following: int | None) -> None:
        stop = segment.size if following is None else following
        advance(stop - offset)
        if newest and following is None and ends_early(segment, offset):
            found.unfinished += stop - offset
        else:
            add(offset, error, f"{stop - offset:,} bytes of records")

    try:
        _, _, first = read_header(segment)
    except Corrupt as error:
        advance(segment.size)
        add(0, error, f"all {segment.size:,} bytes of the segment")
        return
    advance(first)
    for entry in whole_entries(segment, number, first, broken):
        found.records += 1
        try:
            check_columns(segment, entry.record)
            found.trajectories += len(entry.facts)
        except (Corrupt, StorageError) as error:
            add(entry.record.offset, error, _held(entry))
        advance(entry.record.end - entry.record.offset)


def _held(entry: Entry) -> str:
    if entry.kind != DATA:
        return "nothing"
    names = ", ".join(entry.extras["envs"])
    timesteps = entry.record.num_rows - len(entry.facts)
    return f"{len(entry.facts):,} trajectories, {timesteps:,} timesteps of {names}"


def _missing_segments(folder: Path, numbers: Sequence[int]) -> Iterator[Damage]:
    """Segments are deleted oldest first, so that one which is missing between others was not evicted."""
    for number in sorted(set(range(numbers[0], numbers[-1])) - set(numbers)) if numbers else ():
        aside = segment_path(folder, number).with_suffix(".damaged")
        if aside.is_file():
            yield Damage(aside, 0, "a shard set it aside because its header is broken", "the segment")
        else:
            yield Damage(segment_path(folder, number), 0, "the file is missing", "the segment")


def _bad_priorities(folder: Path) -> Iterator[Damage]:
    try:
        read_priorities(folder)
    except Corrupt:
        yield Damage(folder / "priorities", 0, "it is not as it was written", "priorities, which start anew")
