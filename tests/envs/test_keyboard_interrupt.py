"""An environment that raises KeyboardInterrupt: a failure where no Ctrl-C can come, in Ray's workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from process_envs import Continuing

from amago_ray.envs.makers import make_pool

SCRIPT = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
from test_keyboard_interrupt import failures
print(*failures(), sep="|")
"""


class Quitting(Continuing):
    """Somebody presses the key that means quit, once."""

    pressed = False

    def step(self, action: Any) -> Any:
        if not Quitting.pressed:
            Quitting.pressed = True
            raise KeyboardInterrupt("quit was pressed")
        return super().step(action)


def failures() -> tuple[str, list[bool]]:
    """What the pool says of it, and what follows."""
    Quitting.pressed = False
    pool, failed = make_pool(Quitting, 1, 0, seed=0), []
    pool.reset()
    for _ in range(2):
        transition = pool.step(np.zeros(1, np.int64))
        failed.append(bool(transition.failed[0]))
        pool.begin(transition.terminated | transition.truncated)
    return pool.take_failure(), failed


def test_where_ctrl_c_may_come_it_is_that() -> None:
    with pytest.raises(KeyboardInterrupt, match="quit was pressed"):
        failures()


@pytest.mark.processes
def test_in_a_driver_for_which_it_is_blocked_it_is_that_too() -> None:
    """As in a job that is submitted: SIGTERM ends a start by a KeyboardInterrupt, which no environment may swallow."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt: quit was pressed" and not done.stdout


@pytest.mark.processes
def test_rays_workers_are_such(ray_instance: None) -> None:
    told, failed = ray.get(ray.remote(failures).remote())
    assert told == "environment Quitting failed with KeyboardInterrupt: quit was pressed" and failed == [True, False]
