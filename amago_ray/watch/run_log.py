"""The metrics of a run as columns, read as `metrics.jsonl` grows: what is new of it, and never all of it again."""

from __future__ import annotations

import json
import math
import os
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from amago_ray.atomic_files import check_no_folder
from amago_ray.watch.metrics import AXES, METRICS_FILE, as_number

MAX_MARK_BYTES = 4096
PIECE_BYTES = 1 << 20  # read at once


class Series:
    """One metric: the rows that have it, and its values, NaN where they were no finite number."""

    def __init__(self) -> None:
        self.rows, self.values = array("q"), array("d")

    def finite(self) -> Iterator[tuple[int, float]]:
        """(row, value), oldest first."""
        return ((row, value) for row, value in zip(self.rows, self.values) if math.isfinite(value))


class RunLog:
    """Everything that was logged of a run, column by column. It has nothing until `refresh` has read the file.

    A file that was rewound, by a run that is resumed, or begun anew is noticed, however long it has become meanwhile,
    and read from its start. A line that is no row is counted and left out; one that is half written is waited for.

    axes: each of AXES, a number per row. series: "<section>/<name>" -> where it was logged. ends: epoch -> its last
    row. broken: lines that were left out. generation: grows when what was read before no longer holds. complete:
    whether the newest `refresh` had time to read all.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_FILE
        self.generation = 0
        self.complete = True
        self._forget()

    def _forget(self) -> None:
        self.axes = {name: array("d") for name in AXES}
        self.series: dict[str, Series] = {}
        self.ends: dict[int, int] = {}
        self.broken = 0
        self._offset, self._mark = 0, b""  # where reading goes on, and what lies before it
        self._seen: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        """Rows."""
        return len(self.axes["epoch"])

    @property
    def version(self) -> str:
        """Another one whenever there is something new."""
        return f"{self.generation}.{len(self)}"

    @property
    def written_at(self) -> float | None:
        """When the file was last written, in seconds since 1970; None where there is none, or nothing in it."""
        return None if self._seen is None or not len(self) else self._seen[2] / 1e9

    @property
    def unread(self) -> str | None:
        """What a user is told of lines that were left out; None where none were."""
        return f"{self._path}: {self.broken} of its lines cannot be read and are left out" if self.broken else None

    def refresh(self, until: float = math.inf) -> bool:
        """Read what is new; returns whether anything is. Raises OSError for a file that is there and cannot be read.

        until: reading a piece ends it from this time on (of time.monotonic), and the next call goes on there.
        """
        check_no_folder(self._path)
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                seen = (status.st_ino, status.st_size, status.st_mtime_ns)
                if seen == self._seen and self.complete:
                    return False
                before = self.version
                if not self._continues(file, status.st_size):
                    self._begin_anew()
                self._seen = seen
                self.complete = self._read(file, status.st_size, until)
        except FileNotFoundError:  # not yet, or the run was removed
            before, self.complete = self.version, True
            if self._seen is not None:
                self._begin_anew()
        return self.version != before

    def _begin_anew(self) -> None:
        self.generation += 1
        self._forget()

    def _continues(self, file: BinaryIO, size: int) -> bool:
        """Whether the file still has, before the place where reading goes on, what was read there."""
        if size < self._offset:
            return False
        file.seek(self._offset - len(self._mark))
        return file.read(len(self._mark)) == self._mark

    def _read(self, file: BinaryIO, size: int, until: float) -> bool:
        """Take the lines up to `size`, as long as there is time; returns whether there was."""
        file.seek(self._offset)
        begun: list[bytes] = []  # of a line whose end is yet to come
        while left := size - file.tell():
            piece = file.read(min(PIECE_BYTES, left))
            if not piece:  # it was cut meanwhile
                break
            end = piece.rfind(b"\n") + 1
            if end:
                self._take(b"".join((*begun, piece[:end])))
                begun = []
                if end < left and time.monotonic() >= until:
                    return False
            begun.append(piece[end:])
        return True

    def _take(self, whole: bytes) -> None:
        """Take whole lines."""
        for line in whole.splitlines():
            row = _row(line)
            if row is None:
                self.broken += 1
            else:
                self._add(row)
        self._offset += len(whole)
        self._mark = (self._mark + whole)[-MAX_MARK_BYTES:]

    def _add(self, row: dict[str, Any]) -> None:
        count, section = len(self), row["section"]
        for name in AXES:
            self.axes[name].append(row[name])
        self.ends[int(row["epoch"])] = count
        prefix = f"{section}/"
        for name, value in row.items():
            if name.startswith(prefix):
                series = self.series.get(name)
                if series is None:
                    series = self.series[name] = Series()
                series.rows.append(count)
                series.values.append(as_number(value))

    def finite(self, name: str) -> Iterator[tuple[int, float]]:
        """(row, value) of a metric, oldest first; nothing where it was not logged."""
        return self.series[name].finite() if name in self.series else iter(())


def _row(line: bytes) -> dict[str, Any] | None:
    """A line as a row; None for what is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("section"), str):
        return None
    return row if all(math.isfinite(as_number(row.get(name))) for name in AXES) else None
