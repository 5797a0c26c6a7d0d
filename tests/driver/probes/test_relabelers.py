"""A relabeler that cannot work is refused before anything starts, and not after a first epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from amago_ray.driver.probe import probe
from amago_ray.envs.builtin import Counting, GridReach, MazeRunner
from amago_ray.experiment import Experiment
from amago_ray.nets.traj_encoders import FFTrajEncoder
from amago_ray.replay.sampling.instructions import InstructionRelabeler
from amago_ray.replay.sampling.relabeling import HindsightRelabeler, Relabeler


class Nothing(Relabeler):
    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> Any:
        return None


class OneRow(Relabeler):
    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> Any:
        return {name: column[:1] for name, column in columns.items()}


class SometimesNothing(Relabeler):
    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> Any:
        return columns if rng.random() < 0.5 else None


class NoAction(Relabeler):
    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> Any:
        return columns | {"action": np.full_like(columns["action"], 9)}


class Misspelt(Relabeler):
    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> Any:
        return columns | {"reward": columns["rewards"]}


class Particular(Relabeler):
    """Right, and only about what an environment gives: a goal that stays, rewards that are where it is reached."""

    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator, first_time_idx: int) -> Any:
        assert first_time_idx == 0
        desired, achieved = columns["obs.desired_goal"], columns["obs.achieved_goal"]
        if (desired != desired[0]).any() or ((desired == achieved).all(1) != (columns["reward"] == 1)).any():
            raise ValueError("no rollout of GridReach")
        return columns | {"reward": columns["reward"] - 0.01}


def experiment(make_env: Any, relabeler: Callable[[], Relabeler]) -> Experiment:
    return Experiment("a", make_env, 8, traj_encoder_type=FFTrajEncoder, relabeler_type=relabeler)


@pytest.mark.parametrize(
    ("relabeler", "said"),
    [
        (Nothing, "it answered NoneType; it must be a dict of the columns it was given"),
        (OneRow, r"its answer has 1 rows; it must have between 2 and the \d+ that it was given"),
        (SometimesNothing, "it answered NoneType"),
        (NoAction, "column 'action' of its answer holds 9; its categories are stored as 0 to"),
        (Misspelt, "KeyError: 'rewards'"),
        (HindsightRelabeler, "observations need an 'achieved_goal' and a 'desired_goal' of the same shape"),
        (InstructionRelabeler, "observations need an 'achieved_goal' of shape"),
    ],
)
def test_relabelers_that_cannot_work(relabeler: type[Relabeler], said: str) -> None:
    with pytest.raises(ValueError, match=f"^Experiment.relabeler_type={relabeler.__name__}: {said}"):
        probe(experiment(Counting, relabeler))


@pytest.mark.parametrize(
    ("make_env", "relabeler"),
    [(GridReach, HindsightRelabeler), (MazeRunner, InstructionRelabeler), (GridReach, Particular)],
)
def test_relabelers_that_work(make_env: Any, relabeler: type[Relabeler]) -> None:
    assert probe(experiment(make_env, relabeler)).max_seq_len == 8
