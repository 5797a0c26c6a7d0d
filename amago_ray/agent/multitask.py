"""`MultiTaskAgent`: classification critics and filtered behaviour cloning, for returns of very different scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gin
from torch import Tensor

from amago_ray.agent.actor_critic import Agent
from amago_ray.config import reject_unknown_arguments
from amago_ray.nets.critics import CriticEnsemble, NCriticsTwoHot
from amago_ray.specs import ActionSpec, ObsSpec


@gin.configurable(denylist=["action_mask_key"])
class MultiTaskAgent(Agent):
    """An `Agent` for tasks whose returns differ by orders of magnitude (AMAGO-2, arXiv 2411.11188).

    Critics classify returns into bins instead of regressing them, and the actor only clones what the critics approve
    of, so no loss term scales with a task's rewards. Every action space enters the critics as an action vector.

    The settings are those of `Agent`, and are read as `MultiTaskAgent.*` first, then as `Agent.*`. The four below have
    defaults of their own and are read as `MultiTaskAgent.*` alone; where `Agent.*` is bound to something else, a line
    says so. critic_type: must have a `bins` (see `NCriticsTwoHot`).
    """

    critics: NCriticsTwoHot

    def __init__(
        self,
        obs_spec: ObsSpec,
        action_spec: ActionSpec,
        max_seq_len: int,
        critic_type: Callable[..., CriticEnsemble] = NCriticsTwoHot,
        online_coeff: float = 0.0,
        offline_coeff: float = 1.0,
        num_actions_for_value_in_actor_loss: int = 3,
        **settings: Any,
    ):
        reject_unknown_arguments(Agent.__init__, settings, "MultiTaskAgent")
        super().__init__(
            obs_spec,
            action_spec,
            max_seq_len,
            critic_type=critic_type,
            online_coeff=online_coeff,
            offline_coeff=offline_coeff,
            num_actions_for_value_in_actor_loss=num_actions_for_value_in_actor_loss,
            **settings,
        )
        if not hasattr(self.critics, "bins"):
            raise ValueError(
                f"{type(self).__name__}.critic_type={type(self.critics).__name__}: returns are classified, by critics "
                "that have `bins` such as NCriticsTwoHot; take Agent for critics that regress them"
            )

    def scalars(self, q: Tensor) -> Tensor:
        """Bin logits (..., O) decoded to returns (..., 1)."""
        return self.critics.bins.decode(q)

    def returns(self, scalars: Tensor) -> Tensor:
        """Decoded bins are in units of scaled reward already."""
        return scalars

    def critic_error(self, q_BLCGO: Tensor, target_BLG: Tensor) -> Tensor:
        """Cross-entropy (B, L, C, G) of every critic against one label per gamma."""
        label_BLGO = self.critics.bins.encode(target_BLG.unsqueeze(-1))
        log_prob_CBLGO = q_BLCGO.movedim(2, 0).log_softmax(dim=-1)  # critics come first in memory
        return -(label_BLGO * log_prob_CBLGO).sum(dim=-1).movedim(0, 2)

    def td_error(self, critic_BLCG: Tensor) -> Tensor:
        """The cross-entropy itself, which has no scale of rewards."""
        return critic_BLCG

    def dpg_objective(self, value_KBLCG1: Tensor) -> Tensor:
        """- min over critics of the decoded Q(s, a ~ pi), in units of PopArt's standard deviation, (B, L, G)."""
        least_BLG1 = value_KBLCG1.mean(dim=0).amin(dim=2)
        return -self.popart.normalize_target(least_BLG1).squeeze(-1)
