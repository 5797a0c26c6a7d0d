"""Being told to end: SIGTERM from a job scheduler, which takes the machine away some seconds later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Preempted(SystemExit):
    """The process was told to end. Its exit status, unless somebody catches this, is RESUMABLE.

    raised: whether that has come to pass.
    """

    raised = False

    def __init__(self) -> None:
        super().__init__(RESUMABLE)
        Preempted.raised = True


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


@contextmanager
def starting(undo: Callable[[], None], say: Callable[[str], None]) -> Iterator[None]:
    """What fails within is undone. SIGTERM ends it at once: raises Preempted, when that is undone and the user told.

    Until the process ends it goes on to mean Preempted, unless somebody had asked for another meaning.
    """
    told = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        told.set()
        raise KeyboardInterrupt  # which libraries let pass, where they take SystemExit for their own

    in_main = threading.current_thread() is threading.main_thread()
    before: Any = signal.signal(signal.SIGTERM, interrupt) if in_main else None
    after = before
    try:
        yield
        if told.is_set():  # and somebody has swallowed it
            raise Preempted
        after = _end if before is signal.SIG_DFL else before
    except BaseException:
        if in_main:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends already
        undo()
        if not told.is_set():
            raise
        say(f"told to end (SIGTERM) while it started: --resume auto starts again (exit status {RESUMABLE})")
        raise Preempted from None
    finally:
        if after is not None:
            signal.signal(signal.SIGTERM, after)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise Preempted


@contextmanager
def as_ctrl_c(say: Callable[[str], None], advice: str) -> Iterator[None]:
    """While it is entered, SIGTERM is what Ctrl-C is, for code that saves on that; at the end it raises Preempted."""
    told = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        told.set()
        signal.raise_signal(signal.SIGINT)

    in_main = threading.current_thread() is threading.main_thread()
    before: Any = signal.signal(signal.SIGTERM, interrupt) if in_main else None
    try:
        yield
    except KeyboardInterrupt:
        if not told.is_set():
            raise
        say(f"told to end (SIGTERM): {advice} (exit status {RESUMABLE})")
        raise Preempted from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
