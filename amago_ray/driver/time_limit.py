"""A limit on the time that a user's code takes in the driver's own process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _TooLong(BaseException):
    """No Exception, which the code within may catch."""


@contextmanager
def time_limit(limit_s: float, message: str) -> Iterator[None]:
    """Raises ValueError(message) in the midst of what takes longer within, such as a constructor that waits for ever.

    It is Python that is interrupted: a call into a library that never returns is not. Only the main thread can be.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, give_up)
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    except _TooLong as error:
        raise ValueError(message) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        if left_s:  # somebody else's alarm
            signal.setitimer(signal.ITIMER_REAL, max(left_s - (time.monotonic() - started), 0.001))
