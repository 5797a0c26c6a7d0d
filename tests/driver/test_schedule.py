"""schedule="auto": what the first epochs have to show before it overlaps. (Epochs themselves: test_ring.py.)"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from amago_ray.driver.collection import CollectSummary
from amago_ray.driver.cores import Cores
from amago_ray.driver.schedule import Alternate, Auto, EpochResult, Overlap
from amago_ray.learner.learner import LearnerConfig
from amago_ray.messages import LearnReport


def chosen_after_epochs(
    monkeypatch: pytest.MonkeyPatch, collect_s: float, idle_s: float, learn_s: float, machine: int | None = 2
) -> tuple[list[bool], str]:
    """Whether each of five epochs overlapped, and what was said, with two workers for which an epoch is like that."""

    def epoch(self: Any, number: int, last: bool) -> EpochResult:
        overlapped.append(isinstance(self, Overlap))
        collected = CollectSummary(wall_s=collect_s, busy_s=2 * collect_s, idle_s=2 * idle_s)
        return EpochResult(collected, LearnReport(1, 1, 1, 0, {}, 0.0, learn_s), [])

    overlapped: list[bool] = []
    said: list[str] = []
    monkeypatch.setattr(Alternate, "_run", epoch)
    monkeypatch.setattr(Overlap, "_run", epoch)
    plan = SimpleNamespace(cores=Cores(2, 2, machine), learner=LearnerConfig())
    ring: Any = SimpleNamespace(plan=plan, mention=said.append)
    schedule = Auto(ring)
    for number in range(5):
        schedule.run_epoch(number, last=False)
    (choice,) = [text for text in said if text.startswith("schedule: ")]
    return overlapped, choice


def test_it_overlaps_where_environments_leave_cores_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    overlapped, said = chosen_after_epochs(monkeypatch, collect_s=6.0, idle_s=5.5, learn_s=4.0)
    assert overlapped == [False] * 3 + [True] * 2
    assert said == (
        "schedule: overlap from epoch 4 on, since cores are idle otherwise: "
        "6.0 s of collecting, then 4.0 s of learning; about 6.0 s together"
    )


@pytest.mark.parametrize(
    ("collect_s", "idle_s", "learn_s", "why"),
    [
        (
            6.0,
            0.2,
            4.0,
            "since little would be won by overlapping: 6.0 s of collecting, then 4.0 s of learning; about 9.",
        ),
        (0.5, 0.5, 0.5, "since epochs are short"),
        (0.2, 0.2, 9.0, "since little would be won"),
    ],
    ids=["both need the cores", "short epochs", "nearly all is learning"],
)
def test_it_alternates_where_nothing_would_be_won(
    monkeypatch: pytest.MonkeyPatch, collect_s: float, idle_s: float, learn_s: float, why: str
) -> None:
    overlapped, said = chosen_after_epochs(monkeypatch, collect_s, idle_s, learn_s)
    assert not any(overlapped) and said.startswith(f"schedule: alternate, {why}")


def test_it_overlaps_where_workers_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    overlapped, said = chosen_after_epochs(monkeypatch, collect_s=6.0, idle_s=0.0, learn_s=4.0, machine=None)
    assert overlapped[-1] and "about 6.0 s together" in said


@pytest.mark.parametrize("overlaps", [True, False])
def test_a_run_that_goes_on_stays_with_what_was_chosen(monkeypatch: pytest.MonkeyPatch, overlaps: bool) -> None:
    ring: Any = SimpleNamespace(mention=lambda text: None)
    saved, resumed = Auto(ring), Auto(ring)
    saved.load_state({"auto": {"chose": True, "overlap": overlaps}})
    resumed.load_state(saved.state)
    assert resumed.state == {"auto": {"chose": True, "overlap": overlaps}}
    assert resumed.together is overlaps and resumed.next_collected(4) == 5
