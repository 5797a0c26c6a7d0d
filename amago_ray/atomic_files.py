"""Files that are there whole or not at all, and the reading of those that others may have damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # there only if writing failed
    _sync(path.parent)


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
