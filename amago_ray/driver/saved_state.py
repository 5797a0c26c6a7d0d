"""Whether a training state is as it was written: told before processes start that would fail over it one by one."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path

from amago_ray.atomic_files import read_json
from amago_ray.run_directory import RUN_STATE

OF_THE_DRIVER = ("progress", "weight_shapes", "batches", "weight_version", "commits", "validations", "replay")
ZIPPED = (".bin", ".pt", ".pkl")  # how PyTorch writes whatever it saves


def check_training_state(folder: Path) -> None:
    """Raises ValueError, naming the file and what to do, for a training state that cannot be loaded.

    Every byte is compared with the checksums that PyTorch writes; of safetensors, which have none, the size.
    """
    try:
        read_json(folder / RUN_STATE, *OF_THE_DRIVER)
        for path in sorted(folder.iterdir()):
            if path.suffix in ZIPPED:
                _check_zip(path)
            elif path.suffix == ".safetensors":
                _check_safetensors(path)
    except ValueError as error:
        raise ValueError(
            f"resume: {error}; remove {folder} to go on from the state before it, if there is one"
        ) from error


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if bad is not None:
        raise ValueError(f"{path} is damaged: {bad} does not match its checksum")


def _check_safetensors(path: Path) -> None:
    """The format: eight bytes with the length of a JSON header, the header, and the tensors that it places."""
    size = os.path.getsize(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= size else b""
    try:
        placed = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        expected = 8 + length + max(placed, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: its header cannot be read") from error
    if size != expected:
        raise ValueError(f"{path} is damaged: it has {size:,} bytes, and should have {expected:,}")
