"""What acting and learning share: the policy, and the batch of sequences that it is trained on.

`Policy` is timestep encoder, sequence model and actor. It is what rollout workers hold and what is broadcast to them.

Shape letters: B sequences or environments, L transitions of a training sequence (L + 1 timesteps), N real transitions
of a batch, D state width, A action vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amago_ray.agent.losses import masked_mean
from amago_ray.config.value_checks import check_temperature
from amago_ray.nets.actors import NO_OBS, ActorHead
from amago_ray.nets.distributions import ActionDistribution
from amago_ray.nets.packed_sequences import Packing
from amago_ray.nets.recomputation import recomputed
from amago_ray.nets.traj_encoders import TrajEncoder
from amago_ray.nets.tstep_encoders import TstepEncoder


@dataclass(frozen=True)
class TrainingBatch:
    """Sequences on the learner's device: what `Agent.forward` consumes.

    What belongs to timesteps is padded to (B, L+1, ...), or, with a `packing`, laid end to end as (1, R, ...).
    obs: name -> timesteps. rl2: timesteps x (1+A), previous reward and action vector. time_idx: timesteps, int64.
    What belongs to transitions is always padded.
    actions: (B, L, A) action vectors. rewards: (B, L). terminated: (B, L) float. mask: (B, L) bool, real transitions.
    real_rows: (N,) int64, where `mask` is true in a flat view of (B, L). Found from `mask` when it is not given, which
        on a GPU waits for the device. filled: how many of them, the last ones, are there already and count for nothing
        (see `sizes.rows_of`).
    weight: (B,) of each sequence in the loss; None for equal ones. Where it is given, the loss comes with priorities.
    every_row: actor and critics compute on the padding too, N = B x L, so that no shape depends on the lengths; what is
        in it counts for nothing all the same. critics: (1, N, S, G) int64, which ones each TD target reduces over;
        None where they are still to be drawn.
    pieces: the same sequences, some at a time (see `micro_batches`). whole, target: of a piece that is ready for the
        loss, the batch that it is a piece of, and its TD targets (1, N, G), None where they are still to be made.
    """

    obs: dict[str, Tensor]
    rl2: Tensor
    time_idx: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    mask: Tensor
    real_rows: Tensor | None = None
    filled: int = 0
    weight: Tensor | None = None
    packing: Packing | None = None
    every_row: bool = False
    critics: Tensor | None = None
    pieces: tuple[TrainingBatch, ...] = ()
    whole: TrainingBatch | None = None
    target: Tensor | None = None

    @property
    def _real_rows(self) -> Tensor:
        return self.mask.flatten().nonzero().squeeze(1) if self.real_rows is None else self.real_rows

    @property
    def num_real(self) -> int:
        """How many transitions are real."""
        return len(self._real_rows) - self.filled

    @property
    def counted(self) -> Tensor | None:
        """(1, N) bool, which of the rows that `real` hands out are real ones; None for all of them."""
        if self.every_row:
            return self.mask.flatten().unsqueeze(0)
        if self.filled:
            return (torch.arange(len(self._real_rows), device=self.mask.device) < self.num_real).unsqueeze(0)
        return None

    def before(self, x: Tensor) -> Tensor:
        """Of timesteps x, (B, L+1, ...) or packed, those that real transitions start from, as (1, N, ...)."""
        return self.real(x[:, :-1]) if self.packing is None else x.index_select(1, self.packing.start_N)

    def after(self, x: Tensor) -> Tensor:
        """As `before`, those that real transitions lead to."""
        return self.real(x[:, 1:]) if self.packing is None else x.index_select(1, self.packing.start_N + 1)

    def unpacked(self, x: Tensor) -> Tensor:
        """Of timesteps x, (B, L+1, ...) or packed: (B, L+1, ...), whatever the layout."""
        return x if self.packing is None else self.packing.pad(x)

    def real(self, x_BL: Tensor) -> Tensor:
        """The real transitions of x (B, L, ...), as (1, N, ...), with what is `filled` up; with `every_row` all."""
        x_N = x_BL.flatten(0, 1)
        # Its gradient takes a sixth of the time that the one of x[rows] does, on processors (benchmarks/README.md).
        return (x_N if self.every_row else x_N.index_select(0, self._real_rows)).unsqueeze(0)

    def mean(self, x_1N: Tensor) -> Tensor:
        """Of x (1, N, ...), as `real` hands it out: over what is real."""
        return masked_mean(x_1N, self.counted)

    def padded(self, x_1N: Tensor, fill: float = 0.0) -> Tensor:
        """The inverse of `real`, with `fill` in the padding."""
        if self.every_row:
            x_BL = x_1N.squeeze(0).unflatten(0, self.mask.shape)
            return torch.where(self.mask.view(*self.mask.shape, *[1] * (x_BL.dim() - 2)), x_BL, fill)
        flat, num = x_1N.new_full((self.mask.numel(), *x_1N.shape[2:]), fill), self.num_real
        return flat.index_copy(0, self._real_rows[:num], x_1N.squeeze(0)[:num]).unflatten(0, self.mask.shape)

    @property
    def timestep_mask(self) -> Tensor | None:
        """(B, L+1) bool, or (1, R) of packed ones: a sequence of l transitions has l + 1 real timesteps. None where all
        are real."""
        if self.packing is not None:
            rows, filled = self.time_idx.shape[1], self.packing.filled_rows
            return (torch.arange(rows, device=self.mask.device) < rows - filled).unsqueeze(0) if filled else None
        return nn.functional.pad(self.mask, (1, 0), value=True)


class Policy(nn.Module):
    """The half of the agent that acts: observation, previous action and reward -> state -> action.

    actor_obs_names: observation arrays that the actor sees beside the state.
    action_mask_key: the observation array whose zeros say which actions are illegal.
    temperature: of sampled actions in `act`; it may be set anew at any time. Raises ValueError as
        `check_temperature`.
    """

    def __init__(
        self,
        tstep_encoder: TstepEncoder,
        traj_encoder: TrajEncoder,
        actor: ActorHead,
        actor_obs_names: tuple[str, ...] = (),
        action_mask_key: str | None = None,
        temperature: float = 1.0,
    ):
        super().__init__()
        self.tstep_encoder = tstep_encoder
        self.traj_encoder = traj_encoder
        self.actor = actor
        self.actor_obs_names = actor_obs_names
        self.action_mask_key = action_mask_key
        self.temperature = temperature

    @property
    def temperature(self) -> float:
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        check_temperature(value, f"temperature={value!r}")
        self._temperature = value

    def encode(
        self,
        obs: Mapping[str, Tensor],
        rl2: Tensor,
        time_idx: Tensor,
        timestep_mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """State embeddings (B, L, D) of whole sequences; (1, R, D) of packed ones."""
        embedding = recomputed(self.tstep_encoder, obs, rl2, timestep_mask, packing)
        if packing is None:
            return self.traj_encoder(embedding, time_idx)
        return self.traj_encoder.forward_packed(embedding, time_idx, packing)

    def actor_obs(self, obs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Those arrays of an observation that the actor sees."""
        return {name: obs[name] for name in self.actor_obs_names} if self.actor_obs_names else NO_OBS

    def legal_actions(
        self, obs: Mapping[str, Tensor], rows: Callable[[Tensor], Tensor] = lambda mask: mask
    ) -> Tensor | None:
        """Which categories may be chosen, bool (..., A), in those `rows` of an observation; None: all of them, ever."""
        return None if self.action_mask_key is None else rows(obs[self.action_mask_key]) != 0

    def initial_memory(self, num_envs: int) -> Any:
        return self.traj_encoder.initial_memory(num_envs)

    def recordable_memory(self, num_envs: int) -> Any:
        return self.traj_encoder.recordable_memory(num_envs)

    def reset_memory(self, memory: Any, mask_B: np.ndarray) -> Any:
        return self.traj_encoder.reset_memory(memory, mask_B)

    @torch.inference_mode()
    def act(
        self, obs: Mapping[str, Tensor], rl2: Tensor, time_idx: Tensor, memory: Any, sample: bool
    ) -> tuple[Tensor, Any]:
        """Action vectors (B, A) for one timestep of B environments, by the main gamma, and the new memory.

        obs: name -> (B, ...). rl2: (B, 1+A). time_idx: (B,).
        sample: draw from the policy, at `temperature`, else its mode.
        """
        state, memory = self.step(obs, rl2, time_idx, memory)
        return self.choose(state, obs, sample), memory

    def step(self, obs: Mapping[str, Tensor], rl2: Tensor, time_idx: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """State embeddings (B, D) for one timestep of B environments, and the new memory; arguments as of `act`."""
        embedding = self.tstep_encoder({k: v.unsqueeze(1) for k, v in obs.items()}, rl2.unsqueeze(1)).squeeze(1)
        return self.traj_encoder.step(embedding, time_idx, memory)

    def choose(self, state: Tensor, obs: Mapping[str, Tensor], sample: bool) -> Tensor:
        """Action vectors (B, A) in states (B, D); arguments as of `act`."""
        dist = self.acting_distribution(state, obs, sample)
        return dist.sample() if sample else dist.mode

    def acting_distribution(self, state: Tensor, obs: Mapping[str, Tensor], sample: bool) -> ActionDistribution:
        """What actions are taken from in states (B, D): that of the main gamma, at `temperature` if they are drawn."""
        return self._at_temperature(self.actor.main_gamma(state, self.actor_obs(obs), self.legal_actions(obs)), sample)

    def choose_by(self, params: Tensor, obs: Mapping[str, Tensor], sample: bool) -> Tensor:
        """As `choose`, of what `ActorHead.params` makes of the states, (B, P)."""
        dist = self._at_temperature(self.actor.distribution(params, self.legal_actions(obs)), sample)
        return dist.sample() if sample else dist.mode

    def _at_temperature(self, dist: ActionDistribution, sample: bool) -> ActionDistribution:
        return dist.tempered(self.temperature) if sample and self.temperature != 1.0 else dist
