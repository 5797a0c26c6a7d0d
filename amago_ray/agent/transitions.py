"""What the steps of a loss hand on: the transitions of a batch, and the loss itself.

Shape letters: B sequences, N real transitions of a batch, D state width, G discount factors, A action vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from amago_ray.nets.distributions import ActionDistribution


@dataclass(frozen=True)
class Transitions:
    """The N real transitions of a batch, as actor and critics see them, laid out as (B, L) = (1, N); with
    `TrainingBatch.every_row` those of the padding are among them.

    state, next_state: (1, N, D) before and after each, the latter without gradient. taken: (1, N, A) action vectors.
    dist: the policy's distributions of batch shape (1, N, G).
    legal: (1, N, A) bool, the actions that could be taken; None where all always can.
    """

    state: Tensor
    next_state: Tensor
    taken: Tensor
    dist: ActionDistribution
    legal: Tensor | None = None


@dataclass(frozen=True)
class AgentLoss:
    """Scalars of one batch; `loss` is the one to minimise. `metrics` is empty unless it was asked for.

    priority: (B,) of the sequences, where the batch was drawn by priority and critics are trained.
    """

    loss: Tensor
    actor_loss: Tensor
    critic_loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    priority: Tensor | None = None

    def detached(self) -> AgentLoss:
        """The same numbers without the graph that made them, which holds everything that a backward pass needs."""
        return AgentLoss(
            self.loss.detach(),
            self.actor_loss.detach(),
            self.critic_loss.detach(),
            {name: value.detach() for name, value in self.metrics.items()},
            self.priority,
        )
