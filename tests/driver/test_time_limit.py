"""What a user's code does in the driver has a limit, and leaves other people's alarms alone."""

from __future__ import annotations

import signal
import threading
from typing import Any

import gymnasium as gym
import pytest

from amago_ray.driver.probe import probe
from amago_ray.driver.time_limit import time_limit
from amago_ray.envs.builtin import Counting
from amago_ray.settings import ExperimentSettings


class NeverThere(gym.Wrapper):
    """An environment whose constructor waits for a server that nobody has started."""

    def __init__(self) -> None:
        try:
            threading.Event().wait()
        except Exception:  # as simulators' own retries do
            pytest.fail("an Exception could be caught here")
        super().__init__(Counting(6))


@pytest.mark.parametrize("name", ["make_train_env", "make_val_env"])
def test_a_constructor_that_waits_for_ever_is_told(name: str) -> None:
    makers: dict[str, Any] = {"make_train_env": Counting, "make_val_env": Counting, name: NeverThere}
    settings = ExperimentSettings(run_name="run", max_seq_len=4, call_timeout_s=0.2, **makers)
    with pytest.raises(ValueError, match=rf"Experiment.{name}: .*within call_timeout_s=0.2 s; does it wait"):
        probe(settings)


def test_what_is_in_time_is_left_alone_and_so_is_an_alarm_of_somebody_else() -> None:
    rang = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rang.set())
    outer = signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with time_limit(1000.0, "too long"):
            pass
        assert rang.wait(60)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *outer)


def test_another_thread_has_no_limit() -> None:
    done = []

    def work() -> None:
        with time_limit(1e-6, "too long"):
            done.append(sum(range(10_000)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert done
