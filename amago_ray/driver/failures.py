"""What is done when a process fails: the decisions, apart from the mechanism that carries them out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum, auto

from amago_ray.driver.placement import LEARNER, SHARD, WORKER
from amago_ray.pending import CallTimeout, ProcessDied


class Decision(Enum):
    """What to do about a failure.

    RETRY: Ray restarts the process; ask it again later, and others meanwhile. RESTART: it hangs; kill it, so that Ray
    starts it anew. REBUILD: end the whole group and build another from the newest training state. RAISE: the run ends.
    """

    RETRY = auto()
    RESTART = auto()
    REBUILD = auto()
    RAISE = auto()


@dataclass(frozen=True)
class Rule:
    """A decision, and how often in a row it is taken for one process before the run ends; None for ever."""

    decision: Decision
    at_most: int | None


RULES: dict[tuple[str, type[Exception]], Rule] = {
    (WORKER, ProcessDied): Rule(Decision.RETRY, at_most=10),
    (WORKER, CallTimeout): Rule(Decision.RESTART, at_most=10),
    (SHARD, ProcessDied): Rule(Decision.RETRY, at_most=None),  # sampling goes on over the others, however long it takes
    (SHARD, CallTimeout): Rule(Decision.RESTART, at_most=10),
    (LEARNER, ProcessDied): Rule(Decision.REBUILD, at_most=10),
    (LEARNER, CallTimeout): Rule(Decision.REBUILD, at_most=10),
}

# What that means to users: what dies, what happens, what is lost at most. docs/failures.md shows it.
CONSEQUENCES: tuple[tuple[str, str, str], ...] = (
    (
        "an environment (exception, NaN, wrong shape; under `env_mode='processes'` a hang, or its process's end)",
        "it alone is rebuilt; after 5 failures in a row the run stops with its traceback; the check before the start "
        "is as patient",
        "its unfinished trajectory",
    ),
    (
        "a rollout worker, or one that is silent for `call_timeout_s`",
        "Ray restarts it; the others take over its share",
        "its unfinished trajectories",
    ),
    (
        "a machine, or its network",
        "its workers wait for another or for its return; the others take over their share",
        "their unfinished trajectories",
    ),
    (
        "nothing yet, but Ray was told that a machine goes (`ray drain-node`, a spot notice)",
        "its workers move at once; where learners or shards are on it, the next epoch is saved",
        "unfinished trajectories",
    ),
    (
        "the disk: it is full",
        "what was refused waits in memory and is tried again: trajectories, rows, training states; told in a line",
        "what waits in a process that dies meanwhile; with 256 MB of it in one worker the run ends, resumable",
    ),
    (
        "wandb, or TensorBoard's folder or disk",
        "the run goes on; rows wait, up to 10,000, and are tried again with each epoch; told in a line when it begins "
        "and when it is over",
        "nothing of `metrics.jsonl`; what waits when the run ends is not there",
    ),
    (
        "`metrics.jsonl`, removed or replaced while the run goes on",
        "a removed one is written again, out of what the run still has open; in another one rows go on at its end; "
        "told in a line",
        "what the other one lacks",
    ),
    (
        "a replay shard, or one that is silent",
        "Ray restarts it, and it reads its files again; meanwhile sampling goes on over the rest with the right "
        "probabilities",
        "nothing acknowledged (with `replay_durable=False`: what it held)",
    ),
    (
        "a learner, or one that is silent, also while it starts or is saved",
        "the group is rebuilt from the newest training state and does again what that state lacks",
        "time; every epoch has all of its updates",
    ),
    (
        "Ray itself (its `raylet`), where the run started it on its machine",
        "the run ends in a line that says so; the same command with `--resume auto` goes on",
        "as with the driver",
    ),
    (
        "the driver",
        "the same command with `--resume auto` goes on from the newest training state, as if nothing had been",
        "what was done since that state, and unfinished trajectories",
    ),
    (
        "nothing, but a loss or gradient is not finite",
        "that update is not made; raised at once, with the trajectories of its batch",
        "nothing that was saved is overwritten",
    ),
    ("a bug", "raised at once at the driver with the remote traceback", "-"),
)


def table() -> str:
    """`CONSEQUENCES` as a Markdown table."""
    rows = [("what dies", "what happens", "what is lost at most"), ("---", "---", "---"), *CONSEQUENCES]
    return "\n".join(f"| {' | '.join(row)} |".replace("| --- | --- | --- |", "|---|---|---|") for row in rows) + "\n"


class FailurePolicy:
    """Says what to do about the failure of a call, by `RULES`.

    decision = failures.decide(WORKER, 3, error)   # when a call to worker 3 has raised `error`
    failures.recovered(WORKER, 3)                  # when one was answered
    """

    def __init__(self) -> None:
        self._in_a_row: Counter[tuple[str, int, type[Exception]]] = Counter()

    def decide(self, role: str, index: int, error: Exception) -> Decision:
        """What to do about `error`, raised by a call to process `index` of `role`. What is no failure of a process is a
        bug: RAISE."""
        kind = next((kind for r, kind in RULES if r == role and isinstance(error, kind)), None)
        if kind is None:
            return Decision.RAISE
        rule = RULES[role, kind]
        self._in_a_row[role, index, kind] += 1
        gave_up = rule.at_most is not None and self._in_a_row[role, index, kind] > rule.at_most
        return Decision.RAISE if gave_up else rule.decision

    def is_first(self, role: str, index: int) -> bool:
        """Whether the failure that was decided last is the first in a row of this process, and so worth telling."""
        return sum(self._in_a_row[role, index, kind] for kind in (ProcessDied, CallTimeout)) == 1

    def recovered(self, role: str, index: int) -> None:
        """A call to this process was answered."""
        for kind in (ProcessDied, CallTimeout):
            self._in_a_row.pop((role, index, kind), None)
