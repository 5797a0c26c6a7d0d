"""The runs below some folders, and what was read of each so far."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amago_ray.run_directory import RunDirectory
from amago_ray.watch.bounds import Bound, bound_of
from amago_ray.watch.run_log import RunLog
from amago_ray.watch.run_status import RunStatus, run_status

MAX_DEPTH = 4  # of runs below a folder
SCAN_INTERVAL_S = 5.0
# After which a status is made anew though nothing was logged: a run may have become silent, one at rest been resumed.
STATUS_INTERVAL_S, AT_REST_INTERVAL_S = 2.0, 15.0
AT_REST = ("finished", "stopped", "failed", "silent")
SWEEP_FILE, OF_TUNE = "sweep.json", "tune"  # in a sweep's folder; the second holds no runs, and is not looked into
MEDIA = {".gif": "image/gif", ".png": "image/png", ".mp4": "video/mp4", ".webm": "video/webm"}
MAX_MEDIA, MAX_EVENTS = 500, 500


@dataclass(frozen=True)
class Media:
    """A picture or video, and when it was written, in seconds since 1970."""

    path: Path
    time_s: float


class Run:
    """A run and what was read of it. id: what the page calls it."""

    def __init__(self, name: str, root: Path):
        self.id, self.root = name, root
        self.log = RunLog(root)
        self.unread: str | None = None  # why its log could not be read
        self._status: RunStatus | None = None
        self._status_of: tuple[str, float] = ("", 0.0)
        self._bound: Bound | None = None
        self._bound_of = ""

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.root.parent, self.root.name)

    def refresh(self, until: float = math.inf) -> None:
        """Read what is new in its log; where that fails, `unread` says why. until: as of `RunLog.refresh`."""
        try:
            self.log.refresh(until)
            self.unread = None
        except OSError as error:
            self.unread = str(error)

    def status(self, now: float) -> RunStatus:
        """How it is doing, by what was read of its log, without its replay.

        Raises ValueError when it is gone, and OSError when it may not be read.
        """
        version, made = self._status_of
        if self._status is not None and version == self.log.version:
            if now - made <= (AT_REST_INTERVAL_S if self._status.state in AT_REST else STATUS_INTERVAL_S):
                return self._status
        self._status = run_status(self.root, now, self.log, look_into_replay=False)
        self._status_of = (self.log.version, now)
        return self._status

    def bound(self) -> Bound | None:
        """What bounds it, by what was read of its log."""
        if self._bound_of != self.log.version:
            self._bound, self._bound_of = bound_of(self.log), self.log.version
        return self._bound

    def media(self) -> dict[str, Media]:
        """Pictures and videos by their path in the run's folder, newest first. Links are left out."""
        files = [*_files(self.root), *_files(self.root / "videos")]
        found = sorted(((time_s, path) for path, time_s in files if path.suffix.lower() in MEDIA), reverse=True)
        return {_legible(path.relative_to(self.root)): Media(path, time_s) for time_s, path in found[:MAX_MEDIA]}

    def events(self) -> list[dict[str, Any]]:
        """The newest rows of events.jsonl, oldest first, less what is no row."""
        try:
            lines = self.directory.events.read_bytes().splitlines()[-MAX_EVENTS:]
        except FileNotFoundError:
            return []
        return [event for line in lines if (event := _event(line)) is not None]


@dataclass
class Library:
    """The runs in `folders`, each of which is a run or has some somewhere below it.

    Nothing is followed that is a link below a folder. Raises ValueError for a folder that is none.
    """

    folders: Sequence[Path]

    def __post_init__(self) -> None:
        for folder in self.folders:
            if not folder.is_dir():
                raise ValueError(f"{folder}: there is no such folder")
        self.folders = [folder.resolve() for folder in self.folders]
        self.runs: dict[str, Run] = {}
        self._scanned_at = -SCAN_INTERVAL_S

    def scan(self) -> None:
        """Look for runs that have come and gone, if that was not just done."""
        if time.monotonic() - self._scanned_at < SCAN_INTERVAL_S:
            return
        known = {run.root: run for run in self.runs.values()}
        runs: dict[str, Run] = {}
        for folder in self.folders:
            for root in _runs_below(folder, MAX_DEPTH):
                name = _name(root, folder, prefix=len(self.folders) > 1)
                if root not in (run.root for run in runs.values()):
                    name = name if name not in runs else _legible(root)
                    runs[name] = known.get(root) or Run(name, root)
        self.runs = dict(sorted(runs.items(), key=lambda item: _natural(item[0])))
        self._scanned_at = time.monotonic()

    def refresh(self, budget_s: float) -> bool:
        """Read what is new in all logs, until that has taken `budget_s`; returns whether all was read.

        Logs that were not read yet come last to first written, so that what goes on is seen first. Each has an equal
        share of the time that is left then, so that none holds up the others: a long one is read bit by bit. What they
        leave of the time is for the long ones.
        """
        deadline = time.monotonic() + budget_s
        runs = sorted(self.runs.values(), key=_last_written, reverse=True)
        for i, run in enumerate(runs):
            now = time.monotonic()
            if now > deadline:
                return False
            run.refresh(now + (deadline - now) / (len(runs) - i))
        for run in runs:
            if not run.log.complete and run.unread is None and time.monotonic() < deadline:
                run.refresh(deadline)
        return all(run.log.complete for run in runs if run.unread is None)


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        if (folder / "config.txt").is_file():
            yield folder
            return
        is_sweep = (folder / SWEEP_FILE).is_file()
        inside = [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)] if depth else []
    except OSError:  # removed meanwhile, or not ours to read: there is nothing to show of it
        return
    for entry in inside:
        if not entry.name.startswith(".") and not (is_sweep and entry.name == OF_TUNE):
            yield from _runs_below(Path(entry.path), depth - 1)


def _name(root: Path, folder: Path, prefix: bool) -> str:
    if root == folder:
        return _legible(Path(root.name))
    return _legible(Path(folder.name) / root.relative_to(folder) if prefix else root.relative_to(folder))


def _legible(path: Path) -> str:
    """A path as text that a page can send back: bytes that are no UTF-8 are written out."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _natural(name: str) -> list[tuple[int, str]]:
    """So that run_10 comes after run_9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _last_written(run: Run) -> float:
    try:
        return (run.root / "metrics.jsonl").stat().st_mtime
    except OSError:
        return 0.0


def _files(folder: Path) -> list[tuple[Path, float]]:
    """The files in a folder, which need not be there, with the time when each was written. No links."""
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
        return [(Path(entry.path), entry.stat(follow_symlinks=False).st_mtime) for entry in entries]
    except OSError:  # it is not there, or one of them was removed just now
        return []


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:  # half written, or damaged
        return None
    good = isinstance(event, dict) and isinstance(event.get("text"), str) and isinstance(event.get("time"), int | float)
    return {"time": event["time"], "epoch": event.get("epoch"), "text": event["text"]} if good else None
