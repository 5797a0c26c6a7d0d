"""Exploration of one's own makes its first steps before anything starts."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from agent_cases import ACTION_SPECS
from conftest import TINY_NETWORKS

from amago_ray import config
from amago_ray.driver.probe import probe
from amago_ray.driver.probes.exploration import check_exploration
from amago_ray.envs.builtin import Identity
from amago_ray.envs.exploration import EpsilonGreedy, ExplorationWrapper
from amago_ray.experiment import Experiment


class Uniform(ExplorationWrapper):
    def explore(self, actions: np.ndarray, time_idx: np.ndarray) -> np.ndarray:
        if self.action_spec.kind == "continuous":
            return self.rng.uniform(-1, 1, actions.shape).astype(actions.dtype)
        most = np.reshape(self.action_spec.nvec or 2, self.action_spec.shape and (-1,))
        return self.rng.integers(most, size=actions.shape).astype(actions.dtype)

    def metrics(self) -> dict[str, float]:
        return {"step": float(self.steps.mean())}


class WithoutSuper(Uniform):
    def __init__(self, num_envs: int, action_spec: Any, seed: int):
        self.num_envs = num_envs


class OutOfBounds(Uniform):
    def explore(self, actions: np.ndarray, time_idx: np.ndarray) -> np.ndarray:
        return actions + 7


class MetricsOfEach(Uniform):
    def metrics(self) -> Any:
        return {"steps": self.steps}


class ForgetsToBegin(Uniform):
    def begin(self, fresh: np.ndarray) -> None:
        self.drawn[fresh] = 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ACTION_SPECS)
def test_exploration_as_it_should_be(kind: str) -> None:
    spec = ACTION_SPECS[kind]
    check_exploration(Uniform(1, spec, 0), spec, masked=kind in ("discrete", "multidiscrete"))
    check_exploration(EpsilonGreedy(1, spec, 0), spec, masked=False)


@pytest.mark.parametrize(
    ("exploration", "said"),
    [
        (WithoutSuper, "WithoutSuper: its __init__ does not call super"),
        (OutOfBounds, "OutOfBounds.explore returned 7: discrete actions are between 0 and 3"),
        (MetricsOfEach, "MetricsOfEach: `metrics` returned .* must be a dict of numbers"),
        (ForgetsToBegin, "no attribute 'drawn'"),
    ],
)
def test_exploration_that_is_not(exploration: type[ExplorationWrapper], said: str) -> None:
    spec = ACTION_SPECS["discrete"]
    with pytest.raises(Exception, match=said):
        check_exploration(exploration(1, spec, 0), spec, masked=True)


@pytest.mark.parametrize(
    ("exploration", "said"),
    [
        (WithoutSuper, r"^a first step of the exploration: ValueError: WithoutSuper: its __init__ does not call super"),
        (ForgetsToBegin, "^a first step of the exploration: AttributeError: 'ForgetsToBegin' object has no attribute"),
    ],
)
def test_it_is_told_in_one_line(exploration: type[ExplorationWrapper], said: str) -> None:
    config.load([], [*TINY_NETWORKS, "Experiment.traj_encoder_type = @GRUTrajEncoder"])
    settings: dict[str, Any] = {"max_seq_len": 8, "exploration_wrapper_type": exploration}
    with pytest.raises(ValueError, match=said):
        probe(Experiment(run_name="a", make_train_env=partial(Identity, "discrete", 3), **settings))
