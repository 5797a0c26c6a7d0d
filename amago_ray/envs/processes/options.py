"""What can be chosen about environments in processes of their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnvProcesses:
    """How environments run in processes of their own.

    timeout_s: seconds that a step or a reset may take; None for no limit. The process is killed then, and the
        environment rebuilt. To build one, imports included, may take ten times as long, and a minute at least.
    max_rollouts: after so many rollouts a process is replaced by a new one; None for never.
    double_buffer: the environments are two fixed halves, and while one steps the policy acts for the other.
    """

    timeout_s: float | None = None
    max_rollouts: int | None = None
    double_buffer: bool = True

    @property
    def build_timeout_s(self) -> float | None:
        return None if self.timeout_s is None else max(10 * self.timeout_s, 60.0)
