"""Where a batch came from, in words, for the update that must not be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from amago_ray.messages import REWARD, Batch, CannotGoOn, SampledSequences

NAMED = 8  # trajectories of one shard that are listed by name


class NonFiniteUpdate(CannotGoOn, ValueError):
    """A loss or gradient was not finite: the weights are those before it, and the run stops."""


def origin(batch: Batch) -> Batch:
    """The batch without all that is large: what `describe` needs of it. Copied: a view would keep the whole message."""
    return replace(batch, parts=tuple(_small(part) for part in batch.parts))


def _small(part: SampledSequences) -> SampledSequences:
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    arrays: dict[str, Any] = {name: value.copy() for name, value in values.items() if isinstance(value, np.ndarray)}
    return replace(part, columns={REWARD: part.columns[REWARD].copy()}, **arrays)


def describe(batches: Sequence[Batch]) -> str:
    """The trajectories that batches hold slices of, by shard, and where the reward furthest from 0 is."""
    found: dict[str, list[str]] = {}
    versions: list[int] = []
    furthest, where = -1.0, ""
    for batch in batches:
        versions += batch.gather("weight_version").tolist()
        ids, shards, rewards = batch.gather("ids").tolist(), batch.gather("shard").tolist(), batch.rows(REWARD)
        for b, (worker, life, number) in enumerate(ids):
            source = batch.parts[int(batch.part[b])].source
            place = f"shard {shards[b]}" + (f", dataset {source}" if source else "")
            name = str(number) if worker < 0 else f"{worker}/{life}/{number}"
            named = found.setdefault(place, [])
            if name not in named:
                named.append(name)
            size = np.nan_to_num(np.abs(rewards[b]), nan=np.inf)
            if size.max() > furthest:
                furthest, row = float(size.max()), int(size.argmax())
                timestep = int(batch.first_time_idx[b]) + row - 1
                where = f"reward {rewards[b][row]:g} at timestep {timestep} of trajectory {name} ({place})"
    listed = (
        f"{place}: {', '.join(names[:NAMED])}" + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        for place, names in found.items()
    )
    return (
        f"trajectories (worker/life/number, or number in the dataset) of {'; '.join(listed)}; weight versions "
        f"{min(versions)} to {max(versions)}; furthest from 0 is {where}"
    )
