"""SIGTERM while a run starts: it ends in a line and with the exit status by which job queues start it again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from amago_ray.driver.preemption import RESUMABLE, Preempted, as_ctrl_c, starting

TESTS = Path(__file__).parents[1]
RUN = """
import sys
from pathlib import Path
from conftest import TINY_NETWORKS, small_settings
from amago_ray import Experiment, config
config.load([], TINY_NETWORKS)
settings = {"verbose": True, "epochs": 100_000, "compile_acting": "never"}
with Experiment(**small_settings(Path(sys.argv[1])) | settings) as experiment:
    experiment.start(resume="auto")
"""


@pytest.fixture(autouse=True)
def sigterm_as_before() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def tell_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_start_that_is_told_to_end_is_undone(swallowed: bool) -> None:
    done: list[str] = []
    with pytest.raises(Preempted) as ended, starting(lambda: done.append("undone"), done.append):
        try:
            tell_to_end()
        except KeyboardInterrupt:
            if not swallowed:
                raise
    assert ended.value.code == RESUMABLE
    assert done == [
        "undone", "told to end (SIGTERM) while it started: --resume auto starts again (exit status 75)"
    ]  # fmt: skip
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_it_is_no_error_of_what_was_being_tried() -> None:
    """Environments may raise SystemExit, which is taken for their failure."""
    with pytest.raises(Preempted), starting(lambda: None, lambda text: None):
        try:
            tell_to_end()
        except (Exception, SystemExit) as error:
            raise ValueError("the environment failed") from error


def test_a_start_that_fails_is_undone_and_says_why_even_if_it_is_told_to_end_meanwhile() -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match="no such setting"), starting(tell_to_end, said.append):
        raise ValueError("no such setting")
    assert not said


def test_between_its_start_and_its_training_a_run_ends_with_the_same_status() -> None:
    with starting(lambda: None, lambda text: None):
        pass
    with pytest.raises(Preempted):
        tell_to_end()


def test_a_handler_of_the_users_own_is_left() -> None:
    def own(number: int, frame: FrameType | None) -> None: ...

    signal.signal(signal.SIGTERM, own)
    with starting(lambda: None, lambda text: None):
        assert signal.getsignal(signal.SIGTERM) is not own
    assert signal.getsignal(signal.SIGTERM) is own


def test_a_run_may_start_in_another_thread() -> None:
    done: list[Any] = []

    def start() -> None:
        with starting(lambda: None, done.append):
            done.append("started")

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert done == ["started"] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_saves_on_ctrl_c_does_so_when_it_is_told_to_end(number: signal.Signals) -> None:
    """With a handler of its own for Ctrl-C, after which it returns and says so, as Ray Tune does."""
    said: list[str] = []
    saved = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: saved.set())
    try:
        with (
            pytest.raises(Preempted if number == signal.SIGTERM else KeyboardInterrupt),
            as_ctrl_c(said.append, "--resume goes on"),
        ):
            os.kill(os.getpid(), number)
            assert saved.wait(5.0)
            raise KeyboardInterrupt("--resume goes on")
    finally:
        signal.signal(signal.SIGINT, before)
    assert said == ["told to end (SIGTERM): --resume goes on (exit status 75)"] * (number == signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.processes
@pytest.mark.parametrize(
    ("after", "code", "told"),
    [
        ("connecting to Ray", RUN, "told to end (SIGTERM) while it started"),
        ("rollout worker", RUN, "told to end (SIGTERM) while it started"),
        ("epoch      1/", RUN + "    experiment.learn()", "is saved, --resume auto goes on from there"),
    ],
    ids=["connecting", "starting", "training"],
)
def test_a_process_whose_whole_group_is_told_to_end_ends_with_the_status(
    tmp_path: Path, after: str, code: str, told: str
) -> None:
    """As `timeout` and supervisors do it, and a terminal: Ray's processes are needed for saving."""
    paths = os.pathsep.join(filter(None, (str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(tmp_path)], env=os.environ | {"PYTHONPATH": paths}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        seen = next((line for line in process.stdout if after in line), "")
        os.killpg(process.pid, signal.SIGTERM)
        left = process.stdout.read()
    assert seen and process.returncode == RESUMABLE, left
    assert "Traceback" not in left and "C++" not in left
    assert told in left
