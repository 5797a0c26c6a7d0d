"""A batch in pieces that go through the networks one after the other, with the gradient of the whole.

The loss of a batch is a mean over its transitions, and its targets are normalised by statistics that have seen all of
them. So the pieces share one look at the statistics, which `ready` takes, and each weighs as many of the transitions
that count as it holds, which `share` tells; dropout and sampled actions are drawn piece by piece.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from amago_ray.agent.policy import TrainingBatch
from amago_ray.agent.transitions import AgentLoss
from amago_ray.nets.packed_sequences import Packing, on_device
from amago_ray.nets.recomputation import held_statistics
from amago_ray.nets.scaling import RunningMoments
from amago_ray.nets.sigma_reparam import SigmaReparam, power_iterations
from amago_ray.nets.sizes import LENGTHS, rounded_up, rows_of

if TYPE_CHECKING:
    from amago_ray.agent.actor_critic import Agent

SUMMED = ("Total Loss", "Actor Loss", "Critic Loss", "Extra Loss")  # metrics that hold a piece's share already


def cut(batch: TrainingBatch, lengths: np.ndarray, size: int, few_sizes: bool = False) -> TrainingBatch:
    """`batch` with `pieces` of `size` sequences each, the last of what is left; views of it, each as long as its own
    longest sequence. lengths: (B,) transitions of each sequence, on the host. Nothing waits for the device.

    few_sizes: of pieces that are padded, too (see `training_batch`).
    """
    pieces = []
    for first in range(0, len(lengths), size):
        its = slice(first, min(first + size, len(lengths)))
        pieces.append(_piece(batch, lengths, its, few_sizes and batch.packing is None))
    return dataclasses.replace(batch, pieces=tuple(pieces))


def _piece(batch: TrainingBatch, lengths: np.ndarray, its: slice, few_sizes: bool) -> TrainingBatch:
    own, device = lengths[its], batch.mask.device
    longest = int(own.max())
    if few_sizes:
        longest = rounded_up(longest, batch.mask.shape[1], LENGTHS)
    real = np.arange(longest) < own[:, None]
    rows, filled = rows_of(real, few_sizes)
    if batch.packing is None:
        packing, timesteps = None, (its, slice(longest + 1))
    else:
        ends = np.concatenate(([0], np.cumsum(lengths + 1)))
        packing = Packing.of(own + 1, device)
        timesteps = (slice(0, 1), slice(int(ends[its.start]), int(ends[its.stop])))
    transitions = (its, slice(longest))
    return TrainingBatch(
        obs={name: x[timesteps] for name, x in batch.obs.items()},
        rl2=batch.rl2[timesteps],
        time_idx=batch.time_idx[timesteps],
        actions=batch.actions[transitions],
        rewards=batch.rewards[transitions],
        terminated=batch.terminated[transitions],
        mask=batch.mask[transitions],
        real_rows=on_device(rows, device),
        filled=filled,
        weight=None if batch.weight is None else batch.weight[its],
        packing=packing,
    )


def ready(agent: Agent, batch: TrainingBatch) -> tuple[TrainingBatch, ...]:
    """The pieces of a batch as `Agent.forward` takes them; the batch itself where it has none.

    In training all running statistics move once, as one forward pass of the whole batch would move them.
    """
    if not batch.pieces:
        return (batch,)
    encoder = agent.policy.tstep_encoder
    with torch.no_grad():
        if agent.training:
            power_iterations(module for module in agent.modules() if isinstance(module, SigmaReparam))
            if any(isinstance(module, RunningMoments) for module in encoder.modules()):
                encoder(batch.obs, batch.rl2, batch.timestep_mask, batch.packing)
        targets: list[Tensor | None] = [None] * len(batch.pieces)
        if agent.uses_critics and agent.popart.enabled:
            with held_statistics():
                targets = [agent.td_target(agent.encode(piece).next_state, piece) for piece in batch.pieces]
            if agent.training:
                real = (x[:, : piece.num_real] for x, piece in zip(targets, batch.pieces, strict=True) if x is not None)
                agent.popart.update(torch.cat(list(real), dim=1).unsqueeze(-1))
    return tuple(
        dataclasses.replace(piece, whole=batch, target=target)
        for piece, target in zip(batch.pieces, targets, strict=True)
    )


def chosen(counts: Callable[[TrainingBatch], Tensor | None], batch: TrainingBatch) -> Tensor | None:
    """The transitions of a batch that `counts` leaves in, (B, L) bool; None for all real ones.

    Raises ValueError for a mask of another shape, which would leave out the wrong ones.
    """
    mask_BL = counts(batch)
    if mask_BL is not None and (mask_BL.shape != batch.mask.shape or mask_BL.dtype != torch.bool):
        raise ValueError(
            f"{getattr(counts, '__qualname__', counts)}: its mask is {mask_BL.dtype} of shape {tuple(mask_BL.shape)}; "
            f"it must be torch.bool of shape (B, L) = {tuple(batch.mask.shape)}, whatever the layout of the batch: of "
            "what belongs to timesteps, take batch.unpacked(x)[:, :-1]"
        )
    return mask_BL


def share(
    piece: TrainingBatch, whole: TrainingBatch, counts: Callable[[TrainingBatch], Tensor | None] = lambda batch: None
) -> Tensor | float:
    """The part of a batch's transitions that a piece of it holds, of those that `counts`, (B, L) bool, leaves in.

    counts: of a batch; None for all real ones.
    """
    mask_BL, whole_BL = chosen(counts, piece), chosen(counts, whole)
    if mask_BL is None or whole_BL is None:
        return piece.num_real / whole.num_real
    return (mask_BL & piece.mask).sum() / (whole_BL & whole.mask).sum().clamp(min=1)


def joined(
    batch: TrainingBatch, pieces: Sequence[TrainingBatch], losses: Sequence[AgentLoss]
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Metrics and priorities of a batch, from those of its pieces."""
    if len(losses) == 1:
        return losses[0].metrics, losses[0].priority
    shares = [share(piece, batch) for piece in pieces]
    metrics = {}
    for name in losses[0].metrics:
        values = [loss.metrics[name] for loss in losses]
        if name.endswith(" Min"):
            metrics[name] = torch.stack(values).amin()
        elif name.endswith(" Max"):
            metrics[name] = torch.stack(values).amax()
        else:
            factors = [1.0] * len(shares) if name in SUMMED else shares
            metrics[name] = torch.stack([value * factor for value, factor in zip(values, factors, strict=True)]).sum()
    priorities = [loss.priority for loss in losses if loss.priority is not None]
    return metrics, torch.cat(priorities) if priorities else None
