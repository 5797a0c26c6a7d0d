"""What a process that died has written to its standard error last: often the only word of why it died."""

from __future__ import annotations

import re
from pathlib import Path

from ray._private import worker

MAX_BYTES = 20_000  # of the end of a file
FATAL = re.compile(r"^(Fatal Python error.*|\*\*\* SIG\w+ received.*|.*(Error|Exception)\b.*)$")
OF_RAY = re.compile(r"^(:\w+:|\[?\d{4}-\d\d-\d\d|PC: |\s*@ |\s*File |Extension modules)")


def last_words(role: type) -> str:
    """Those of the process of a role that wrote last, in a line; empty where there are none on this machine."""
    node = worker._global_node
    if node is None:
        return ""
    files = [path for path in Path(node.get_logs_dir_path()).glob("worker-*.err") if path.stat().st_size]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        text = path.read_text(errors="replace")[-MAX_BYTES:]
        if f":actor_name:{role.__name__}\n" in text and (said := words(text)):
            return said
    return ""


def words(text: str) -> str:
    """The line of an error output that says most: of a fatal error, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not OF_RAY.match(line)]
    fatal = [line for line in lines if FATAL.match(line)]
    return (fatal or lines or [""])[-1][:300]
