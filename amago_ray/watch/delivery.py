"""Rows on their way to a place beside `metrics.jsonl`, which may refuse them: that file is what counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from amago_ray.watch.sinks import MetricsSink, Row

MOST_WAITING = 10_000  # rows; the oldest are left out
LONGEST_REASON = 200


class Delivery:
    """Hands rows to a sink. Those that it refuses wait, in their order, and are tried again with the next one.

    Whatever the sink raises is told, and not raised. say: told, in a line each, when that begins and when it is over.
    """

    def __init__(self, sink: MetricsSink, say: Callable[[str], None]):
        self._sink, self._say = sink, say
        self._waiting: deque[tuple[str, Row]] = deque()
        self._left_out = 0  # of those that waited
        self._refuses = self._closed = False

    def log(self, section: str, row: Row) -> None:
        """Hand over one row, after those that wait."""
        self._waiting.append((section, row))
        if len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self._left_out += 1
        self._try()

    def _try(self) -> Exception | None:
        """Hand over what waits, and tell what has changed; returns why it goes on waiting."""
        error = self._deliver()
        if error is not None and not self._refuses:
            self._say(
                f"{self._sink.name} does not take rows ({_reason(error)}): they are tried again with each epoch; "
                "metrics.jsonl has them"
            )
        elif error is None and self._refuses:
            lacks = f", but for the oldest {self._left_out:,} of them" if self._left_out else ""
            self._say(f"{self._sink.name} takes rows again, and has those that waited{lacks}")
            self._left_out = 0
        self._refuses = error is not None
        return error

    def _deliver(self) -> Exception | None:
        """Hand over what waits; returns why it goes on waiting."""
        while self._waiting:
            try:
                self._sink.log(*self._waiting[0])
            except Exception as error:
                return error
            self._waiting.popleft()
        return None

    def log_video(self, name: str, path: Path, row: Row) -> None:
        """Hand over an animated GIF, once."""
        try:
            self._sink.log_video(name, path, row)
        except Exception as error:
            self._say(f"{self._sink.name} does not take the video {name} ({_reason(error)}): it is in {path}")

    def rewind(self, kept: Sequence[tuple[str, Row]], dropped: Sequence[tuple[str, Row]]) -> None:
        """Let the sink go back. Of what waits, dropped rows are dropped, and those that are kept come later."""
        gone = len(dropped)  # both end with the newest rows, and so does what waits
        self._waiting = deque(list(self._waiting)[: max(len(self._waiting) - gone, 0)])
        handed_over = kept[: max(len(kept) - len(self._waiting), 0)]
        try:
            self._sink.rewind(handed_over, dropped)
        except Exception as error:
            self._say(
                f"{self._sink.name} could not go back to where the run goes on ({_reason(error)}): what it shows of "
                "before may be more, or less, than is in metrics.jsonl"
            )

    def close(self) -> None:
        """Hand over what waits, a last time, and close the sink. Once more does nothing."""
        if self._closed:
            return
        self._closed = True
        error = self._try()
        lacks = len(self._waiting) + self._left_out
        try:
            self._sink.close()
        except Exception as own:
            error = error or own
        if error is not None:
            what = f"lacks {lacks:,} rows, which metrics.jsonl has" if lacks else "could not be closed"
            self._say(f"{self._sink.name} {what} ({_reason(error)})")


def _reason(error: Exception) -> str:
    """An error in part of a line."""
    text = " ".join(str(error).split())
    of_python = not isinstance(error, OSError) or not text
    return (f"{type(error).__name__}: {text}" if of_python else text).rstrip(" .:")[:LONGEST_REASON]
