"""The failure policy, apart from everything that carries it out."""

from __future__ import annotations

from pathlib import Path

import pytest

from amago_ray.driver import failures
from amago_ray.driver.failures import RULES, Decision, FailurePolicy
from amago_ray.driver.placement import LEARNER, SHARD, WORKER
from amago_ray.driver.topology import LearnerDied
from amago_ray.pending import CallTimeout, ProcessDied

PAGE = Path(__file__).parents[2] / "docs" / "failures.md"


@pytest.mark.parametrize(
    ("role", "error", "decision"),
    [
        (WORKER, ProcessDied("x"), Decision.RETRY),
        (WORKER, CallTimeout("x"), Decision.RESTART),
        (SHARD, ProcessDied("x"), Decision.RETRY),
        (SHARD, CallTimeout("x"), Decision.RESTART),
        (LEARNER, LearnerDied("x"), Decision.REBUILD),
        (LEARNER, CallTimeout("x"), Decision.REBUILD),
        (WORKER, ValueError("x"), Decision.RAISE),
        (LEARNER, KeyError("x"), Decision.RAISE),
    ],
)
def test_decisions(role: str, error: Exception, decision: Decision) -> None:
    assert FailurePolicy().decide(role, 0, error) is decision


@pytest.mark.parametrize(("role", "kind"), RULES, ids=str)
def test_it_gives_up_on_a_process_that_never_recovers(role: str, kind: type[Exception]) -> None:
    policy, rule = FailurePolicy(), RULES[role, kind]
    for _ in range(rule.at_most or 100):
        assert policy.decide(role, 0, kind("x")) is rule.decision
    policy.decide(role, 1, kind("x"))  # another process has a count of its own
    policy.recovered(role, 0)
    assert policy.decide(role, 0, kind("x")) is rule.decision and policy.is_first(role, 0)
    for _ in range((rule.at_most or 100) - 1):
        policy.decide(role, 0, kind("x"))
    last = policy.decide(role, 0, kind("x"))
    assert last is (Decision.RAISE if rule.at_most else rule.decision) and not policy.is_first(role, 0)


def test_each_kind_of_failure_is_counted_by_itself() -> None:
    """However often a shard that restarts was asked in vain, its first slow answer does not end the run."""
    policy = FailurePolicy()
    for _ in range(50):
        assert policy.decide(SHARD, 0, ProcessDied("x")) is Decision.RETRY
    assert policy.decide(SHARD, 0, CallTimeout("x")) is Decision.RESTART


def test_the_documents_say_what_happens() -> None:
    assert failures.table() in PAGE.read_text()
