"""Being told to end: SIGTERM from a job scheduler, which takes the machine away some seconds later, and SIGHUP from a
terminal that is closed. Where that is ignored, as below `nohup`, it stays so."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again later
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

Handlers = dict[int, Any]  # by signal


class Preempted(SystemExit):
    """The process was told to end. Its exit status, unless somebody catches this, is RESUMABLE.

    by: name of the signal. raised: whether that has come to pass.
    """

    raised = False

    def __init__(self, by: str):
        super().__init__(RESUMABLE)
        self.by = by
        Preempted.raised = True


class Preemption:
    """While it is entered, SIGNALS do not end the process: `check` raises Preempted at the next quiet moment."""

    def __init__(self) -> None:
        self._told = ""
        self._before: Handlers = {}

    def check(self) -> None:
        """Raises Preempted when the process has been told to end."""
        if self._told:
            raise Preempted(self._told)

    def __enter__(self) -> Preemption:
        self._before = _heard_by(self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        _set(self._before)
        self._before = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._told = _name(number)


@contextmanager
def starting(undo: Callable[[], None], say: Callable[[str], None], record: Callable[[str], None]) -> Iterator[None]:
    """What fails within is undone. SIGNALS end it at once: raises Preempted, when that is undone and the user told.

    Until the process ends they go on to mean Preempted, unless somebody had asked for another meaning.
    record: is told what has ended it, where that is a signal or Ctrl-C.
    """
    told: list[str] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        told.append(_name(number))
        raise KeyboardInterrupt  # which libraries let pass, where they take SystemExit for their own

    before = _heard_by(interrupt)
    after = before
    try:
        yield
        if told:  # and somebody has swallowed it
            raise Preempted(told[0])
        after = {number: _end if handler is signal.SIG_DFL else handler for number, handler in before.items()}
    except BaseException as error:
        _set(dict.fromkeys(before, signal.SIG_IGN))  # it ends already
        if told or isinstance(error, KeyboardInterrupt):
            record(f"{told[0] if told else 'Ctrl-C'} while it started")
        undo()
        if not told:
            raise
        say(f"told to end ({told[0]}) while it started: --resume auto starts again (exit status {RESUMABLE})")
        raise Preempted(told[0]) from None
    finally:
        _set(after)


@contextmanager
def as_ctrl_c(say: Callable[[str], None], advice: str) -> Iterator[None]:
    """While it is entered, SIGNALS are what Ctrl-C is, for code that saves on that; at the end it raises Preempted."""
    told: list[str] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        told.append(_name(number))
        signal.raise_signal(signal.SIGINT)

    before = _heard_by(interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if not told:
            raise
        say(f"told to end ({told[0]}): {advice} (exit status {RESUMABLE})")
        raise Preempted(told[0]) from None
    finally:
        _set(before)


def _heard_by(handler: Callable[[int, FrameType | None], None]) -> Handlers:
    """Let `handler` have the SIGNALS that are not ignored; returns who had them. In other threads than the main one,
    which may not ask for signals and get none, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in SIGNALS if number == signal.SIGTERM or not _is_ignored(number)]
    return {number: signal.signal(number, handler) for number in heard}


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def _set(handlers: Handlers) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # it was not set from Python, and cannot be from there
            signal.signal(number, handler)


def _name(number: int) -> str:
    return signal.Signals(number).name


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise Preempted(_name(number))
