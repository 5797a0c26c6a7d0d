"""An epoch's batches on a group of learners: one report, whoever answers first."""

from __future__ import annotations

from typing import Any

import pytest
from fake_topology import FakeCall, FakeTopology

from amago_ray.driver.learning import Learning, merge_reports
from amago_ray.messages import LearnReport

REPORTS = (
    LearnReport(
        3, 9, 6, 2, {"Total Loss": 1.0, "TD Target Min": -1.0, "TD Target Max": 4.0}, 0.5, 2.0, warned=("one",)
    ),
    LearnReport(
        3, 9, 6, 2, {"Total Loss": 2.0, "TD Target Min": -3.0, "TD Target Max": 2.0}, 1.5, 3.0, warned=("two",)
    ),
    LearnReport(3, 9, 6, 2, {"Total Loss": 6.0, "TD Target Min": -2.0, "TD Target Max": 3.0}, 1.0, 2.5),
)


class Group(FakeTopology):
    """Three learners, with a report each."""

    def train(self, num_batches: int, mixture: Any) -> list[Any]:
        return [FakeCall(report) for report in REPORTS]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_report_is_of_the_whole_group_whoever_answers_first(order: tuple[int, ...]) -> None:
    heard: list[str] = []
    finished: list[tuple[int, LearnReport]] = []
    topology: Any = Group()
    learning = Learning(
        topology, 6, 60.0, pytest.fail, pytest.fail, lambda *what: finished.append(what), lambda: False, heard.extend
    )  # fmt: skip
    calls = learning.calls()
    for number in order:
        assert learning.report is None and not finished
        learning.take(calls[number])
    of_all = LearnReport(3, 9, 6, 2, {"Total Loss": 3.0, "TD Target Min": -3.0, "TD Target Max": 4.0}, 1.5, 3.0)
    assert finished == [(6, of_all)] and learning.report == of_all
    assert learning.done == 6 and sorted(heard) == ["one", "two"]


def test_calls_of_an_epoch_give_means_over_what_was_logged_and_true_extremes() -> None:
    portions = [
        LearnReport(19, 19, 19, 0, {"Total Loss": 4.0, "TD Target Min": -3.0, "TD Target Max": 2.0}, 0.0, 1.0, 1),
        LearnReport(3, 22, 3, 0, {"Total Loss": 2.0, "TD Target Min": -1.0, "TD Target Max": 9.0}, 0.0, 1.0, 3),
        LearnReport(1, 23, 1, 0, {}, 0.0, 1.0, 0),
    ]
    merged = merge_reports(portions)
    assert merged is not None
    assert merged.metrics == {"Total Loss": 2.5, "TD Target Min": -3.0, "TD Target Max": 9.0}
    assert (merged.updates, merged.batches, merged.logged) == (23, 23, 4)
