"""The display: a live panel on a terminal, a line per epoch in a log, and nothing when it is off."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import pytest

from amago_ray.watch.display import Display, sparkline


class Terminal(io.TextIOWrapper):
    """A standard output that says it is a terminal, and keeps what is written."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def written(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    return Terminal()


def run_two_epochs(*, enabled: bool) -> None:
    with Display("lake", epochs=12, enabled=enabled) as display:
        for epoch in (8, 9):
            display.start_epoch(epoch, collect_total=1000, learn_total=100)
            display.update(
                collected=960, learned=24, frames_per_s=1830.4, updates_per_s=24.4, status="waiting for replay"
            )
            display.finish_epoch({"return": 2.41, "frames": 1440 * (epoch + 1), "updates": 100, "loss": 0.5})
        display.message("rollout worker 2 died (SIGKILL); restarted [1/3]")


def test_a_log_gets_one_aligned_line_per_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    run_two_epochs(enabled=True)
    first, second, message = capsys.readouterr().out.splitlines()
    assert re.sub(" +", " ", first).startswith(
        "epoch 9/12 frames 12,960 updates 100 return 2.41 val - | 1,830 frames/s 24 updates/s "
    )
    assert second.startswith("epoch 10/12") and len(first) == len(second)
    assert message == "rollout worker 2 died (SIGKILL); restarted [1/3]"


def test_a_value_that_is_not_finite_is_no_news(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("lake", epochs=1, enabled=True) as display:
        display.start_epoch(0, collect_total=0, learn_total=0)
        display.finish_epoch({"return": float("nan"), "val_return": -1234.56})
    assert re.search(r"return +-  val -1,234\.6 ", capsys.readouterr().out)


def test_nothing_is_printed_when_off(capsys: pytest.CaptureFixture[str], terminal: Terminal) -> None:
    run_two_epochs(enabled=False)
    with redirect_stdout(terminal):
        run_two_epochs(enabled=False)
    assert terminal.written == ""
    assert capsys.readouterr() == ("", "")


def test_what_goes_wrong_is_told_also_when_off(capsys: pytest.CaptureFixture[str]) -> None:
    Display("lake", epochs=1, enabled=True).tell("a worker died")
    assert capsys.readouterr() == ("a worker died\n", "")
    Display("lake", epochs=1, enabled=False).tell("a worker died")
    assert capsys.readouterr() == ("", "a worker died\n")


def test_a_terminal_that_is_closed_is_no_error(terminal: Terminal) -> None:
    """A run is told to end then, and saves."""
    ours, its = os.openpty()
    with open(its, "w", encoding="utf-8") as output, redirect_stdout(output), redirect_stderr(io.StringIO()):
        assert output.isatty()
        with Display("lake", epochs=2, enabled=True) as display:
            display.message("before")
            seen = b""
            while b"before" not in seen:  # it comes in pieces
                seen += os.read(ours, 10_000)
            os.close(ours)
            display.message("after")
            display.start_epoch(0, collect_total=1, learn_total=1)
            display.finish_epoch({"return": 1.0})
        display.tell("at the end")
        print("and somebody else", flush=True)


def test_a_disk_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class File(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stdout", File())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(OSError, match="Input/output error"):
        Display("lake", epochs=1, enabled=True).message("one")


def test_a_terminal_gets_a_panel_within_80_columns(terminal: Terminal) -> None:
    with redirect_stdout(terminal):
        run_two_epochs(enabled=True)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.written)
    panel = text[text.rindex("╭") : text.rindex("╯")]
    for expected in ("lake", "epoch 10/12", "83%", "960/1,000", "1,830 frames/s", "24 updates/s", "best 2.41"):
        assert expected in panel
    assert "finished" in panel and "14,400 frames · 100 updates · loss 0.5" in panel
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", text))
    assert "restarted [1/3]" in text and "waiting for replay" not in panel
    assert terminal.written.count("\x1b[?25h") >= 1  # the cursor is back


def test_a_failure_leaves_the_panel_and_passes(terminal: Terminal) -> None:
    with redirect_stdout(terminal), pytest.raises(RuntimeError), Display("lake", epochs=2, enabled=True) as display:
        display.start_epoch(0, collect_total=10, learn_total=10)
        raise RuntimeError
    assert "failed" in terminal.written


@pytest.mark.parametrize("told", [KeyboardInterrupt, SystemExit])
def test_an_end_that_was_asked_for_is_no_failure(terminal: Terminal, told: type[BaseException]) -> None:
    with redirect_stdout(terminal), pytest.raises(told), Display("lake", epochs=2, enabled=True) as display:
        display.start_epoch(0, collect_total=10, learn_total=10)
        raise told
    assert "stopped" in terminal.written and "failed" not in terminal.written


def test_redraws_are_few_and_updates_cheap(terminal: Terminal) -> None:
    with redirect_stdout(terminal), Display("lake", epochs=2, enabled=True) as display:
        display.start_epoch(0, collect_total=10_000, learn_total=0)
        began = time.monotonic()
        for step in range(10_000):
            display.update(collected=step)
        elapsed_s = time.monotonic() - began
    assert 2 <= terminal.written.count("╭") <= 4 * elapsed_s + 4


def test_sparkline_spans_the_whole_history() -> None:
    assert sparkline([], 8) == ""
    assert sparkline([3.0, 3.0], 8) == "▅▅"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(list(range(1000)), 8) == "▁▂▃▄▅▆▇█"


def test_what_is_said_while_the_disk_is_full_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is a file in many a job, on the disk that the run itself fills."""

    class File(io.StringIO):
        full = False

        def flush(self) -> None:
            if self.full:
                self.truncate(self.seek(self.whole))
                raise OSError(errno.ENOSPC, "No space left on device")
            self.whole = self.tell()

    file = File()
    monkeypatch.setattr(sys, "stdout", file)
    display = Display("run", 3, enabled=True)
    display.message("one")
    file.full = True
    display.message("two")
    display.finish_epoch({"return": 1.0})
    file.full = False
    display.message("four")
    assert file.getvalue().splitlines()[:2] == ["one", "two"] and "epoch 1/3" in file.getvalue()
    assert file.getvalue().splitlines()[3:] == ["four"]
