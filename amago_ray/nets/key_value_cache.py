"""What a Transformer remembers while it acts: rings of keys and values, written in place, or as a function of tensors.

Shape letters: B environments, S cache slots, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amago_ray.nets.forgetting import forget_rows

SLOTS_AT_A_TIME = 16  # a whole number of the widest vectors


@dataclass
class TracedCacheStep:
    """One layer's view of a `TracedCache` during one timestep.

    age_BS, index_BS: of its slots (see `KeyValueCache.advance`). here_B1S1: bool, the slot of the new timestep: a mask,
    because indices fix B in a graph.
    """

    age_BS: Tensor
    index_BS: Tensor
    cache: TracedCache
    layer: int
    here_B1S1: Tensor

    def write(self, k_BH1K: Tensor, v_BH1K: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new timestep and return all slots, (B, H, S, K) each."""
        keys, values = self.cache.keys, self.cache.values
        keys[self.layer] = torch.where(self.here_B1S1, k_BH1K, keys[self.layer])
        values[self.layer] = torch.where(self.here_B1S1, v_BH1K, values[self.layer])
        return keys[self.layer], values[self.layer]


@dataclass
class KeyValueCache:
    """Keys and values of the last timesteps of B environments, written in place as rings.

    keys, values: (layers, B, H, S, K). Slots [0, num_sinks) keep the first timesteps of a rollout for good, the others
    are a ring. count: (B,) timesteps seen since the rollout began; on the host, because resets are decided there.
    """

    keys: Tensor
    values: Tensor
    count: np.ndarray
    num_sinks: int

    def reset(self, mask_B: np.ndarray) -> None:
        """Forget everything about the environments in `mask_B`."""
        forget((self.keys, self.values), mask_B, int(self.count[mask_B].max(initial=0)))
        self.count[mask_B] = 0

    def advance(self) -> tuple[Tensor, Tensor, Tensor]:
        """Make room for one more timestep of every environment.

        Returns (slot_B to write into, age_BS, index_BS): age 0 is the new timestep, negative an empty slot; index is
        the timestep's number since the rollout began. S is cut to the slots in use.
        """
        new_B = self.count.copy()
        self.count += 1
        used = int(min(self.count.max(), self.keys.shape[3]))
        positions = ring_positions(new_B, np.arange(used), self.keys.shape[3], self.num_sinks, np.where)
        device = self.keys.device
        slot, age, index = (torch.from_numpy(x).to(device, non_blocking=True) for x in positions)
        return slot, age, index


@dataclass
class RecordableCache(KeyValueCache):
    """A `KeyValueCache` whose count lies on the device too, so that a step is launches alone.

    It reads all slots always, also where rollouts are much shorter.
    """

    count: Tensor  # type: ignore[assignment]

    def reset(self, mask_B: np.ndarray) -> None:
        forget((self.keys, self.values), mask_B, self.keys.shape[3])
        self.count.masked_fill_(torch.from_numpy(mask_B).to(self.count.device), 0)

    def advance(self) -> tuple[Tensor, Tensor, Tensor]:
        new_B, num_slots = self.count.clone(), self.keys.shape[3]
        self.count += 1
        slots = torch.arange(num_slots, device=new_B.device)
        slot_B, age_BS, index_BS = ring_positions(new_B, slots, num_slots, self.num_sinks, torch.where)
        return slot_B, age_BS, index_BS


@dataclass
class CompilableCache:
    """A `RecordableCache` for steps that are compiled for a processor: only slots in use are read.

    keys, values: of each layer, (B, H, S + 1, K), which lie apart, so that a compiler writes them in place. It would
    take all slots of an array for another layout than some of them: the last one is never used. count: (B,) int64.
    slots: (U,) int64, the numbers 0 to U - 1 of those that are read; the last field.
    """

    keys: list[Tensor]
    values: list[Tensor]
    count: Tensor
    num_sinks: int
    slots: Tensor

    @staticmethod
    def like(cache: RecordableCache) -> CompilableCache:
        """Another empty one, for as many timesteps."""
        keys, values = ([F.pad(x, (0, 0, 0, 1)) for x in every.unbind()] for every in (cache.keys, cache.values))
        slots = torch.arange(min(SLOTS_AT_A_TIME, cache.keys.shape[3]))
        return CompilableCache(keys, values, torch.zeros_like(cache.count), cache.num_sinks, slots)

    @property
    def num_slots(self) -> int:
        return self.keys[0].shape[2] - 1

    def reset(self, mask_B: np.ndarray) -> None:
        count = self.count.numpy()
        forget((*self.keys, *self.values), mask_B, int(count[mask_B].max(initial=0)))
        count[mask_B] = 0

    def take_in_use(self) -> None:
        """Before a step: read the slots that are in use, the new one among them, by SLOTS_AT_A_TIME."""
        used = int(self.count.max()) // SLOTS_AT_A_TIME + 1
        num = min(used * SLOTS_AT_A_TIME, self.num_slots)
        if num != len(self.slots):
            self.slots = torch.arange(num)

    def advance(self) -> tuple[Tensor, Tensor, Tensor]:
        new_B = self.count.clone()
        self.count += 1
        slot_B, age_BS, index_BS = ring_positions(new_B, self.slots, self.num_slots, self.num_sinks, torch.where)
        return slot_B, age_BS, index_BS


@dataclass
class TracedCache:
    """A `KeyValueCache` as a function of tensors, so that a step is one graph: every slot takes part at every step.

    keys, values: of each layer, (B, H, S, K); replaced as the step goes, not written into. count: (B,) int64.
    """

    keys: list[Tensor]
    values: list[Tensor]
    count: Tensor
    num_sinks: int

    def steps(self) -> list[TracedCacheStep]:
        """Make room for one more timestep, and give each layer its view of it."""
        new_B, num_slots = self.count, self.keys[0].shape[2]
        self.count = self.count + 1
        slots = torch.arange(num_slots, device=new_B.device)
        slot_B, age_BS, index_BS = ring_positions(new_B, slots, num_slots, self.num_sinks, torch.where)
        here_B1S1 = (slots == slot_B[:, None])[:, None, :, None]
        return [TracedCacheStep(age_BS, index_BS, self, layer, here_B1S1) for layer in range(len(self.keys))]


def forget(memories: Iterable[Tensor], mask_B: np.ndarray, used: int) -> None:
    """Zeros in the first `used` slots of keys and values (..., B, H, S, K) of the environments in `mask_B`.

    Stale slots are never attended to, but what is no number there would still come through with a weight of 0.
    """
    for memory in memories:
        in_use = memory[..., :used, :]
        if (without := forget_rows(in_use, mask_B, memory.dim() - 4)) is not in_use:
            in_use.copy_(without)


def ring_positions(new_B: Any, slots: Any, num_slots: int, sinks: int, where: Callable[..., Any]) -> tuple[Any, ...]:
    """What `KeyValueCache.advance` returns of `slots`, (S,), as arrays or tensors: `where` is of the same kind.

    new_B: the number of each environment's new timestep since its rollout began.
    """
    ring = num_slots - sinks
    slot_B = where(new_B < num_slots, new_B, sinks + (new_B - sinks) % ring)
    # The newest timestep that a ring slot can hold is the largest number <= new_B that falls into this slot.
    newest_BS = new_B[:, None] - (new_B[:, None] - slots) % ring
    index_BS = where(slots < sinks, slots, newest_BS)
    unwritten_BS = (index_BS < sinks) & (slots >= sinks)
    return slot_B, where(unwritten_BS, -1, new_B[:, None] - index_BS), index_BS
