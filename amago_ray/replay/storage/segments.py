"""Segments: append-only files, or stretches of memory, that hold the records of one shard.

Files are written and read with positioned calls on a descriptor, not through a memory map: a full or failing disk is
then an exception that names the file and not a signal that kills the process, and what is read does not count as
resident memory of the process. The page cache still keeps what is read often.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amago_ray.atomic_files import is_full, is_unwritable
from amago_ray.replay.storage import records
from amago_ray.replay.storage.records import Corrupt, Entry, Record, Schema

MAX_BUFFERS = 512  # of one gathering write; the system allows 1024


class StorageError(OSError):
    """The disk could not store or give back data; the message names the file and the reason."""

    @property
    def is_full(self) -> bool:
        """Whether there was no room for it, so that it may be tried again later."""
        return is_full(self)


@dataclass(frozen=True)
class Hints:
    """What to do about a folder that has no room, may not be written to, or is none: whoever chose it knows."""

    full: str = "free some space, or lower Experiment.replay_capacity_gb"
    unwritable: str = (
        "make it writable, then --resume auto (with another Experiment.replay_dir a run begins without the data there)"
    )
    unusable: str = "set Experiment.replay_dir to a folder that can be written to"


OF_A_RUN = Hints()


class Segment(ABC):
    """An append-only run of bytes. size: bytes in it. name: what errors call it."""

    size: int = 0
    name: str

    @abstractmethod
    def append(self, buffers: Sequence[Any]) -> None:
        """Write `buffers` end to end, all or nothing. Raises StorageError."""

    @abstractmethod
    def read_into(self, out: np.ndarray, offset: int) -> None:
        """Fill `out` (n,) uint8 with the bytes from `offset` on. Raises StorageError, or Corrupt past the end."""

    @abstractmethod
    def truncate(self, size: int) -> None:
        """Forget what lies after the first `size` bytes."""

    @abstractmethod
    def sync(self) -> None:
        """Make sure that what was written outlives a loss of power, as far as that goes."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it."""

    @abstractmethod
    def delete(self) -> None:
        """Close it and free its space."""

    def read(self, offset: int, num_bytes: int) -> bytes:
        """At most `num_bytes` from `offset` on; fewer where the segment ends."""
        out = np.empty(max(min(num_bytes, self.size - offset), 0), dtype=np.uint8)
        self.read_into(out, offset)
        return out.tobytes()


class MemorySegment(Segment):
    """A segment in this process's memory; it dies with the process."""

    def __init__(self, number: int, capacity: int):
        self.name = f"segment {number} in memory"
        self._bytes = np.empty(capacity, dtype=np.uint8)  # the system provides pages as they are written

    def append(self, buffers: Sequence[Any]) -> None:
        total = sum(len(buffer) for buffer in buffers)
        if self.size + total > len(self._bytes):
            grown = np.empty(self.size + total, dtype=np.uint8)
            grown[: self.size] = self._bytes[: self.size]
            self._bytes = grown
        for buffer in buffers:
            self._bytes[self.size : self.size + len(buffer)] = np.frombuffer(buffer, dtype=np.uint8)
            self.size += len(buffer)

    def read_into(self, out: np.ndarray, offset: int) -> None:
        out[:] = self._bytes[offset : offset + len(out)]

    def truncate(self, size: int) -> None:
        self.size = size

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass

    def delete(self) -> None:
        self._bytes = np.empty(0, dtype=np.uint8)  # not a view, which would keep what it is a part of
        self.size = 0


class FileSegment(Segment):
    """A segment in a file. Raises StorageError where the file cannot be made or opened."""

    def __init__(self, path: Path, write: bool, hints: Hints = OF_A_RUN):
        self.path, self.name, self._hints = path, str(path), hints
        self._using = threading.Lock()  # of the descriptor, by `sync`, which another thread calls, and `close`
        with self._named("open"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT if write else os.O_RDONLY, 0o644)
            self.size = os.fstat(self._fd).st_size

    def append(self, buffers: Sequence[Any]) -> None:
        before = self.size
        try:
            with self._named("write to"):
                for i in range(0, len(buffers), MAX_BUFFERS):
                    self._write(buffers[i : i + MAX_BUFFERS])
        except StorageError:
            self.size = before
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, before)  # gives the space of a half-written record back
            raise

    def _write(self, buffers: Sequence[Any]) -> None:
        waiting = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while waiting:
            written = os.pwritev(self._fd, waiting, self.size)
            self.size += written
            while waiting and written >= len(waiting[0]):
                written -= len(waiting.pop(0))
            if written:
                waiting[0] = waiting[0][written:]

    def read_into(self, out: np.ndarray, offset: int) -> None:
        waiting = out.data
        try:  # without `_named`, which would take as long as reading a few rows does
            while waiting:
                count = os.preadv(self._fd, [waiting], offset)
                if count == 0:
                    raise Corrupt(f"{self.name}: it ends at byte {offset}, where stored data should be")
                waiting, offset = waiting[count:], offset + count
        except OSError as error:
            raise self._storage_error("read", error) from error

    def truncate(self, size: int) -> None:
        with self._named("cut"):
            os.ftruncate(self._fd, size)
        self.size = size

    def sync(self) -> None:
        with self._using, self._named("sync"):
            if self._fd >= 0:
                os.fsync(self._fd)

    def close(self) -> None:
        with self._using:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def rename(self, path: Path) -> None:
        """Give the file another name. Raises StorageError."""
        with self._named("rename"):
            os.rename(self.path, path)
        self.path, self.name = path, str(path)

    def delete(self) -> None:
        self.close()
        with self._named("delete"):
            self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            raise self._storage_error(what, error) from error

    def _storage_error(self, what: str, error: OSError) -> StorageError:
        hint = ""
        if is_full(error):
            hint = f"; {self._hints.full}"
        elif is_unwritable(error):
            hint = f"; {self._hints.unwritable}"
        return StorageError(error.errno, f"cannot {what} the replay segment {self.name}: {error.strerror}{hint}")


def new_segment(
    folder: Path | None, number: int, capacity: int, schema: Schema, known: dict[str, Any], hints: Hints = OF_A_RUN
) -> Segment:
    """A fresh segment with its header written. folder: None for memory.

    A file appears under its name only once its header is whole.
    """
    header = records.segment_header(schema, known)
    if folder is None:
        memory = MemorySegment(number, max(capacity, len(header)))
        memory.append([header])
        return memory
    path = segment_path(folder, number)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    segment = FileSegment(temporary, write=True, hints=hints)
    try:
        segment.append([header])
        segment.rename(path)
    except StorageError:
        segment.delete()
        raise
    return segment


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"{number:010d}.segment"


def segment_numbers(folder: Path) -> list[int]:
    """Numbers of the segments in `folder`, oldest first."""
    return sorted(int(path.stem) for path in folder.glob("*.segment"))


def read_header(segment: Segment) -> tuple[Schema, dict[str, Any], int]:
    """Schema, what was known, and the offset of the first record. Raises Corrupt, naming the segment."""
    try:
        prefix = segment.read(0, records.PREFIX.size)
        size, _ = records.parse_prefix(prefix)
        schema, known = records.parse_segment_header(prefix, segment.read(records.PREFIX.size, size))
    except Corrupt as error:
        raise Corrupt(f"{segment.name}: {error}") from error
    return schema, known, records.PREFIX.size + size


def entries(segment: Segment, number: int, first: int) -> Iterator[Entry]:
    """The records from offset `first` on. Raises Corrupt, naming segment and offset, at the first that is not whole."""
    offset = first
    while offset < segment.size:
        try:
            head = segment.read(offset, records.HEAD_BYTES)
            entry = records.decode(segment.read(offset, records.head_bytes(head)), number, offset)
            if entry.record.end > segment.size:
                raise Corrupt("it ends within a record")
        except Corrupt as error:
            raise Corrupt(f"{segment.name}, byte {offset}: {error}") from error
        yield entry
        offset = entry.record.end


def next_whole_record(segment: Segment, after: int) -> int | None:
    """Offset of the first whole record beyond offset `after`, or None: what lies behind damage can still be read."""
    mark = records.MAGIC.to_bytes(4, "little")
    window, position = 1 << 20, after + 1
    while position < segment.size:
        found = segment.read(position, window + len(mark)).find(mark)
        if found < 0:
            position += window
            continue
        position += found
        try:
            next(entries(segment, 0, position))
            return position
        except Corrupt:
            position += 1
    return None


def whole_entries(
    segment: Segment, number: int, first: int, report: Callable[[Corrupt, int, int | None], None]
) -> Iterator[Entry]:
    """The whole records of a segment. report: told of each stretch that is not (error, its offset, where it ends)."""
    offset: int | None = first
    while offset is not None:
        try:
            for entry in entries(segment, number, offset):
                offset = entry.record.end
                yield entry
            return
        except Corrupt as error:
            following = next_whole_record(segment, offset)
            report(error, offset, following)
            offset = following


def ends_early(segment: Segment, offset: int) -> bool:
    """Whether the record at `offset` is the beginning of one, cut off by the end of the file."""
    try:
        head = records.head_bytes(segment.read(offset, records.HEAD_BYTES))
    except Corrupt:
        return segment.size - offset < records.HEAD_BYTES
    if offset + head > segment.size:
        return True
    try:
        return records.decode(segment.read(offset, head), 0, offset).record.end > segment.size
    except Corrupt:
        return False


def check_columns(segment: Segment, record: Record) -> None:
    """Compare a record's columns with their checksum. Raises Corrupt, StorageError."""
    crc, position, buffer = 0, record.columns_at, np.empty(1 << 20, dtype=np.uint8)
    while position < record.end:
        piece = buffer[: record.end - position]
        segment.read_into(piece, position)
        crc = zlib.crc32(piece.data, crc)
        position += len(piece)
    if crc != record.columns_crc:
        raise Corrupt("a record's data do not match their checksum")


def read_rows(segment: Segment, record: Record, schema: Schema, name: str, row: int, out: np.ndarray) -> None:
    """Fill `out` (n x row bytes,) uint8 with the rows from `row` on of one column of a record."""
    if not len(out):
        return
    at = record.columns_at
    for column in schema.columns:
        if column.name == name:
            break
        at += record.column_bytes(column)
    wanted = column
    if wanted.codec == "raw":
        segment.read_into(out, at + row * wanted.row_bytes)
        return
    size, block = wanted.row_bytes, records.BLOCK_ROWS
    ends = record.block_ends[wanted.name]
    last = row + len(out) // size
    first_block, stop_block = row // block, -(-last // block)
    begin = int(ends[first_block - 1]) if first_block else 0
    packed = memoryview(segment.read(at + begin, int(ends[stop_block - 1]) - begin))
    for i in range(first_block, stop_block):
        rows = range(i * block, min((i + 1) * block, record.num_rows))
        start = int(ends[i - 1]) - begin if i else 0
        data = records.decompress(packed[start : int(ends[i]) - begin], len(rows) * size)
        lo, hi = max(row, rows.start), min(last, rows.stop)
        out[(lo - row) * size : (hi - row) * size] = np.frombuffer(
            data, np.uint8, (hi - lo) * size, (lo - rows.start) * size
        )
