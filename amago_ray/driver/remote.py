"""Ray calls in flight: timeouts, and telling a dead process from a bug."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError

from amago_ray import config
from amago_ray.driver.last_words import last_words
from amago_ray.messages import SampledSequences
from amago_ray.pending import CallTimeout, Pending, ProcessDied
from amago_ray.replay.sampling.sources import Available
from amago_ray.replay.storage.trajectory_pack import PackedTrajectories

T = TypeVar("T")


class RemoteCall(Generic[T]):
    """A `Pending` over one Ray object reference. `what` names it in errors.

    role: of the process that is asked, whose last words an error is to give; None for an error without.
    """

    def __init__(self, ref: ray.ObjectRef, what: str, role: type | None = None):
        self.ref = ref
        self._what, self._role = what, role

    def done(self) -> bool:
        return bool(ray.wait([self.ref], timeout=0, fetch_local=False)[0])

    def result(self, timeout_s: float | None = None) -> T:
        try:
            return ray.get(self.ref, timeout=timeout_s)
        except GetTimeoutError as error:
            raise CallTimeout(f"{self._what} did not answer within {timeout_s:g} s") from error
        # A dead actor, one that is restarting ("unavailable"), its node, or an object that went down with it.
        except (RayActorError, WorkerCrashedError, ObjectLostError) as error:
            said = last_words(self._role) if self._role is not None else ""
            raise ProcessDied(f"{self._what}: {said or _first_line(error)}") from error
        except RayTaskError as error:
            if isinstance(error.cause, (ProcessDied, CallTimeout)):
                raise error.cause from error
            raise as_cause(error) from error

    def forget(self) -> None:
        """Nobody is going to ask for the result. Ray prints an error that nobody has looked at, with its traceback."""
        self.ref.future()  # looks at it when it is there


def as_cause(error: RayTaskError) -> Exception:
    """The exception that the remote code raised, with the remote traceback as a note."""
    if not isinstance(error.cause, Exception):
        return error
    cause = config.as_raised(error.cause)
    cause.add_note(config.without_gin_calls(str(error)))
    return cause


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def wait_any(calls: Sequence[RemoteCall[Any]], timeout_s: float) -> list[RemoteCall[Any]]:
    """The calls that are done, after waiting at most `timeout_s` for one."""
    if not calls:
        return []
    ready, _ = ray.wait([call.ref for call in calls], num_returns=1, timeout=timeout_s, fetch_local=False)
    if not ready:
        return []
    done = set(ray.wait([call.ref for call in calls], num_returns=len(calls), timeout=0, fetch_local=False)[0])
    return [call for call in calls if call.ref in done]


class RemoteShard:
    """A `ReplayShard` actor behind the interface that writers and readers use."""

    def __init__(self, actor: ActorHandle, index: int):
        self._actor = actor
        self._what = f"replay shard {index}"

    def push(self, packed: PackedTrajectories) -> Pending[int]:
        return RemoteCall(self._actor.push.remote(packed), self._what)

    def available(self) -> Pending[tuple[Available, ...]]:
        return RemoteCall(self._actor.available.remote(), self._what)

    def sample(
        self, num_sequences: int, version: int, draw: tuple[int, ...], source: int
    ) -> Pending[SampledSequences | None]:
        return RemoteCall(self._actor.sample.remote(num_sequences, version, draw, source), self._what)

    def update_priorities(
        self, life: int, numbers: np.ndarray, priorities: np.ndarray, largest: float
    ) -> Pending[None]:
        return RemoteCall(self._actor.update_priorities.remote(life, numbers, priorities, largest), self._what)
