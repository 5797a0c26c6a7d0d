"""What the package hands to its parts itself. Bound in gin it would set nothing, and gin takes it in silence.

What counts is whom a part is handed to, and that is known by its base class: classes of one's own are among them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import gin

from amago_ray.config.registry import matching, registry

_ENVIRONMENT = "the environments decide"
_LENGTH = "set Experiment.max_seq_len"
_BINS = {
    "num_bins": "set NCriticsTwoHot.output_bins",
    **{
        name: f"set NCriticsTwoHot.{name}" for name in ("min_return", "max_return", "use_symlog", "label_type", "sigma")
    },
}
_SIZES = "each network has its own, such as FFTstepEncoder.d_hidden and Actor.n_layers"
_VECTOR_ENV = {"num_envs": "set Experiment.parallel_actors", "seed": "set Experiment.seed"}
_STD = {
    "raw": "the actor decides",
    "low": "set it of the distribution, such as TanhGaussian.std_low",
    "high": "set it of the distribution, such as TanhGaussian.std_high",
}

# Base class -> argument -> what to do instead, for all classes below it.
KINDS: Mapping[str, Mapping[str, str]] = {
    "Agent": {
        "obs_spec": _ENVIRONMENT,
        "action_spec": _ENVIRONMENT,
        "max_seq_len": _LENGTH,
        "tstep_encoder_type": "set Experiment.tstep_encoder_type",
        "traj_encoder_type": "set Experiment.traj_encoder_type",
        "action_mask_key": "set Experiment.action_mask_key",
    },
    "TstepEncoder": {"obs_spec": _ENVIRONMENT, "rl2_dim": _ENVIRONMENT},
    "TrajEncoder": {
        "tstep_dim": "the timestep encoder decides, as by FFTstepEncoder.d_output",
        "max_seq_len": _LENGTH,
    },
    "ActorHead": {
        "state_dim": "the trajectory encoder decides, as by TformerTrajEncoder.d_model",
        "action_spec": _ENVIRONMENT,
        "num_gammas": "set Multigammas.discrete or Multigammas.continuous",
    },
    "CriticEnsemble": {
        "state_dim": "the trajectory encoder decides, as by TformerTrajEncoder.d_model",
        "action_spec": _ENVIRONMENT,
        "gammas": "set Agent.gamma, and Multigammas.discrete or Multigammas.continuous",
        "num_critics": "set Agent.num_critics",
    },
    "ExplorationWrapper": {
        "num_envs": "set Experiment.parallel_actors",
        "action_spec": _ENVIRONMENT,
        "seed": "set Experiment.seed",
    },
    "PolicyOutput": {"action_spec": _ENVIRONMENT},
    "CNN": {
        "img_shape": _ENVIRONMENT,
        "channels_first": "set CNNTstepEncoder.channels_first or MixedTstepEncoder.channels_first",
        "activation": "set CNNTstepEncoder.activation or MixedTstepEncoder.activation",
    },
    "Optimizer": {
        "params": "the agent's networks decide",
        "lr": "set Experiment.learning_rate",
        "weight_decay": "set Experiment.l2_coeff",
        "fused": "an optimiser that can be is; override Agent.init_optimizer for another",
    },
}
# The same of single classes and functions. Classes below them are made by whoever wrote those.
SINGLE: Mapping[str, Mapping[str, str]] = {
    "NCritics": {"num_outputs": "take NCriticsTwoHot for critics that have several"},
    "MLP": dict.fromkeys(("d_inp", "d_hidden", "n_layers", "d_output"), _SIZES),
    "Normalization": {"method": "set it of each network, such as FFTstepEncoder.norm", "d": _SIZES},
    "SimNorm": {"d": _SIZES},
    "InputNorm": {"dim": _ENVIRONMENT},
    "PopArt": {
        "num_gammas": "set Multigammas.discrete or Multigammas.continuous",
        "enabled": "set Agent.popart",
    },
    "TwoHot": _BINS,
    "DrQv2Aug": {
        "channels_first": "set CNNTstepEncoder.channels_first",
        "fraction": "set CNNTstepEncoder.aug_pct_of_batch",
    },
    "binary_filter": {"advantage": "the critics decide"},
    "exp_filter": {"advantage": "the critics decide"},
    "leaky_relu_filter": {"advantage": "the critics decide"},
    "tanh_bounded_positive": _STD,
    "softplus_bounded_positive": _STD,
    "make_envpool": _VECTOR_ENV,
    "make_gymnax": _VECTOR_ENV,
    "make_xland": _VECTOR_ENV,
}


def remedies(configurable: Any) -> Iterator[Mapping[str, str]]:
    """argument -> what to do instead, of what a class or function is handed."""
    if not inspect.isclass(configurable):
        if _is_known(configurable):
            yield SINGLE.get(configurable.__name__, {})
        return
    yield SINGLE.get(configurable.__name__, {}) if _is_known(configurable) else {}
    yield from (KINDS.get(cls.__name__, {}) for cls in configurable.__mro__ if _is_known(cls))


def refuse_handed(selector: str, argument: str, value: Any) -> None:
    """Raises ValueError, saying what to set instead, for an argument that the package hands to a configurable itself.

    selector: of the configurable. One that is unknown, or not unique, gin itself refuses.
    """
    found = matching(selector)
    for remedy in remedies(registry()[found[0]].wrapped) if len(found) == 1 else ():
        if argument in remedy:
            name = f"{selector.rpartition('.')[2]}.{argument}"
            raise ValueError(f"{name} = {value!r} sets nothing, because the package gives it; {remedy[argument]}")


def refuse_calls(setting: str, value: Any) -> None:
    """Raises ValueError for a value that would make, @Name(), what the package makes itself of the class, @Name."""
    for reference in gin.config.iterate_references(value):
        configurable = reference.configurable.wrapped
        handed = {argument for remedy in remedies(configurable) for argument in remedy}
        if reference.evaluate and handed and handed & _required(configurable):
            what, name = "class" if inspect.isclass(configurable) else "function", reference.selector.rpartition(".")[2]
            raise ValueError(f"{setting} = {value!r}: the {what} itself is meant, @{name} without ()")


def _required(configurable: Any) -> set[str]:
    parameters = inspect.signature(configurable).parameters.values()
    return {parameter.name for parameter in parameters if parameter.default is parameter.empty}


def _is_known(configurable: Any) -> bool:
    return configurable.__module__.partition(".")[0] in ("amago_ray", "torch")
