"""Where in its rollout an exported episode lies: written into its metadata in Minari's files, and read from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from amago_ray.messages import ACTION, REWARD, TERMINATED, Trajectory
from amago_ray.replay.datasets.dataset import RowLayout

EXPORTED = frozenset({"env_name", "first_time_idx", "cut", "weight_version"})  # together nobody else writes them


def facts_of(t: Trajectory, layout: RowLayout) -> dict[str, Any]:
    """What Minari has no place for, as plain values and arrays. previous_action: as the environment took it."""
    cut = not (t.truncated or bool(t.columns[TERMINATED][-1]))
    facts: dict[str, Any] = {"env_name": t.env_name, "first_time_idx": t.first_time_idx, "cut": cut}
    facts["weight_version"] = t.weight_version
    if t.first_time_idx > 0:
        facts["previous_action"] = layout.action.to_env(t.columns[ACTION][:1])[0]
        facts["previous_reward"] = float(t.columns[REWARD][0])
    return facts


def is_exported(facts: Mapping[str, Any]) -> bool:
    """Whether an episode's metadata are of `facts_of`."""
    return facts.keys() >= EXPORTED


def continued(t: Trajectory, facts: Mapping[str, Any], layout: RowLayout) -> Trajectory:
    """The trajectory that was exported, from the episode that was read and its `facts_of`.

    Exports of before say where a piece begins, and not what led there. Raises ValueError for what does not fit.
    """
    if "previous_action" in facts:
        t.columns[ACTION][:1] = layout.action.from_env(np.asarray(facts["previous_action"])[None])
        t.columns[REWARD][0] = facts["previous_reward"]
    return replace(
        t,
        env_name=str(facts["env_name"]),
        first_time_idx=int(facts["first_time_idx"]),
        truncated=t.truncated and not facts["cut"],
        weight_version=int(facts["weight_version"]),
    )
