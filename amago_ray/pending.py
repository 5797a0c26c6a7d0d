"""Results that are on their way, whoever computes them.

Rollout, replay and learner talk to one another through these, so that each runs with Ray (`driver/remote.py`) and
without.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class ProcessDied(RuntimeError):
    """The process that was asked is gone or unreachable; asking again may find its successor. Never means a bug."""


class ShardAway(ProcessDied):
    """A replay shard has been gone, or its disk full, for too long; who says so is well, and keeps what it had."""


class CallTimeout(RuntimeError):
    """The process that was asked did not answer in time."""


class Pending(Protocol[T_co]):
    """A call in flight."""

    def done(self) -> bool:
        """Whether `result` would return at once."""
        ...

    def result(self, timeout_s: float | None = None) -> T_co:
        """Wait for the answer. Raises ProcessDied, CallTimeout, or whatever the call itself raised."""
        ...


class Ready(Generic[T]):
    """A `Pending` whose answer is already there."""

    def __init__(self, value: T):
        self._value = value

    def done(self) -> bool:
        return True

    def result(self, timeout_s: float | None = None) -> T:
        return self._value
