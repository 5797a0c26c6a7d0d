"""Lines that are there whole or not at all, whatever the disk does."""

from __future__ import annotations

import errno
import os
import shutil
from functools import partial
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


def test_a_fault_of_what_follows_is_not_the_files_own(tmp_path: Path) -> None:
    """The line is written, once, and none is said to wait for room."""

    def refuse() -> None:
        raise OSError(errno.ENOSPC, "of another place")

    file = LineFile(tmp_path / "lines")
    with pytest.raises(OSError, match="of another place"):
        file.append(b"one\n", refuse)
    assert file.append(b"two\n") is None
    assert (tmp_path / "lines").read_bytes() == b"one\ntwo\n"
    file.close()


@pytest.mark.parametrize("by", ["append", "settle"])
def test_a_file_that_is_removed_is_there_again_with_all_of_it(tmp_path: Path, by: str) -> None:
    path, said = tmp_path / "lines", []
    file = LineFile(path, say=said.append)
    for line in (b"one\n", b"two\n"):
        file.append(line)
    path.unlink()
    if by == "append":
        file.append(b"three\n")
    else:
        file.settle()
        assert path.read_bytes() == b"one\ntwo\n"
        file.append(b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n" and os.listdir(tmp_path) == ["lines"]
    assert said == [f"{path} was removed: it is there again, with all that was in it"]
    file.append(b"four\n")
    assert path.read_bytes() == b"one\ntwo\nthree\nfour\n" and len(said) == 1
    file.close()


def test_a_file_that_cannot_be_restored_for_want_of_room_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "lines"
    file = LineFile(path)
    file.append(b"one\n")
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", refuse)
        error = file.append(b"two\n")
    assert error is not None and str(error) == f"[Errno 28] {path}: No space left on device"
    assert os.listdir(tmp_path) == []
    file.settle()
    assert path.read_bytes() == b"one\ntwo\n"
    file.close()


def test_what_others_write_into_it_is_given_a_line_end(tmp_path: Path) -> None:
    """As an editor, or `cp`, that keeps the file and changes what is in it."""
    path = tmp_path / "lines"
    file = LineFile(path)
    file.append(b"one\n")
    path.write_bytes(b"other\nwithout its end")
    for line in (b"two\n", b"three\n"):
        file.append(line)
    assert path.read_bytes() == b"other\nwithout its end\ntwo\nthree\n"
    file.close()


@pytest.mark.parametrize("content", [b"", b"other\n", b"other\nwithout its end"])
def test_where_another_file_lies_in_its_place_lines_go_on_at_its_end(tmp_path: Path, content: bytes) -> None:
    path, said = tmp_path / "lines", []
    file = LineFile(path, say=said.append)
    file.append(b"one\n")
    (tmp_path / "other").write_bytes(content)
    (tmp_path / "other").replace(path)
    for line in (b"two\n", b"three\n"):
        file.append(line)
    whole = content if content.endswith(b"\n") or not content else content + b"\n"
    assert path.read_bytes() == whole + b"two\nthree\n"
    assert said == [f"{path} was replaced by another file: lines go on at the end of that"]
    file.close()


def test_a_folder_that_is_gone_is_not_made(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = LineFile(folder / "lines")
    file.append(b"one\n")
    folder.rename(tmp_path / "renamed")
    for write in (partial(file.append, b"two\n"), file.settle):
        with pytest.raises(FileNotFoundError, match="folder/lines: No such file or directory"):
            write()
    assert os.listdir(tmp_path) == ["renamed"]
    (tmp_path / "renamed").rename(folder)
    file.settle()
    assert (folder / "lines").read_bytes() == b"one\ntwo\n", "what waited is not lost"
    file.close()


def test_a_folder_of_its_name_is_told(tmp_path: Path) -> None:
    said = f"{tmp_path}/lines is a folder, where a file of that name has to be: remove it"
    file = LineFile(tmp_path / "lines")
    (tmp_path / "lines").unlink()
    (tmp_path / "lines").mkdir()
    for use in (partial(LineFile, tmp_path / "lines"), partial(file.append, b"one\n")):
        with pytest.raises(IsADirectoryError) as caught:
            use()
        assert str(caught.value) == said
    file.close()


def test_it_may_be_closed_again(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "lines")
    file.close()
    file.close()
