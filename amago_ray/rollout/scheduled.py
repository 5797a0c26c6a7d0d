"""How long this thread has had something to run."""

from __future__ import annotations

from pathlib import Path

SCHEDSTAT = Path("/proc/thread-self/schedstat")  # of Linux: nanoseconds on a core, and in the queue for one


def runnable_s() -> float | None:
    """Seconds in which this thread has run or would have, had there been a core; None where the system does not tell.

    Between two calls, what is missing of the time that passed is sleep: for a timer, a socket, another process.
    """
    try:
        running, queued, _ = SCHEDSTAT.read_text().split()
    except (OSError, ValueError):
        return None
    return (int(running) + int(queued)) / 1e9
