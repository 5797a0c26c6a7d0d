"""What an agent's values are values of: weights of the same shapes mean something else where that changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from amago_ray.agent.actor_critic import Agent
from amago_ray.nets.scaling import TwoHot


def value_units(agent: Agent) -> dict[str, Any]:
    """What an agent's critics have learned to predict, as plain values, by the settings that say so."""
    *auxiliary, gamma = (float(str(each)) for each in agent.gammas.cpu().numpy().astype(np.float32))
    kind = "discrete" if agent.action_spec.kind == "discrete" else "continuous"
    units: dict[str, Any] = {
        "Agent.gamma": gamma,
        f"Multigammas.{kind} (with Agent.use_multigamma)": auxiliary,
        "Agent.popart": agent.popart.enabled,
        "Agent.reward_multiplier": float(agent.reward_multiplier),
    }
    bins = getattr(agent.critics, "bins", None)
    if isinstance(bins, TwoHot):
        ends = (math.copysign(math.expm1(abs(x)), x) if bins.use_symlog else x for x in (bins.low, bins.high))
        span = [float(f"{end:.6g}") for end in ends]
        units["NCriticsTwoHot.min_return, .max_return and .use_symlog"] = [*span, bins.use_symlog]
    return units


def check_value_units(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the setting, where an earlier `value_units` is another one; what it lacks passes."""
    for name, value in now.items():
        if name in saved and saved[name] != value:
            raise ValueError(
                f"resume: {name} was {saved[name]} in the run, and is {value} now, so that what critics have learned "
                "would be taken for something else; set it back, or choose another run_name"
            )
