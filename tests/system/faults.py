"""Environments and agents that fail on order, in a module that the processes of a run can import.

An *order* is a file with the id of a process in it. Whoever finds it takes it away, so that it is carried out once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import gin
import gymnasium as gym

from amago_ray.agent.actor_critic import Agent, AgentLoss
from amago_ray.agent.policy import TrainingBatch
from amago_ray.envs.builtin import Counting


def taken_order(order: Path, mine_only: bool = False) -> int | None:
    """The process id in an order that is there, which this call takes away. mine_only: leave those of others alone."""
    try:
        pid = int(order.read_text())
    except (FileNotFoundError, ValueError):
        return None
    if mine_only and pid != os.getpid():
        return None
    try:
        order.unlink()
    except FileNotFoundError:  # another process was faster
        return None
    return pid


def give_order(order: Path, pid: int) -> None:
    temporary = order.with_suffix(".tmp")
    temporary.write_text(str(pid))
    temporary.replace(order)


class KillsInStep(gym.Wrapper):
    """Counting that kills the process named in an order, possibly its own, when it is `steps` into a new life."""

    def __init__(self, order: Path, steps: int = 30):
        super().__init__(Counting(6))
        self._order, self._steps = order, steps

    def step(self, action: Any) -> Any:
        self._steps -= 1
        if self._steps <= 0 and (pid := taken_order(self._order)):
            os.kill(pid, signal.SIGKILL)
        return self.env.step(action)


class HangsInStep(gym.Wrapper):
    """Counting that never comes back from a step when its process is named in an order."""

    def __init__(self, order: Path):
        super().__init__(Counting(6))
        self._order = order

    def step(self, action: Any) -> Any:
        if taken_order(self._order, mine_only=True):
            threading.Event().wait()
        return self.env.step(action)


class EndsItsProcess(gym.Wrapper):
    """Counting that ends the process which builds it, saying why, the first time; not `healthy_in`.

    died: a file that is there once it has.
    """

    def __init__(self, healthy_in: int, died: Path):
        super().__init__(Counting(6))
        if os.getpid() != healthy_in and not died.exists():
            died.touch()
            print("no licence for this simulator", file=sys.stderr, flush=True)
            os._exit(3)


class RaisesNowAndThen(gym.Wrapper):
    """Counting that raises at every `every`-th step, but not in process `healthy_in`."""

    def __init__(self, every: int, healthy_in: int):
        super().__init__(Counting(6))
        self._every, self._healthy = every, os.getpid() == healthy_in
        self._steps = 0

    def step(self, action: Any) -> Any:
        self._steps += 1
        if not self._healthy and self._steps % self._every == 0:
            raise ZeroDivisionError("the simulator crashed")
        return self.env.step(action)


@gin.configurable
class FaultyAgent(Agent):
    """An agent whose learner dies or hangs in `forward`, or dies while it is saved, or kills another, as orders say.

    orders: folder of the orders, which have the names "forward", "hang", "save" and "kill".
    """

    def __init__(self, *args: Any, orders: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._orders = Path(orders)

    def forward(self, batch: TrainingBatch, log: bool = False) -> AgentLoss:
        if taken_order(self._orders / "hang", mine_only=True):
            threading.Event().wait()
        if pid := taken_order(self._orders / "forward", mine_only=True) or taken_order(self._orders / "kill"):
            os.kill(pid, signal.SIGKILL)
        return super().forward(batch, log)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        if pid := taken_order(self._orders / "save", mine_only=True):
            os.kill(pid, signal.SIGKILL)
        return super().state_dict(*args, **kwargs)


@gin.configurable
class BuggyAgent(Agent):
    """An agent with a bug in its loss, which batches of two do not show, such as are tried before a run starts."""

    def forward(self, batch: TrainingBatch, log: bool = False) -> AgentLoss:
        if len(batch.mask) > 2:
            return super().forward(batch, log=log / 0)
        return super().forward(batch, log)
