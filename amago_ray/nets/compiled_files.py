"""Where code lies that was compiled on this machine, for all of its processes."""

from __future__ import annotations

import getpass
import os
import platform
import re
import tempfile
from contextlib import suppress
from pathlib import Path

FOLDER = "amago_ray"  # within the folder of PyTorch's compiler
LOCKED_S = 240.0  # that a process waits for another one that compiles the same


def code_folder() -> Path:
    """Beside what PyTorch compiles. Raises PermissionError where others may write into it: what they may is not run.

    PyTorch tells its folder too, once a second's worth of its compiler is imported.
    """
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or _default_folder()) / FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    its = folder.stat()
    if its.st_uid != os.getuid() or its.st_mode & 0o022:
        raise PermissionError(f"others than you may write into {folder}; set TORCHINDUCTOR_CACHE_DIR")
    return folder


def _default_folder() -> Path:
    user = f"uid_{os.getuid()}"
    with suppress(KeyError, OSError):  # a user without a name
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
    return Path(tempfile.gettempdir()) / f"torchinductor_{user}"


def processor() -> str:
    """What code for this processor alone may be made for."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return platform.processor()
