"""Trajectories on disk or in memory, oldest first, bounded in bytes and in number."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from amago_ray.messages import Trajectory, TrajectoryId
from amago_ray.replay.storage import records
from amago_ray.replay.storage.config import Mark, StoreConfig
from amago_ray.replay.storage.folders import lock_folder
from amago_ray.replay.storage.records import COMMIT, EVICTION, FACTS, Corrupt, Entry, Record, Schema
from amago_ray.replay.storage.seen_ids import SeenIds
from amago_ray.replay.storage.segments import (
    FileSegment,
    Segment,
    StorageError,
    check_columns,
    ends_early,
    new_segment,
    read_header,
    read_rows,
    segment_numbers,
    segment_path,
    whole_entries,
)
from amago_ray.replay.storage.table import INDEX, Table
from amago_ray.replay.storage.trajectory_pack import PackedTrajectories
from amago_ray.specs import OBS_PREFIX

HELD_SHARE = 4  # a quarter of the capacity may be held beyond it
KEPT_SHARE = 2  # half as much is kept where the disk is full: others may have filled it


class TrajectoryStore:
    """A first-in-first-out store of trajectories, as a log of records in segments.

        push    -> written to the newest segment when it returns, and known by identity; where the disk is full, the
                   oldest make room, down to half of the capacity
        commit  -> what was pushed becomes visible, ordered by identity; the oldest beyond capacity are evicted
        read    -> slices of visible trajectories

    Opening a folder reads the log again: what was pushed and what was committed is as it was. A record that is not
    whole at the end of the newest segment, which its writer was never told was stored, is cut off.

    damage: what was found broken, in words. renumbered: records were lost, so that numbers of trajectories are not
    what they were when the folder was last open.
    read_only: only look: nothing can be pushed, and the folder may be in use by another process.
    Raises StorageError where the folder cannot be used.
    """

    def __init__(self, config: StoreConfig, read_only: bool = False):
        self.config = config
        self.read_only = read_only
        self.table = Table()
        self.evicted = 0
        self.commits = 0
        self.damage: list[str] = []
        self.renumbered = False
        self._seen = SeenIds(config.stride)
        self._staged: list[tuple[int, np.ndarray]] = []  # record key, facts
        self._records: dict[int, Record] = {}
        self._broken: set[int] = set()  # records
        self._next_record = 0
        self._env_names: list[str] = []
        self._segments: dict[int, Segment] = {}
        self._live: dict[int, int] = {}  # segment -> trajectories that are not evicted
        self._records_of: dict[int, list[int]] = {}
        self._schemas: dict[int, Schema] = {}
        self._current: int | None = None
        self._next_segment = 0
        self._held: int | None = None
        self._unsynced: set[Segment] = set()
        self._sync_error: StorageError | None = None
        self._lock: BinaryIO | None = None
        self._closed = threading.Event()
        if config.folder is None:
            return
        if not read_only:
            self._lock = lock_folder(config.folder, config.hints)
            for path in config.folder.glob("*.new"):
                path.unlink()
        self._load(config.folder)
        if not read_only:
            threading.Thread(target=self._sync_now_and_then, name="fsync", daemon=True).start()

    # ---------------------------------------------------------------- writing

    def push(self, packed: PackedTrajectories) -> int:
        """Store those trajectories that are new; returns how many.

        Raises ValueError for a trajectory that is too large for the whole store, and then none is stored. Raises
        StorageError, and then a part of a message that spans segments may be: pushing it again stores the rest.
        """
        self._check_fits(packed)
        new = self._seen.new(packed.ids)
        if not new.all():
            packed = packed.select(np.flatnonzero(new))
        for part in packed.pieces(self.config.bytes_per_segment):
            self._or_make_room(partial(self._append, part))
        return len(packed)

    def _append(self, packed: PackedTrajectories) -> None:
        schema = Schema.of(packed.columns, tuple(OBS_PREFIX + name for name in self.config.compressed))
        buffers, record, facts = records.encode(packed, schema, time.time())
        size = sum(len(buffer) for buffer in buffers)
        number = self._segment_for(schema, size)
        segment = self._segments[number]
        record.segment, record.offset, record.columns_at = number, segment.size, segment.size + record.columns_at
        self._write(segment, buffers)
        self._stage(Entry(record, records.DATA, facts, {"envs": sorted(set(packed.env_names))}))

    def _write(self, segment: Segment, buffers: list[Any]) -> None:
        if self._sync_error is not None:
            raise self._sync_error
        segment.append(buffers)
        if self.config.folder is not None:
            self._unsynced.add(segment)

    def _or_make_room(self, write: Callable[[], None]) -> None:
        """Write, and once more where the disk was full and some of it could be freed. Raises StorageError."""
        try:
            write()
        except StorageError as error:
            if not error.is_full or not self._make_room():
                raise
            write()

    def _make_room(self) -> bool:
        """Free what is held of evicted trajectories, else the oldest segment; returns whether any of it was freed.

        Otherwise a disk that is full before the capacity is would stay so: what is new could not be stored, and
        nothing that is not stored evicts.
        """
        if self._current is None or self._sync_error is not None:
            return False
        before, self._held = len(self._segments), None
        self._delete_dead_segments()
        oldest, rows = min(self._segments), self.table.rows
        if len(self._segments) < before:
            return True
        in_oldest = np.flatnonzero(np.isin(rows["record"], self._records_of[oldest]))
        if len(in_oldest) < self._live[oldest] or oldest == self._current:
            return False  # there are some that nobody has seen yet
        num = int(in_oldest[-1]) + 1
        left = sum(segment.size for number, segment in self._segments.items() if number != oldest)
        if num == len(rows) or left * KEPT_SHARE < self.config.capacity_bytes:
            return False
        self._evict_oldest(num)
        self._note_eviction()  # there was no room for it before
        told = f"{self.config.folder}: the disk is full below the capacity of {self.config.capacity_bytes:,} bytes"
        if not any(text.startswith(told) for text in self.damage):
            self.damage.append(f"{told}; the oldest trajectories make room for new ones; {self.config.hints.full}")
        return True

    def _segment_for(self, schema: Schema, size: int) -> int:
        """The segment that takes the next `size` bytes of such columns; a new one where the newest is full."""
        current = self._current
        if current is not None and self._schemas[current] == schema:
            if self._segments[current].size + size <= self.config.bytes_per_segment:
                return current
        number = self._next_segment
        known = {"seen": self._seen.to_json(), "total": self.table.end, "commits": self.commits}
        capacity = max(self.config.bytes_per_segment, size + 65536)
        segment = new_segment(self.config.folder, number, capacity, schema, known, self.config.hints)
        self._add_segment(number, segment, schema)
        self._delete_dead_segments()
        return number

    def _add_segment(self, number: int, segment: Segment, schema: Schema) -> None:
        self._segments[number], self._schemas[number] = segment, schema
        self._live[number], self._records_of[number] = 0, []
        self._current, self._next_segment = number, number + 1

    def _stage(self, entry: Entry) -> None:
        key, self._next_record = self._next_record, self._next_record + 1
        self._records[key] = entry.record
        self._records_of[entry.record.segment].append(key)
        self._live[entry.record.segment] += len(entry.facts)
        facts = entry.facts.copy()
        for name in entry.extras["envs"]:
            if name not in self._env_names:
                self._env_names.append(name)
        numbers = np.array([self._env_names.index(name) for name in entry.extras["envs"]], dtype=np.int32)
        facts["env"] = numbers[facts["env"]]
        self._seen.add(np.stack([facts["worker"], facts["incarnation"], facts["sequence"]], axis=1))
        self._staged.append((key, facts))

    def commit(self, number: int | None = None) -> None:
        """Make all that was pushed visible, ordered by identity, and evict beyond capacity.

        number: of this commit, by which ages are told; the next one by default. Raises StorageError.
        """
        number = self.commits + 1 if number is None else number
        if self._current is not None and (self._staged or number != self.commits):
            total = self.table.end + sum(len(facts) for _, facts in self._staged)
            commit = [records.encode_commit(number, total, time.time())]
            self._or_make_room(partial(self._write, self._segments[self._current], commit))
            self._show_staged(number)
        self._evict()

    def show_staged(self) -> None:
        """Look at what is stored and not committed as the next commit would show it; of a store that is read only."""
        assert self.read_only, "commit() writes it down, too"
        self._show_staged(self.commits + 1)

    def _show_staged(self, number: int) -> None:
        self.commits = number
        if not self._staged:
            return
        rows = np.concatenate([self._index_rows(key, facts, number) for key, facts in self._staged])
        self.table.append(rows[np.lexsort((rows["sequence"], rows["incarnation"], rows["worker"]))])
        self._staged.clear()

    def _index_rows(self, key: int, facts: np.ndarray, commit: int) -> np.ndarray:
        record = self._records[key]
        rows = np.empty(len(facts), dtype=INDEX)
        for name in FACTS.names or ():
            rows[name] = facts[name]
        ends = np.cumsum(facts["num_rows"])
        rows["record"], rows["commit"] = key, commit
        rows["first_row"] = ends - facts["num_rows"]
        # A trajectory's share of its record, such that the shares add up to the record.
        rows["num_bytes"] = np.diff(record.columns_bytes * ends // max(record.num_rows, 1), prepend=0)
        return rows

    def _evict(self) -> None:
        rows = self.table.rows
        excess = int(self.num_bytes - self.config.capacity_bytes)
        by_bytes = 0 if excess <= 0 else int(np.searchsorted(np.cumsum(rows["num_bytes"]), excess) + 1)
        num = max(by_bytes, len(rows) - self.config.capacity_trajectories)
        if num > 0:
            self._evict_oldest(num)

    def _evict_oldest(self, num: int) -> None:
        self._drop(num)
        self.evicted += num
        self._note_eviction()  # whoever reads the folder elsewhere does not know the capacities
        self._delete_dead_segments()

    def _drop(self, num: int) -> None:
        """Take the oldest `num` trajectories from the table."""
        for key, count in zip(*np.unique(self.table.rows["record"][:num], return_counts=True), strict=True):
            self._live[self._records[int(key)].segment] -= int(count)
        self.table.drop(num)

    def _note_eviction(self) -> None:
        """Write down which trajectories are evicted. A full disk must not keep space from being freed."""
        if self.config.folder is not None and not self.read_only:
            newest = self._segments[max(self._segments)]
            with contextlib.suppress(StorageError):
                self._write(newest, [records.encode_eviction(self.table.first, self.table.oldest, time.time())])

    def _delete_dead_segments(self) -> None:
        """Free the oldest segments as long as nothing in them is alive."""
        dead = list(takewhile(lambda n: not self._live[n] and n != self._current, sorted(self._segments)))
        if self._held is not None:
            room = self.config.capacity_bytes // HELD_SHARE
            while dead and dead[-1] >= self._held and (room := room - self._segments[dead[-1]].size) >= 0:
                dead.pop()
        if dead:
            # One commit's trajectories may lie in several segments. Whoever finds some of them gone must be able to
            # tell that those before them, in segments that are left, are evicted as well.
            self._note_eviction()
        for number in dead:
            segment = self._segments.pop(number)
            self._unsynced.discard(segment)
            segment.close() if self.read_only else segment.delete()
            for key in self._records_of.pop(number):
                del self._records[key]
                self._broken.discard(key)
            del self._live[number], self._schemas[number]

    # ---------------------------------------------------------------- going back

    def mark(self) -> Mark:
        """The log as it is now, staged trajectories included."""
        newest = None if self._current is None else self._segments[self._current]
        size = 0 if newest is None else newest.size
        return Mark(min(self._segments, default=None), self._current, size, self.table.first, self.table.end)

    def knows(self, ids: np.ndarray) -> np.ndarray:
        """(M,) bool: which of `ids` (M, 3) int64 were ever stored, evicted ones too."""
        return ~self._seen.new(ids)

    def take_as_known(self, ids: np.ndarray) -> None:
        """Hold `ids` (M, 3) int64 for evicted; of a store that is empty, which writes it down with what comes first."""
        self._seen.add(ids)

    def hold(self, segment: int | None) -> None:
        """Keep evicted trajectories in their files from `segment` on, so that a mark there can be gone back to.

        As long as they take up less than a quarter of the capacity: the disk must not fill over it. Nothing is kept in
        memory, which cannot be gone back to.
        """
        self._held = None if self.config.folder is None else segment
        self._delete_dead_segments()

    def _check_fits(self, packed: PackedTrajectories) -> None:
        row_bytes = packed.row_bytes
        largest = int(packed.num_rows.argmax())
        num_rows = int(packed.num_rows[largest])
        if num_rows * row_bytes > self.config.capacity_bytes:
            raise ValueError(
                f"one trajectory of {num_rows * row_bytes:,} bytes ({num_rows - 1:,} timesteps of "
                f"{packed.env_names[largest]!r}) does not fit a shard of {self.config.capacity_bytes:,} bytes: "
                "raise Experiment.replay_capacity_gb or lower Experiment.traj_save_len"
            )

    # ---------------------------------------------------------------- reading

    def __len__(self) -> int:
        return len(self.table)

    @property
    def num_bytes(self) -> int:
        return int(self.table.rows["num_bytes"].sum())

    @property
    def num_transitions(self) -> int:
        return int(self.table.rows["num_rows"].sum()) - len(self.table)

    @property
    def num_staged(self) -> int:
        """Trajectories that are stored and not visible yet."""
        return sum(len(facts) for _, facts in self._staged)

    @property
    def num_segments(self) -> int:
        return len(self._segments)

    def env_name(self, env: int) -> str:
        return self._env_names[env]

    def facts(self, numbers: np.ndarray) -> np.ndarray:
        """(B,) INDEX rows of visible trajectories."""
        return self.table.rows[numbers - self.table.first]

    def damaged(self, numbers: np.ndarray, anew: bool = False) -> list[int]:
        """All trajectories of those records of the trajectories `numbers` that do not match their checksum.

        The checksum of a record that this process has not written is compared when it is first read from, and that of
        others if it is to be done anew. What is found is added to `damage`, once.
        """
        keys = np.unique(self.facts(numbers)["record"]).tolist()
        self._broken.update(key for key in keys if self._is_to_be_verified(key, anew) and not self._verify(key))
        bad = [key for key in keys if key in self._broken]
        if not bad:
            return []
        rows = self.table.rows
        return (np.flatnonzero(np.isin(rows["record"], bad)) + self.table.first).tolist()

    def _is_to_be_verified(self, key: int, anew: bool) -> bool:
        return key not in self._broken and (anew or not self._records[key].verified)

    def _verify(self, key: int) -> bool:
        record = self._records[key]
        segment = self._segments[record.segment]
        try:
            check_columns(segment, record)
        except (Corrupt, StorageError) as error:
            self.damage.append(f"{segment.name}, byte {record.offset}: {error}; it is left out of sampling")
            return False
        record.verified = True
        return True

    def read(self, numbers: np.ndarray, start: np.ndarray, num_rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows [start, start + num_rows) of each visible trajectory, end to end: column -> (sum num_rows, ...).

        Raises StorageError, or Corrupt for compressed blocks that cannot be read.
        """
        facts = self.facts(numbers)
        first = facts["first_row"] + start
        places = [self._records[key] for key in facts["record"].tolist()]
        stops = np.cumsum(num_rows)
        columns = {}
        for column in self._schemas[places[0].segment].columns:
            out = np.empty((int(stops[-1]), *column.shape), dtype=column.dtype)
            flat = out.reshape(-1).view(np.uint8)
            size = column.row_bytes
            for record, row, count, stop in zip(places, first.tolist(), num_rows.tolist(), stops.tolist(), strict=True):
                piece = flat[(stop - count) * size : stop * size]
                schema = self._schemas[record.segment]  # what is compressed may differ from one segment to another
                read_rows(self._segments[record.segment], record, schema, column.name, row, piece)
            columns[column.name] = out
        return columns

    def trajectory(self, number: int) -> Trajectory:
        """One visible trajectory, whole. Raises as `read` does."""
        one = np.array([number])
        (facts,) = self.facts(one)
        return Trajectory(
            id=TrajectoryId(int(facts["worker"]), int(facts["incarnation"]), int(facts["sequence"])),
            env_name=self.env_name(int(facts["env"])),
            columns=self.read(one, np.zeros(1, dtype=np.int64), facts["num_rows"][None]),
            first_time_idx=int(facts["first_time_idx"]),
            truncated=bool(facts["truncated"]),
            weight_version=int(facts["weight_version"]),
        )

    def close(self) -> None:
        """Let go of the files."""
        self._closed.set()
        for segment in self._segments.values():
            segment.close()
        if self._lock is not None:
            self._lock.close()

    # ---------------------------------------------------------------- opening

    @staticmethod
    def take_back(folder: Path, mark: Mark) -> None:
        """Drop what a log, which is not open, has beyond `mark`. Done again, it changes nothing.

        Raises StorageError.
        """
        lock = lock_folder(folder)
        try:
            for number in reversed(segment_numbers(folder)):  # newest first: killed here, what is left is a log
                segment = FileSegment(segment_path(folder, number), write=True)
                if mark.newest is None or number > mark.newest:
                    segment.delete()
                elif number == mark.newest and segment.size > mark.size:
                    segment.truncate(mark.size)
                segment.close()
        finally:
            lock.close()

    def _load(self, folder: Path) -> None:
        numbers = segment_numbers(folder)
        first_alive, oldest = 0, None
        for number in numbers:
            segment = FileSegment(segment_path(folder, number), not self.read_only, self.config.hints)
            try:
                schema, known, first = read_header(segment)
            except Corrupt as error:
                self._lost(f"{error}; its data are left out")
                if not self.read_only:
                    segment.rename(segment.path.with_suffix(".damaged"))  # told once, and no part of the log any more
                segment.close()
                continue
            self._add_segment(number, segment, schema)
            self._seen = SeenIds.from_json(known["seen"], self.config.stride)
            self.commits = max(self.commits, known["commits"])
            total = known["total"]
            for entry in whole_entries(segment, number, first, self._on_damage(segment, number == numbers[-1])):
                if entry.kind == COMMIT:
                    total = entry.extras["total"]
                    self._show_staged(entry.extras["number"])
                elif entry.kind == EVICTION:
                    first_alive, oldest = entry.extras["first"], entry.extras.get("oldest")
                    if oldest is None and "oldest" in entry.extras:
                        self._drop(len(self.table))
                else:
                    self._stage(entry)
            # Numbers count back from the newest, whatever went missing: they only have to rise by one.
            self.table.first, self.table.end = total - len(self.table), total
        self._next_segment = numbers[-1] + 1 if numbers else 0
        if oldest is not None:
            self._drop(self.table.before(oldest))
        else:  # nothing was left, or the log is of a version that wrote down numbers only
            self._drop(min(max(first_alive - self.table.first, 0), len(self.table)))
        self._evict()

    def _on_damage(self, segment: Segment, newest: bool) -> Callable[[Corrupt, int, int | None], None]:
        def report(error: Corrupt, offset: int, following: int | None) -> None:
            if following is None and newest and self.read_only and ends_early(segment, offset):
                return  # its writer is in the middle of it
            if following is None and newest and not self.read_only:
                lost = segment.size - offset
                segment.truncate(offset)
                self.damage.append(f"{error}; the last {lost:,} bytes were cut off")
            else:
                self._lost(f"{error}; {(following or segment.size) - offset:,} bytes are left out")

        return report

    def _lost(self, what: str) -> None:
        self.damage.append(what)
        self.renumbered = True

    def _sync_now_and_then(self) -> None:
        while not self._closed.wait(self.config.fsync_interval_s):
            for segment in list(self._unsynced):
                self._unsynced.discard(segment)
                try:
                    segment.sync()
                except StorageError as error:  # whoever pushes next must hear of it
                    self._sync_error = error
                    return
