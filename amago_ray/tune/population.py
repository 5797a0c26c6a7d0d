"""Population-based training by Ray Tune's scheduler, kept from standing still."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.search.sample import Float, Integer, Quantized


class Population(PopulationBasedTraining):
    """Tune's scheduler, in whose synchronous mode all trials pause until the last has come to the next comparison.

    It goes on where Tune's waits for ever: when a trial has failed for good, which Tune counts among those to wait for,
    and when no trial is behind the next comparison any more, as where trials report less often than they are compared,
    or were restored, after which Tune begins to count anew.
    """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        unfinished: Any = _WithoutFinished(tune_controller)
        decision = super().on_trial_result(unfinished, trial, result)
        self._go_on(tune_controller)
        return decision

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_error(tune_controller, trial)
        self._go_on(tune_controller, {trial})

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        self._go_on(tune_controller, {trial})

    def _go_on(self, tune_controller: Any, ended: Set[Any] = frozenset()) -> None:
        """Move the next comparison on when every trial that is left has passed it."""
        left = [t for t in tune_controller.get_trials() if not t.is_finished() and t not in ended]
        times = [self._trial_state[t].last_train_time for t in left]
        if times and min(times) >= self._next_perturbation_sync:
            self._next_perturbation_sync = max(times) + self._perturbation_interval


class _WithoutFinished:
    """Tune's controller, whose live trials are those that have not ended."""

    def __init__(self, controller: Any):
        self._controller = controller

    def get_live_trials(self) -> set[Any]:
        return {trial for trial in self._controller.get_live_trials() if not trial.is_finished()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)


class Bounds:
    """Keeps parameters that "pbt" has multiplied among the values that they are drawn from: in range, on the grid."""

    def __init__(self, space: Mapping[str, Any]):
        self._domains = {name: values for name, values in space.items() if isinstance(values, Float | Integer)}

    def __call__(self, parameters: dict[str, Any]) -> dict[str, Any]:
        for name, values in self._domains.items():
            high = values.upper - isinstance(parameters[name], int)
            value, sampler = min(max(parameters[name], values.lower), high), values.get_sampler()
            if isinstance(sampler, Quantized):  # whose bounds are multiples themselves
                value = float(np.round(np.divide(value, sampler.q)) * sampler.q)  # as Tune does when it draws
            parameters[name] = value
        return parameters
