"""What a person watches while a run trains: a live panel on a terminal, one line per epoch anywhere else."""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from stat import S_ISCHR
from types import TracebackType
from typing import TextIO

import numpy as np
from rich.box import ROUNDED
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from amago_ray.atomic_files import is_full

REDRAW_INTERVAL_S = 0.25
MAX_UNSAID = 1000  # lines that wait for room on the disk
SPARK_WIDTH = 30  # characters; what the bars' column has room for on 80 columns
SPARKS = "▁▂▃▄▅▆▇█"
COLLECT_STYLE, LEARN_STYLE, RUN_STYLE = "cyan", "magenta", "green"


class Display:
    """Show a run's progress; the driver calls it as often as it likes, and it draws at most four times a second.

        with Display("my_run", epochs=60, enabled=True) as display:
            for epoch in range(60):
                display.start_epoch(epoch, collect_total=1000, learn_total=100)
                ...
                display.update(collected=960, learned=24, frames_per_s=1830.0, status="learning")
                display.finish_epoch({"return": 2.41, "frames": 11520, "updates": 600})

    Epochs count from 0 here and from 1 on the screen. On a terminal there is a live panel; elsewhere (a CI log, a
    submitted job) a line of text per finished epoch. Unless it is `enabled`, nothing is printed but what `tell` is for.
    A terminal that is closed is no error: nobody sees what is printed from then on.
    """

    def __init__(self, run_name: str, epochs: int, enabled: bool) -> None:
        self._run_name = run_name
        self._epochs = epochs
        self._enabled = enabled
        self._live: Live | None = None
        self._unsaid: deque[str] = deque(maxlen=MAX_UNSAID)
        self._drawn_at = -math.inf
        self._started_at = self._epoch_started_at = time.monotonic()
        self._first_epoch: int | None = None  # above 0 in a resumed run
        self._epoch = 0
        self._epoch_done = False
        self._collected = self._collect_total = self._learned = self._learn_total = 0
        self._frames_per_s = self._updates_per_s = 0.0
        self._status = "starting"
        self._row: dict[str, float] = {}
        self._returns: list[float] = []
        self._val_returns: list[float] = []

    def __enter__(self) -> Display:
        self._started_at = self._epoch_started_at = time.monotonic()
        self._first_epoch = None
        if self._enabled and _is_live_terminal():
            self._live = Live(get_renderable=self._panel, console=Console(), auto_refresh=False)
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            failed = kind is not None and issubclass(kind, Exception)
            self._status = "finished" if kind is None else "failed" if failed else "stopped"
            with _on_a_terminal_that_may_close():
                self._live.stop()  # leaves the last panel on the screen
            self._live = None

    def start_epoch(self, epoch: int, collect_total: int, learn_total: int, epochs: int | None = None) -> None:
        """Begin the bars of `epoch`: `collect_total` timesteps to collect, `learn_total` updates to make (0: none).

        epochs: of the run, where that may be another number by now.
        """
        self._epochs = self._epochs if epochs is None else epochs
        if self._first_epoch is None:
            self._first_epoch = epoch
        self._epoch, self._epoch_done = epoch, False
        self._epoch_started_at = time.monotonic()
        self._collected, self._collect_total = 0, collect_total
        self._learned, self._learn_total = 0, learn_total
        self._redraw()

    def update(
        self,
        collected: int | None = None,
        learned: int | None = None,
        frames_per_s: float | None = None,
        updates_per_s: float | None = None,
        status: str | None = None,
    ) -> None:
        """Say what changed: counts since the epoch's start, rates, and what the system does or waits for."""
        self._collected = self._collected if collected is None else collected
        self._learned = self._learned if learned is None else learned
        self._frames_per_s = self._frames_per_s if frames_per_s is None else frames_per_s
        self._updates_per_s = self._updates_per_s if updates_per_s is None else updates_per_s
        self._status = self._status if status is None else status
        self._redraw()

    def finish_epoch(self, row: Mapping[str, float]) -> None:
        """Take the epoch's results: "return", "val_return", "frames", "updates" (totals of the run), "loss".

        A key that is absent or not finite has no news; the panel keeps showing the last one.
        """
        news = {name: value for name, value in row.items() if math.isfinite(value)}
        self._row.update(news)
        self._epoch_done = True
        if "return" in news:
            self._returns.append(news["return"])
        if "val_return" in news:
            self._val_returns.append(news["val_return"])
        if self._live is not None:
            self._redraw()
        elif self._enabled:
            self._print(self._line(news))

    def message(self, text: str) -> None:
        """Print a line that stays, above the panel."""
        if self._live is not None:
            with _on_a_terminal_that_may_close():
                self._live.console.print(Text(text))
        elif self._enabled:
            self._print(text)

    def tell(self, text: str) -> None:
        """As `message`, of what one has to know in any case: on standard error where progress is not shown."""
        if self._enabled:
            self.message(text)
        else:
            self._print(text, sys.stderr)

    def _print(self, line: str, to: TextIO | None = None) -> None:
        """Print a line. Where output goes into a file and the disk is full, it comes with a later one."""
        self._unsaid.append(line)
        try:
            with _on_a_terminal_that_may_close():
                print("\n".join(self._unsaid), file=to, flush=True)
        except OSError as error:  # and what was to be written is gone
            if not is_full(error):
                raise
        else:
            self._unsaid.clear()

    def _redraw(self) -> None:
        if self._live is not None and time.monotonic() - self._drawn_at >= REDRAW_INTERVAL_S:
            self._drawn_at = time.monotonic()
            with _on_a_terminal_that_may_close():
                self._live.refresh()

    def _line(self, news: Mapping[str, float]) -> str:
        """The finished epoch in one line, aligned with the others."""
        width = len(str(self._epochs))
        frames_per_s, updates_per_s = _rate(self._frames_per_s), _rate(self._updates_per_s)
        epoch_s = _rate(time.monotonic() - self._epoch_started_at)
        return (
            f"epoch {self._epoch + 1:>{width}}/{self._epochs}"
            f"  frames {self._row.get('frames', 0):>10,.0f}  updates {self._row.get('updates', 0):>7,.0f}"
            f"  return {_number(news.get('return')):>7}  val {_number(news.get('val_return')):>7}"
            f"  |  {frames_per_s:>6} frames/s  {updates_per_s:>5} updates/s  {epoch_s:>4} s"
        )

    def _panel(self) -> Panel:
        """The live region: seven lines inside a frame."""
        rows = Table.grid(padding=(0, 1), expand=True)
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(ratio=1, no_wrap=True, overflow="crop")
        rows.add_column(justify="right", no_wrap=True, min_width=11)  # so that the bars do not jump
        rows.add_column(justify="right", no_wrap=True, min_width=14, style="dim")

        done = self._epochs_done()
        rows.add_row(
            "run",
            _bar(done, self._epochs, RUN_STYLE),
            f"epoch {min(self._epoch + 1, self._epochs)}/{self._epochs}",
            f"{100 * done / max(self._epochs, 1):.0f}%",
        )
        rows.add_row(
            "collect",
            _bar(self._collected, self._collect_total, COLLECT_STYLE),
            f"{self._collected:,}/{self._collect_total:,}",
            f"{_rate(self._frames_per_s)} frames/s",
        )
        rows.add_row(
            "learn",
            _bar(self._learned, self._learn_total, LEARN_STYLE),
            f"{self._learned:,}/{self._learn_total:,}",
            f"{_rate(self._updates_per_s)} updates/s",
        )
        for label, history in (("return", self._returns), ("validation", self._val_returns)):
            best = f"best {_number(max(history))}" if history else ""
            latest = Text(_number(history[-1] if history else None), style="bold")
            rows.add_row(label, Text(sparkline(history, SPARK_WIDTH), style=RUN_STYLE), latest, best)

        footer = Table.grid(expand=True)
        footer.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        footer.add_column(justify="right", no_wrap=True, style="dim")
        footer.add_row(Text.assemble(("● ", RUN_STYLE), self._status), self._totals())
        return Panel(
            Group(rows, Text(), footer),
            title=Text(self._run_name, style="bold", overflow="ellipsis"),
            title_align="left",
            subtitle=Text(self._clock(done), style="dim"),
            subtitle_align="right",
            border_style="dim",
            box=ROUNDED,
        )

    def _totals(self) -> str:
        parts = [f"{self._row[name]:,.0f} {name}" for name in ("frames", "updates") if name in self._row]
        if "loss" in self._row:
            parts.append(f"loss {self._row['loss']:.3g}")
        return " · ".join(parts)

    def _clock(self, epochs_done: float) -> str:
        """Elapsed time, and what is left at the mean pace since this process began."""
        elapsed_s = time.monotonic() - self._started_at
        text = f"elapsed {_duration(elapsed_s)}"
        made = epochs_done - (self._first_epoch or 0)
        if made > 0 and epochs_done < self._epochs:
            text += f" · about {_duration(elapsed_s * (self._epochs - epochs_done) / made)} left"
        return text

    def _epochs_done(self) -> float:
        """Epochs finished, with the part of the current one."""
        if self._epoch_done:
            return self._epoch + 1
        bars = ((self._collected, self._collect_total), (self._learned, self._learn_total))
        parts = [min(done / total, 1.0) for done, total in bars if total > 0]
        return self._epoch + (sum(parts) / len(parts) if parts else 0.0)


def sparkline(values: Sequence[float], width: int) -> str:
    """The whole of `values` as at most `width` block characters, each the mean of its share, lowest to highest."""
    if not values:
        return ""
    means = np.array([part.mean() for part in np.array_split(np.asarray(values, float), min(width, len(values)))])
    low, high = means.min(), means.max()
    if low == high:
        return SPARKS[len(SPARKS) // 2] * len(means)
    levels = np.rint((means - low) / (high - low) * (len(SPARKS) - 1)).astype(int)
    return "".join(SPARKS[level] for level in levels)


def _is_live_terminal() -> bool:
    """Whether a panel can be redrawn in place on standard output, and its characters written."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal and sys.stdout.encoding.lower().startswith("utf")


@contextmanager
def _on_a_terminal_that_may_close() -> Iterator[None]:
    """Where what is written within finds its terminal closed, all output of the process goes nowhere from then on."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if _was_a_terminal(stream)]
        if not terminals:  # it is a disk that has failed
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for terminal in terminals:
            os.dup2(nowhere, terminal)
        os.close(nowhere)


def _was_a_terminal(stream: TextIO) -> bool:
    """Whether output goes to a terminal, or went there: one that is closed says that it is none."""
    with suppress(OSError, ValueError):  # of one that is no file
        return S_ISCHR(os.fstat(stream.fileno()).st_mode)
    return False


def _bar(done: float, total: float, style: str) -> ProgressBar:
    """A bar that is empty, not pulsing or full, when there is nothing to do."""
    return ProgressBar(total=total or 1, completed=min(done, total), complete_style=style, finished_style=style)


def _number(value: float | None) -> str:
    """A return in few characters, two decimals while they matter; "-" for none."""
    if value is None:
        return "-"
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.1f}"


def _rate(value: float) -> str:
    """A rate or a time: one decimal below 10, none above."""
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))
