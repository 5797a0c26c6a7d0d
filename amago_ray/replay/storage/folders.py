"""The folders in which shards keep their files: how they are named, found, and made one process's own."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import BinaryIO

from amago_ray.atomic_files import is_unwritable
from amago_ray.replay.storage.segments import OF_A_RUN, Hints, StorageError

SHARD = "shard_"  # and its number
LOCK_TIMEOUT_S = 60.0


def shard_folder(replay_folder: Path, shard: int) -> Path:
    """Where one shard keeps its segments."""
    return replay_folder / f"{SHARD}{shard}"


def shard_folders(replay_folder: Path) -> tuple[Path, ...]:
    """Those of all shards that have stored something there, in order; none where there is no such folder."""
    found = [path for path in replay_folder.glob(f"{SHARD}*") if path.is_dir()]
    return tuple(sorted(found, key=shard_number))


def shard_number(folder: Path) -> int:
    """The inverse of `shard_folder`; 0 for a folder of another name."""
    number = folder.name.removeprefix(SHARD)
    return int(number) if number.isdecimal() else 0


def lock_folder(folder: Path, hints: Hints = OF_A_RUN) -> BinaryIO:
    """Make the folder this process's own until the file that is returned is closed.

    A process that was killed lets go at once; one that still runs is waited for. Raises StorageError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "ab")  # held open as long as the store
    except OSError as error:
        raise StorageError(
            error.errno,
            f"replay cannot use the folder {folder}: {error.strerror}; "
            f"{hints.unwritable if is_unwritable(error) else hints.unusable}",
        ) from error
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                file.close()
                raise StorageError(
                    error.errno, f"the replay folder {folder} is in use by another process: end that run first"
                ) from error
            time.sleep(0.05)
