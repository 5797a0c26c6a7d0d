"""Warnings of any process reach the user, each once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from amago_ray.driver.hearing import Hearing
from amago_ray.envs.builtin import Counting
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.warned import warn, warned


def test_each_text_is_said_once() -> None:
    said: list[str] = []
    hearing = Hearing(said.append)
    hearing.hear(("of a worker", "of this one"))
    hearing.hear(("of a worker", "of another"))
    assert said == ["warning: of a worker", "warning: of this one", "warning: of another"]


def test_the_newest_texts_are_kept() -> None:
    for number in range(250):
        with pytest.warns(UserWarning, match=f"number {number} of many") as told:
            warn(f"number {number} of many")
        assert told[0].filename == __file__
    assert warned() == tuple(f"number {number} of many" for number in range(150, 250))


class LogsText(Counting):
    """Not in the steps that are tried before a run."""

    steps = 0

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        logged = {"AMAGO_LOG_METRIC place": "home"} if self.steps > 20 else {}
        return obs, reward, terminated, truncated, info | logged


class Warns(GRUTrajEncoder):
    def forward(self, *args: Any) -> Any:
        if self.training:
            warn("layers are not compiled")
        return super().forward(*args)


@pytest.mark.usefixtures("shared_processes")
def test_warnings_of_workers_and_learners_are_said(
    make_experiment: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = make_experiment(make_train_env=LogsText, traj_encoder_type=Warns, verbose=True)
    experiment.learn()
    printed = capsys.readouterr().out
    rows = (experiment.directory.root / "events.jsonl").read_text().splitlines()
    events = [json.loads(row)["text"] for row in rows]
    for text in ("warning: the info entry 'AMAGO_LOG_METRIC place' is left out", "warning: layers are not compiled"):
        assert printed.count(text) == 1
        assert len([event for event in events if event.startswith(text)]) == 1


@pytest.mark.usefixtures("shared_processes")
def test_warnings_in_a_test_are_said(make_experiment: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    experiment = make_experiment(verbose=True)
    experiment.evaluate_test(LogsText, episodes=80)
    assert capsys.readouterr().out.count("warning: the info entry 'AMAGO_LOG_METRIC place' is left out") == 1
