"""SIGTERM and SIGHUP: a run ends in a line and with the exit status by which job queues start it again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from amago_ray.driver.preemption import RESUMABLE, Preempted, Preemption, as_ctrl_c, starting
from amago_ray.watch.run_status import run_status

pytestmark = pytest.mark.usefixtures("signals_as_before")
TESTS = Path(__file__).parents[1]
RUN = """
import sys
from pathlib import Path
from conftest import TINY_NETWORKS, small_settings
from amago_ray import Experiment, config
config.load([], TINY_NETWORKS)
settings = {"verbose": True, "epochs": 100_000, "compile_acting": "never"}
settings |= {"num_rollout_workers": 1, "num_replay_shards": 1}
with Experiment(**small_settings(Path(sys.argv[1])) | settings) as experiment:
    experiment.start(resume="auto")
"""


def tell_to_end(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_start_that_is_told_to_end_is_undone(number: signal.Signals, swallowed: bool) -> None:
    done: list[str] = []
    with pytest.raises(Preempted) as ended, starting(lambda: done.append("undone"), done.append, done.append):
        try:
            tell_to_end(number)
        except KeyboardInterrupt:
            if not swallowed:
                raise
    assert ended.value.code == RESUMABLE
    assert done == [
        f"{number.name} while it started",
        "undone",
        f"told to end ({number.name}) while it started: --resume auto starts again (exit status 75)",
    ]
    assert signal.getsignal(number) is signal.SIG_DFL


def test_ctrl_c_while_it_starts_is_recorded_and_an_error_is_not() -> None:
    for error, recorded in ((KeyboardInterrupt(), ["Ctrl-C while it started"]), (ValueError("bad"), [])):
        done: list[str] = []
        with pytest.raises(type(error)), starting(lambda: None, pytest.fail, done.append):
            raise error
        assert done == recorded


def test_a_handler_that_was_not_set_from_python_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python tells of it as None, which it does not take back."""
    set_handler = signal.signal

    def told_as_none(number: int, handler: Any) -> Any:
        before = set_handler(number, handler)
        return before if number == signal.SIGTERM else None

    monkeypatch.setattr(signal, "signal", told_as_none)
    with Preemption(), starting(lambda: None, pytest.fail, pytest.fail):
        pass


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    """Below `nohup`; SIGTERM is heard all the same."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    preemption = Preemption()
    with starting(lambda: None, pytest.fail, pytest.fail):
        tell_to_end(signal.SIGHUP)
    with preemption:
        tell_to_end(signal.SIGHUP)
        preemption.check()
        tell_to_end()
        with pytest.raises(Preempted) as ended:
            preemption.check()
    assert ended.value.by == "SIGTERM"
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_it_is_no_error_of_what_was_being_tried() -> None:
    """Environments may raise SystemExit, which is taken for their failure."""
    with pytest.raises(Preempted), starting(lambda: None, lambda text: None, lambda text: None):
        try:
            tell_to_end()
        except (Exception, SystemExit) as error:
            raise ValueError("the environment failed") from error


def test_a_start_that_fails_is_undone_and_says_why_even_if_it_is_told_to_end_meanwhile() -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match="no such setting"), starting(tell_to_end, said.append, said.append):
        raise ValueError("no such setting")
    assert not said


def test_between_its_start_and_its_training_a_run_ends_with_the_same_status() -> None:
    with starting(lambda: None, lambda text: None, lambda text: None):
        pass
    for number in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(Preempted):
            tell_to_end(number)


def test_a_handler_of_the_users_own_is_left() -> None:
    def own(number: int, frame: FrameType | None) -> None: ...

    signal.signal(signal.SIGTERM, own)
    with starting(lambda: None, lambda text: None, lambda text: None):
        assert signal.getsignal(signal.SIGTERM) is not own
    assert signal.getsignal(signal.SIGTERM) is own


def test_a_run_may_start_in_another_thread() -> None:
    done: list[Any] = []

    def start() -> None:
        with starting(lambda: None, done.append, done.append):
            done.append("started")

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert done == ["started"] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_saves_on_ctrl_c_does_so_when_it_is_told_to_end(number: signal.Signals) -> None:
    """With a handler of its own for Ctrl-C, after which it returns and says so, as Ray Tune does."""
    said: list[str] = []
    saved = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: saved.set())
    try:
        with (
            pytest.raises(Preempted if number != signal.SIGINT else KeyboardInterrupt),
            as_ctrl_c(said.append, "--resume goes on"),
        ):
            os.kill(os.getpid(), number)
            assert saved.wait(5.0)
            raise KeyboardInterrupt("--resume goes on")
    finally:
        signal.signal(signal.SIGINT, before)
    assert said == [f"told to end ({number.name}): --resume goes on (exit status 75)"] * (number != signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.processes
@pytest.mark.parametrize(
    ("number", "after", "code", "told"),
    [
        (signal.SIGHUP, "connecting to Ray", RUN, "told to end (SIGHUP) while it started"),
        (signal.SIGTERM, "rollout worker", RUN, "told to end (SIGTERM) while it started"),
        (signal.SIGTERM, "epoch      1/", RUN + "    experiment.learn()", "is saved, --resume auto goes on from there"),
    ],
    ids=["connecting", "starting", "training"],
)
def test_a_process_whose_whole_group_is_told_to_end_ends_with_the_status(
    tmp_path: Path, number: signal.Signals, after: str, code: str, told: str
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
        os.killpg(process.pid, number)
        left = process.stdout.read()
    assert seen and process.returncode == RESUMABLE, left
    assert "Traceback" not in left and "C++" not in left
    assert told in left
    if after != "connecting to Ray":  # the folder is made once Ray is there
        status = run_status(tmp_path / "run")
        reason = "SIGTERM while it started" if after == "rollout worker" else "SIGTERM"
        assert (status.state, status.reason) == ("stopped", reason)
