"""The parameters of a sweep, tried before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray.tune.search.sample import Categorical, Integer

from amago_ray import config
from amago_ray.agent.flat_weights import first_difference, weight_shapes
from amago_ray.agent.optimizers import configured_options, going_on
from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.probe import check_data
from amago_ray.experiment import Experiment
from amago_ray.nets.mixed_encoder import default_tstep_encoder
from amago_ray.replay.datasets.recorded_spaces import meaning
from amago_ray.rollout.acting import AGENT_SETTINGS
from amago_ray.tune.results import show
from amago_ray.tune.sweep import binding


class ConfiguredExperiment:
    """Makes the experiment of a trial: a configuration in gin, and the trial's parameters on top of it."""

    def __init__(self, gin_config: str, ckpt_base_dir: str, run_name: str):
        self._gin_config, self._folder = gin_config, {"ckpt_base_dir": ckpt_base_dir, "run_name": run_name}

    def __call__(self, parameters: Mapping[str, Any]) -> Experiment:
        config.restore(self._gin_config, driver=True)
        config.load([], [binding(name, value) for name, value in parameters.items()])
        return Experiment(**self._folder)  # type: ignore[arg-type]  # gin fills in the rest


def check_parameters(make: ConfiguredExperiment, space: Mapping[str, Any]) -> None:
    """Make the experiment with every value that is listed and one of those that are drawn; then without any.

    Raises ValueError for a value that neither the configuration allows nor the first values of the other parameters.
    """
    listed = {name: _listed(values) for name, values in space.items()}
    first = {name: values[0] for name, values in listed.items()}
    make(first)
    for name, values in listed.items():
        for value in values[1:]:
            try:
                make({name: value})
            except Exception:
                make(first | {name: value})
    make({})  # which stays configured


def _listed(values: Any) -> Sequence[Any]:
    """All values of a grid or choice; one of a distribution."""
    if isinstance(values, dict):
        return values["grid_search"]
    return values.categories if isinstance(values, Categorical) else [values.sample()]


def check_takes_over(
    make: ConfiguredExperiment, space: Mapping[str, Any], params: Mapping[str, str], spec: AgentSpec
) -> None:
    """Raises ValueError for a parameter by which a trial could not go on from another's state, as "pbt" has it do.

    Compared are all values of a list and both ends of a range, less what no experiment can be made of with the first
    values of the others. params: the space as it was written. spec: of the experiment without parameters.
    """
    compared = {name: _compared(values) for name, values in space.items()}
    first = {name: values[0] for name, values in compared.items()}
    one = _handed(make, first, spec)
    for name, values in compared.items():
        for value in values[1:]:
            other = _handed(make, first | {name: value}, spec)
            if one and other and (difference := one.difference(other)):
                raise ValueError(
                    f"{name}={params[name]}: under scheduler 'pbt' a trial goes on from another's training state, "
                    f"which one with {show(value)} cannot do from one with {show(first[name])}: {difference}; vary it "
                    "under 'fifo' or 'asha'"
                )
    make({})  # which stays configured


def _handed(make: ConfiguredExperiment, parameters: Mapping[str, Any], spec: AgentSpec) -> _Handed | None:
    """Of a trial with these parameters; None where it will fail, alone, and say why."""
    try:
        return _Handed.of(make(parameters), spec)
    except Exception:
        return None


def _compared(values: Any) -> Sequence[Any]:
    """All values of a choice; one of a distribution and its ends."""
    if isinstance(values, Categorical):
        return values.categories
    ends = [values.lower, values.upper - 1] if isinstance(values, Integer) else [values.lower, values.upper]
    return [values.sample(), *(end for end in ends if math.isfinite(end))]


@dataclass(frozen=True)
class _Handed:
    """What a training state holds that the trial which goes on from it must have alike."""

    spaces: dict[str, Any]
    weights: dict[str, list[int]]
    optimizer: torch.optim.Optimizer  # which has taken a step

    @classmethod
    def of(cls, experiment: Experiment, spec: AgentSpec) -> _Handed:
        settings = {name: getattr(experiment, name) for name in AGENT_SETTINGS}
        settings["tstep_encoder_type"] = experiment.tstep_encoder_type or default_tstep_encoder(spec.obs_spec)
        agent = replace(spec, **settings).build()
        optimizer = agent.init_optimizer(experiment.learning_rate, experiment.l2_coeff)
        for weight in agent.trainable_params:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        return cls(meaning(check_data(experiment)), weight_shapes(agent.state_dict()), optimizer)

    def difference(self, other: _Handed) -> str | None:
        """In words, what keeps either from going on from the other's state."""
        for name, before in self.spaces.items():
            if other.spaces[name] != before:
                return f"its environments have another {name}"
        if changed := first_difference(self.weights, other.weights):
            return changed
        for saved, now in ((self.optimizer, other.optimizer), (other.optimizer, self.optimizer)):
            try:
                going_on(now, saved.state_dict(), configured_options(now))
            except ValueError as error:
                return str(error).removeprefix("resume: ").partition("; ")[0]  # the advice is for one run
        return None
