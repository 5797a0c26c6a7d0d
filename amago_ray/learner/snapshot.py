"""A learner's training state, copied to host memory in one go and written to files at leisure."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import load
from accelerate.utils import save as save_tensors
from safetensors.torch import load_file
from torch import nn

MODEL, OPTIMIZER, SCHEDULE, SCALER = "model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "scaler.pt"
COUNTERS = "learner_counters.pt"
RNG = "random_states_"  # and the rank


@dataclass
class Snapshot:
    """All that a learner goes on from. Written in accelerate's layout, so that `Accelerator.load_state` reads it too.

    model: weights of the agent, targets and statistics included. gradients: of an update under way, by weight, as far
    as this process has accumulated them. rng: of this process. batches: that the optimiser has seen, of an update under
    way included. counters: the learner's own. Tensors are on the CPU and nobody else's.
    """

    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any] | None
    gradients: dict[str, torch.Tensor]
    rng: dict[str, Any]
    batches: int
    counters: tuple[int, ...]
    buffers: list[torch.Tensor] = field(default_factory=list)

    @staticmethod
    def of(
        agent: nn.Module,
        gradients: Mapping[str, torch.Tensor],
        optimizer: Any,
        schedule: Any,
        scaler: Any | None,
        batches: int,
        counters: tuple[int, ...],
        buffers: list[torch.Tensor],
    ) -> Snapshot:
        """Copy everything now.

        gradients: of an update under way. buffers: of a snapshot that is not needed any more; memory that is already
        there is faster to copy to.
        """
        copies = Copies(buffers)
        model = copies.of(agent.state_dict())
        state = copies.of(optimizer.state_dict())
        under_way = copies.of(gradients)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies from a device are under way until then
        return Snapshot(
            model,
            state,
            dict(schedule.state_dict()),
            None if scaler is None else dict(scaler.state_dict()),
            under_way,
            random_states(batches),
            batches,
            counters,
            copies.made,
        )

    def write(self, folder: Path, rank: int) -> None:
        """Write this process's share into an existing folder: everything from rank 0, random states from all."""
        save(self.rng, folder / rng_file(rank))
        if self.gradients:
            save(self.gradients, folder / gradients_file(rank))
        if rank:
            return
        save_tensors(self.model, folder / MODEL, safe_serialization=True)
        save(self.optimizer, folder / OPTIMIZER)
        save(self.schedule, folder / SCHEDULE)
        if self.scaler is not None:
            save(self.scaler, folder / SCALER)
        save(torch.tensor(self.counters), folder / COUNTERS)

    @staticmethod
    def read(folder: Path, rank: int, world_size: int) -> Snapshot:
        """What `write` left in a folder, by any number of learners, for learner `rank` of `world_size`.

        rng: empty where there was no such rank. gradients: of another number of learners, their mean, for each of the
        new ones; that is what the group takes of the batches so far in either case.
        """
        scaler, ranks = folder / SCALER, ranks_in(folder)
        rng = load(folder / rng_file(rank if rank in ranks else ranks[0]))
        return Snapshot(
            {name.removeprefix("module."): value for name, value in load_file(folder / MODEL).items()},
            load(folder / OPTIMIZER, map_location="cpu"),
            load(folder / SCHEDULE),
            load(scaler) if scaler.is_file() else None,
            mean_gradients(folder, [rank] if ranks == list(range(world_size)) else ranks),
            rng if rank in ranks else {},
            rng["step"],
            tuple(torch.load(folder / COUNTERS, weights_only=True).tolist()),
        )


def ranks_in(folder: Path) -> list[int]:
    """Of the learners that have written their share into a folder."""
    return sorted(int(file.stem.removeprefix(RNG)) for file in folder.glob(f"{RNG}*.pkl"))


def mean_gradients(folder: Path, ranks: Sequence[int]) -> dict[str, torch.Tensor]:
    """What these learners had accumulated of an update, averaged over them; empty between two updates."""
    mean: dict[str, torch.Tensor] = {}
    for file in (folder / gradients_file(rank) for rank in ranks):
        for name, gradient in (load(file) if file.is_file() else {}).items():
            share = gradient / len(ranks)
            mean[name] = mean[name] + share if name in mean else share
    return mean


class Copies:
    """Copies of tensors in host memory; see `Snapshot.of`. made: all of them."""

    def __init__(self, buffers: list[torch.Tensor]):
        self._free = buffers
        self.made: list[torch.Tensor] = []

    def of(self, value: Any) -> Any:
        """`value` with every tensor in it copied."""
        if isinstance(value, torch.Tensor):
            return self._copy(value.detach())
        if isinstance(value, Mapping):
            return {name: self.of(x) for name, x in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.of(x) for x in value)
        return value

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        place = len(self.made)
        free = self._free[place] if place < len(self._free) else None
        if free is None or free.shape != tensor.shape or free.dtype != tensor.dtype:
            free = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self.made.append(free.copy_(tensor, non_blocking=True))
        return free


def save(what: Any, path: Path | str) -> None:
    """As `torch.save` does. Raises OSError where the disk is full, which PyTorch's own writer puts into riddles."""
    try:
        with open(path, "wb") as file:
            torch.save(what, file)
    except RuntimeError as error:
        raise not_written(path, error) from error


def not_written(path: Path | str, error: BaseException) -> OSError:
    """Why a file was not written, as the system said it: libraries let errors of their own follow on its."""
    first: BaseException | None = error
    while first is not None:
        number = first.errno if isinstance(first, OSError) else None
        if number is None and (told := re.search(r"\(os error (\d+)\)", str(first))):  # safetensors is written in Rust
            number = int(told.group(1))
        if number is not None:
            return OSError(number, f"{path}: {os.strerror(number)}")
        first = first.__cause__ or first.__context__
    return OSError(f"{path}: {(str(error) or type(error).__name__).splitlines()[0]}")


def rng_file(rank: int) -> str:
    return f"{RNG}{rank}.pkl"


def gradients_file(rank: int) -> str:
    return f"gradients_{rank}.bin"


def random_states(batches: int) -> dict[str, Any]:
    """Random states of this process, under accelerate's names."""
    states: dict[str, Any] = {
        "step": batches,
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),
        "torch_manual_seed": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["torch_cuda_manual_seed"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Draw from here on as the process whose `random_states` these are; does nothing where there are none."""
    if not states:
        return
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])
    torch.set_rng_state(states["torch_manual_seed"])
    if torch.cuda.is_available() and len(states.get("torch_cuda_manual_seed", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["torch_cuda_manual_seed"])
