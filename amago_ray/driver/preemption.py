"""Being told to end: SIGTERM from a job scheduler, which takes the machine away some seconds later."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Preempted(SystemExit):
    """The process was told to end. Its exit status, unless somebody catches this, is RESUMABLE."""

    def __init__(self) -> None:
        super().__init__(RESUMABLE)


class Preemption:
    """While it is entered, SIGTERM does not end the process: `check` raises Preempted at the next quiet moment."""

    def __init__(self) -> None:
        self._told = threading.Event()
        self._before: Any = None

    def check(self) -> None:
        """Raises Preempted when the process has been told to end."""
        if self._told.is_set():
            raise Preempted

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():  # others are not allowed to, and get no signals
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._told.set()
