"""What bounds a run, told from what its workers and learners report."""

from __future__ import annotations

import pytest

from amago_ray.driver.bounds import bound_of, in_words, time_by_resource
from amago_ray.driver.collection import CollectSummary
from amago_ray.messages import LearnReport


def collected(act_s: float, step_s: float, wait_s: float = 0.0, wall_s: float = 10.0) -> CollectSummary:
    """Of two workers, each of which was busy for the whole time but what is missing."""
    busy_s = act_s + step_s + wait_s
    return CollectSummary(
        act_s=act_s, step_s=step_s, wait_s=wait_s, busy_s=busy_s, wall_s=wall_s, exploration_by_worker={0: {}, 1: {}}
    )


def learned(total_s: float, wait_s: float = 0.0) -> LearnReport:
    return LearnReport(1, 1, 1, 0, {}, wait_s, total_s)


def test_in_turn_every_second_of_both_counts() -> None:
    found = time_by_resource(collected(4.0, 12.0, wait_s=2.0), learned(8.0, wait_s=1.0), epoch_s=20.0, together=False)
    expected = {"environment": 6.0, "policy": 2.0, "replay": 1.0 + 1.0, "learner": 7.0, "waiting": 1.0 + 2.0}
    assert found == pytest.approx({resource: seconds / 20.0 for resource, seconds in expected.items()})


@pytest.mark.parametrize(("learn_s", "bound"), [(15.0, "learner"), (9.0, "environment")])
def test_together_only_the_longer_of_both_counts(learn_s: float, bound: str) -> None:
    found = time_by_resource(collected(4.0, 16.0), learned(learn_s), epoch_s=max(learn_s, 10.0), together=True)
    assert bound_of(found) == bound
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["learner"] == (1.0 if bound == "learner" else 0.0)


def test_a_worker_without_a_call_is_waiting() -> None:
    found = time_by_resource(collected(1.0, 1.0), None, epoch_s=10.0, together=False)
    assert bound_of(found) == "waiting" and found["waiting"] == pytest.approx(0.9)


def test_it_is_said_in_words_with_what_to_change() -> None:
    words = in_words(time_by_resource(collected(4.0, 16.0), learned(5.0), epoch_s=15.0, together=False))
    assert words.startswith("the environment takes 53% of the time (policy 13%, learner 33%); to be faster, ")
    assert "num_rollout_workers" in words


def test_who_has_a_gpu_is_not_told_to_get_one() -> None:
    fractions = time_by_resource(collected(4.0, 4.0), learned(50.0), epoch_s=60.0, together=False)
    assert "or a GPU" in in_words(fractions)
    assert "or a GPU" not in in_words(fractions, "cuda") and "num_learners" in in_words(fractions, "cuda")
