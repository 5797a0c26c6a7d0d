"""Environments for the tests of processes. Without PyTorch, which their processes would have to import."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from amago_ray.envs.builtin import Counting


class Drawing(gym.Env):
    """Observes numbers that it draws, in rollouts of 3, 4 or 5 steps, and does `fault` at its step `at`.

    Counted from 1 since it was built, resets too where `in_reset`. Fault "raise" can be had in every mode; "hang",
    "exit" and "kill" are as `fault` in processes what "raise" is elsewhere.
    """

    def __init__(self, fault: str = "", at: int = 0, in_reset: bool = False) -> None:
        self.observation_space = spaces.Dict(
            image=spaces.Box(0, 255, (8, 8, 3), np.uint8),
            numbers=spaces.Tuple((spaces.Box(-1, 1, (2,), np.float64), spaces.Discrete(5, start=-2))),
        )
        self.action_space = spaces.Discrete(4, start=1)
        self.fault, self.at, self.in_reset = fault, at, in_reset
        self.image = np.zeros((8, 8, 3), np.uint8)  # one array, which is changed in place
        self.calls = {True: 0, False: 0}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._count(True)
        self.left = int(self.np_random.integers(3, 6))
        return self._observe(), {"AMAGO_LOG_METRIC Length": self.left}

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict]:
        assert self.action_space.contains(action)
        self._count(False)
        self.left -= 1
        last, reward = self.left == 0, float(self.np_random.random()) + float(action)
        terminates = bool(self.np_random.random() < 0.5)
        info = {"AMAGO_LOG_METRIC Last Action": int(action)} if last else {"large": np.zeros(100_000)}
        return self._observe(), np.array([reward]), last and terminates, last and not terminates, info

    def _observe(self) -> Any:
        self.image[:] = self.np_random.integers(0, 256, (8, 8, 3), np.uint8)
        numbers = (self.np_random.uniform(-1, 1, 2), np.int64(self.np_random.integers(-2, 3)))
        return {"image": self.image, "numbers": numbers}

    def _count(self, reset: bool) -> None:
        self.calls[reset] += 1
        if self.in_reset == reset and self.calls[reset] == self.at:
            do(self.fault)


def do(fault: str) -> None:
    """Break down."""
    match fault:
        case "hang":
            while True:  # not even in a call that a signal would end
                pass
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise OSError("the simulator fell over")


class Continuing(gym.Env):
    """One number to observe and one of two actions; a rollout lasts `length` steps, and nothing is remembered."""

    def __init__(self, length: int = 5) -> None:
        self.observation_space, self.action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.count += 1
        return np.zeros(1, np.float32), self.reward(), self.count == self.length, False, self.info()

    def reward(self) -> float:
        return 0.0

    def info(self) -> dict[str, Any]:
        return {}


class Global(Continuing):
    """Is rewarded with what it draws from the streams that all of a process share."""

    def reward(self) -> float:
        return random.random() + 10 * np.random.random()


class Telling(Continuing):
    """Logs what its process is like."""

    def info(self) -> dict[str, Any]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        shared = int(Path("/proc/self/statm").read_text().split()[2])
        return {
            "AMAGO_LOG_METRIC torch": "torch" in sys.modules or "ray" in sys.modules,
            "AMAGO_LOG_METRIC threads": threading.active_count(),
            "AMAGO_LOG_METRIC MB": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            "AMAGO_LOG_METRIC own MB": (pages - shared) * os.sysconf("SC_PAGE_SIZE") / 1e6,
            "AMAGO_LOG_METRIC pid": os.getpid(),
        }


class Parent(Continuing):
    """Starts a process of its own, writes both ids into a file of `folder`, and does not end when it is told to."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        child = subprocess.Popen(["sleep", "600"])
        Path(folder, str(os.getpid())).write_text(f"{os.getpid()} {child.pid}")

    def close(self) -> None:
        time.sleep(600)


class Stumbling(Counting):
    """Never makes a step."""

    def step(self, action: Any) -> Any:
        raise OSError("the simulator fell over")


class Freezing(Counting):
    """Hangs in every fourth rollout since it was built."""

    def step(self, action: Any) -> Any:
        result = super().step(action)
        if result[0]["rollout"] == 3 and result[0]["step"] == 2:
            do("hang")
        return result


class OwnError(Exception):
    """Cannot be made again from what it says."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("no license")


class Unbuildable(Continuing):
    def __init__(self, how: str) -> None:
        super().__init__()
        if how == "ValueError":
            raise ValueError("there is no level 9")
        if how == "OwnError":
            raise OwnError(1, 2)
        do(how)


class Noting(Continuing):
    """Leaves a file named by its process, and by how it was built."""

    def __init__(self, folder: Path, env_name: str) -> None:
        super().__init__()
        self.env_name = env_name
        (folder / f"{os.getpid()}-{env_name}-{time.monotonic_ns()}").touch()


class Wide(Continuing):
    """Has another observation space."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-1, 1, (2,))
