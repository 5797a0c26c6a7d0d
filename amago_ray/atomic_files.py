"""Files that are there whole or not at all, and the reading of those that others may have damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk, of one's share of it, of a limit on one file
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_full(error: OSError) -> bool:
    """Whether there was no room for what was to be written, so that it may be tried again later."""
    return error.errno in FULL


def is_unwritable(error: OSError) -> bool:
    """Whether a file may not be written, or its folder, until somebody sees to it."""
    return error.errno in UNWRITABLE


def check_room(folder: Path, num_bytes: int) -> None:
    """Raises OSError, naming the folder, where its disk has less room than that."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        least = f"{free:,} bytes are free, and {num_bytes:,} are needed at least"
        raise OSError(errno.ENOSPC, f"{folder}: {os.strerror(errno.ENOSPC)}: {least}")


@contextmanager
def without_empty_parents(path: Path) -> Iterator[None]:
    """Of the folders that `path` lies in, those that are made within and are empty afterwards are removed."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # something came of it
                folder.rmdir()


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
    finally:
        with suppress(OSError):  # on a disk that became read-only, it is not what was to be written
            temporary.unlink(missing_ok=True)  # there only if writing failed
    _sync(path.parent)


class LineFile:
    """An append-only file whose lines are there whole or not at all; those without room just now wait for it.

    A line that waits goes before every later one. keep: begin after the whole lines that are there, else with none.
    A file that was removed since is written again, out of what is still open of it; where another one lies in its
    place, lines go on at the end of that. say: told of either. Raises IsADirectoryError for a folder of that name.
    """

    def __init__(self, path: Path, keep: bool = True, say: Callable[[str], None] = lambda text: None):
        self._path, self._say = path, say
        self._waiting: deque[tuple[bytes, Callable[[], None] | None]] = deque()
        self._fd = self._open()
        self._end = len(whole_lines(path)) if keep else 0  # where this object has written last
        os.ftruncate(self._fd, self._end)

    def append(self, line: bytes, then: Callable[[], None] | None = None) -> OSError | None:
        """Write a line, which ends with a line end. Returns why it waits where there is no room.

        then: called once it is in the file; what that raises is raised. Raises OSError for other faults of the disk,
        also where the file's folder is gone.
        """
        self._waiting.append((line, then))
        error = self._write_waiting()
        if error is not None and not is_full(error):
            raise error
        return error

    def settle(self) -> None:
        """See to it that the file is there, and write what waits.

        Raises OSError, naming the file, where it has to go on waiting.
        """
        error = self._write_waiting()
        if error is not None:
            raise error

    def _write_waiting(self) -> OSError | None:
        """Returns what keeps lines from the file, naming it: of a fault of `then` it is no part."""
        try:
            self._find()
        except OSError as error:
            return self._named(error)
        while self._waiting:
            line, then = self._waiting[0]
            try:
                self._write(line)
            except OSError as error:
                return self._named(error)
            self._waiting.popleft()
            if then is not None:
                then()
        return None

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._fd).st_size
        if os.write(self._fd, line) < len(line):  # a part of it had room
            os.ftruncate(self._fd, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end = size + len(line)

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, f"{self._path}: {error.strerror}") if error.strerror else error

    def _open(self) -> int:
        check_no_folder(self._path)
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def _find(self) -> None:
        """See to it that what is open is what lies at the path. Raises OSError."""
        mine = os.fstat(self._fd)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            if not self._path.parent.is_dir():
                raise
            write_atomically(self._path, self._copy)
            self._go_over()
            self._say(f"{self._path} was removed: it is there again, with all that was in it")
            return
        replaced = (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino)
        if replaced:
            self._go_over()
        size = os.fstat(self._fd).st_size
        if (replaced or size != self._end) and size and os.pread(self._fd, 1, size - 1) != b"\n":
            self._write(b"\n")  # to what somebody else has written
        if replaced:
            self._say(f"{self._path} was replaced by another file: lines go on at the end of that")

    def _copy(self, to: Path) -> None:
        """Write what is open into another file."""
        with open(os.dup(self._fd), "rb") as mine, open(to, "wb") as file:
            mine.seek(0)
            shutil.copyfileobj(mine, file)

    def _go_over(self) -> None:
        """Let go of what is open for what lies at the path."""
        former, self._fd = self._fd, self._open()
        os.close(former)

    def close(self) -> None:
        """Nothing can be written after it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def check_no_folder(path: Path) -> None:
    """Raises IsADirectoryError, saying what to do, where a folder has the name of a file."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, where a file of that name has to be: remove it")


def whole_lines(path: Path) -> bytes:
    """A file up to its last line end. Raises OSError where none is."""
    check_no_folder(path)
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def read_text(path: Path) -> str:
    """A file of text. Raises ValueError, naming the file, where it holds something else, OSError where none is."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged, or is no text: {error}") from error


def read_json(path: Path, *names: str) -> dict[str, Any]:
    """A JSON object that has these names. Raises ValueError, naming the file, for anything else.

    Raises OSError where there is no such file.
    """
    try:
        found = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    lacks = [name for name in names if name not in found] if isinstance(found, dict) else list(names)
    if lacks or not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it lacks {', '.join(lacks) or 'everything'}")
    return found


def _sync(path: Path) -> None:
    """Flush a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
