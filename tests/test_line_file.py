"""Lines that are there whole or not at all, whatever the disk does."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from amago_ray.atomic_files import LineFile, is_full


class Disk:
    """Room for so many bytes more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.room, self.code = 1 << 30, errno.ENOSPC
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        if not self.room:
            raise OSError(self.code, os.strerror(self.code))
        written = self._write(fd, data[: self.room])
        self.room -= written
        return written


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("room", [0, 1, 4])
def test_lines_without_room_wait_in_their_order(tmp_path: Path, disk: Disk, room: int) -> None:
    path, written = tmp_path / "lines", []
    file = LineFile(path)
    assert file.append(b"one\n", lambda: written.append(1)) is None
    disk.room = room
    for n, line in ((2, b"second\n"), (3, b"3\n")):
        error = file.append(line, lambda n=n: written.append(n))
        assert error is not None and is_full(error) and str(path) in str(error)
        assert path.read_bytes() == b"one\n" and written == [1]
        disk.room = room
    with pytest.raises(OSError, match="No space left on device"):
        file.settle()
    disk.room = 1 << 30
    assert file.append(b"four\n") is None
    assert path.read_bytes() == b"one\nsecond\n3\nfour\n" and written == [1, 2, 3]
    file.settle()
    file.close()


def test_other_faults_of_the_disk_are_raised(tmp_path: Path, disk: Disk) -> None:
    file = LineFile(tmp_path / "lines")
    disk.room, disk.code = 0, errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        file.append(b"one\n")
    file.close()


def test_a_torn_line_is_cut_off_when_a_file_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntw")
    file = LineFile(path)
    file.append(b"three\n")
    file.close()
    assert path.read_bytes() == b"one\nthree\n"
    file = LineFile(path, keep=False)
    file.append(b"four\n")
    file.close()
    assert path.read_bytes() == b"four\n"
