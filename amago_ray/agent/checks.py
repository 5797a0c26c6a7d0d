"""An agent's settings are checked here, before anything is built of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import nn

from amago_ray.config import nearest
from amago_ray.nets.actors import Actor, ResidualActor
from amago_ray.specs import ActionSpec, ObsSpec


def check_numbers(
    owner: str,
    gamma: float,
    num_critics: int,
    num_critics_td: int,
    tau: float,
    counts: Mapping[str, int],
    coefficients: Mapping[str, float],
) -> None:
    """Raises ValueError, naming the setting of `owner`, for one that is out of range.

    counts: what must be 1 or more. coefficients: what must not be negative.
    """
    check_gamma(f"{owner}.gamma", gamma)
    if not 1 <= num_critics_td <= num_critics:
        raise ValueError(f"{owner}.num_critics_td={num_critics_td}: choose 1 to num_critics={num_critics}")
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"{owner}.tau={tau}: targets move by a fraction, from 0 to 1")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{owner}.{name}={count}: it must be 1 or more")
    for name, coefficient in coefficients.items():
        if not 0.0 <= coefficient < math.inf:
            raise ValueError(f"{owner}.{name}={coefficient}: it must be finite, and 0 (to leave it out) or more")


def check_gamma(setting: str, gamma: float) -> None:
    """Raises ValueError, naming `setting`, for what is no discount factor."""
    if not 0.0 <= gamma < 1.0:
        raise ValueError(f"{setting}={gamma}: a discount factor lies in [0, 1)")


def check_obs_names(setting: str, names: Sequence[str], obs_spec: ObsSpec) -> None:
    """Raises ValueError, naming `setting`, unless these are names of observation arrays."""
    if isinstance(names, str):
        raise ValueError(f"{setting}={names!r}: write a tuple of names, {(names,)!r}")
    for name in names:
        if name not in obs_spec:
            raise ValueError(f"{setting}={names!r}: no observation is named {name!r}{nearest(name, obs_spec)}")


def check_actor_sees(setting: str, names: Sequence[str], actor: nn.Module) -> None:
    """Raises ValueError, naming `setting`, where observations are meant for an actor that does not look at them."""
    if names and type(actor) in (Actor, ResidualActor):
        raise ValueError(
            f"{setting}={names!r}: {type(actor).__name__} sees states alone; name an actor_type of your own whose "
            "`params` reads `obs` (for masks of legal actions there is Experiment.action_mask_key)"
        )


def check_action_mask(key: str | None, obs_spec: ObsSpec, action_spec: ActionSpec) -> None:
    """Raises ValueError unless `key` names an array with one number per category of a (multi-)discrete action."""
    if key is None:
        return
    setting = f"Experiment.action_mask_key={key!r}"
    if action_spec.kind not in ("discrete", "multidiscrete"):
        raise ValueError(f"{setting}: masks are for categories, but the environment's actions are {action_spec.kind}")
    if key not in obs_spec:
        raise ValueError(f"{setting}: no observation is named {key!r}{nearest(key, obs_spec)}")
    if obs_spec[key].shape != (action_spec.vector_size,):
        raise ValueError(
            f"{setting}: one number per action is needed, shape {(action_spec.vector_size,)}, not {obs_spec[key].shape}"
        )
