"""What can be driven: work in progress on some processes, such as a collection, a learning or an evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from amago_ray.driver.remote import RemoteCall, wait_any

POLL_INTERVAL_S = 0.1


class Job(Protocol):
    """Work in progress on some processes."""

    @property
    def finished(self) -> bool: ...

    def calls(self) -> list[RemoteCall]:
        """The calls to wait on; starts new ones as needed."""
        ...

    def take(self, call: RemoteCall) -> None:
        """Handle one of `calls` that is done."""
        ...


class CollectJob(Job, Protocol):
    """A job whose progress is counted in timesteps."""

    @property
    def done(self) -> int: ...


class LearnJob(Job, Protocol):
    """A job whose progress is counted in batches."""

    @property
    def done(self) -> int: ...

    def poll_progress(self) -> None:
        """Refresh `done` without waiting."""
        ...


def run_jobs(jobs: Sequence[Job], tick: Callable[[], None]) -> None:
    """Drive jobs until all are finished, calling `tick` several times a second.

    Where one fails, nobody waits for what else is in flight: the others may fail as well, and one speaks for all.
    """
    in_flight: list[Sequence[RemoteCall]] = [()] * len(jobs)
    try:
        while not all(job.finished for job in jobs):
            for number, job in enumerate(jobs):
                calls = in_flight[number] = job.calls()
                if not calls:
                    time.sleep(POLL_INTERVAL_S / len(jobs))  # nobody can be asked just now
                for call in wait_any(calls, POLL_INTERVAL_S / len(jobs)):
                    job.take(call)
            tick()
    except Exception:
        for call in (call for calls in in_flight for call in calls):
            call.forget()
        raise
