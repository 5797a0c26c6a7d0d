"""A deliberately plain learner of the same losses: what the real one's shortcuts are measured against.

It computes what `Agent` and `MultiTaskAgent` compute, to the last digit that floating point keeps (tests hold it to
that), in the way in which one would write it down first:

* critics are separate modules in a list, each fed the full concatenation [s, gamma feature, a] for every sampled
  action and gamma;
* Q(s, a), V(s) and the DPG term are three passes, the last through a third, frozen copy of the critics;
* everything is computed on padded sequences, and the losses mask the padding;
* clipping, AdamW and Polyak averaging go from parameter to parameter.

Encoders, actor, value scales and the formulas of single terms are the real agent's own.

Shape letters: K sampled actions, B sequences, L transitions, D state width, C critics, G discount factors, A action
vector, O outputs of one critic.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from amago_ray.agent import losses
from amago_ray.agent.actor_critic import Agent, AgentLoss
from amago_ray.agent.policy import TrainingBatch
from amago_ray.learner.learner import LearnerConfig
from amago_ray.nets.critics import MAX_CRITIC_ACTION, CriticEnsemble, EnsembleLinear


def linear(layer: EnsembleLinear, member: int) -> nn.Linear:
    """One member of an ensemble of layers by itself, with a copy of its weights."""
    plain = nn.Linear(*layer.weight.shape[1:])
    with torch.no_grad():
        plain.weight.copy_(layer.weight[member].t())
        plain.bias.copy_(layer.bias[member, 0])
    return plain


class PlainCritic(nn.Module):
    """One critic of an ensemble by itself (without dropout, with the default activation)."""

    def __init__(self, ensemble: CriticEnsemble, member: int):
        super().__init__()
        layers = (ensemble.inp_layer, *ensemble.core_layers, ensemble.output_layer)
        self.layers = nn.ModuleList(linear(layer, member) for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = nn.functional.leaky_relu(layer(x))
        return self.layers[-1](x)


class PlainCritics(nn.Module):
    """The critics of an ensemble in a list, one after another; none of their work is shared."""

    gamma_feature: Tensor

    def __init__(self, ensemble: CriticEnsemble):
        super().__init__()
        self.action_input, self.num_gammas = ensemble.action_input, ensemble.num_gammas
        self.members = nn.ModuleList(PlainCritic(ensemble, c) for c in range(len(ensemble.inp_layer.weight)))
        self.register_buffer("gamma_feature", ensemble.gamma_feature.clone())

    def forward(self, state_BLD: Tensor, action_KBLGA: Tensor) -> Tensor:
        """What `CriticEnsemble.values` gives: (K, B, L, C, G, O). K and G of the actions may be 1 to stand for all."""
        G = self.num_gammas
        if not self.action_input:
            all_BLCX = torch.stack([critic(state_BLD) for critic in self.members], dim=2).float()
            all_BLCGA = all_BLCX.unflatten(-1, (G, -1))
            return (all_BLCGA * action_KBLGA.unsqueeze(-3)).sum(dim=-1, keepdim=True)
        K, B, L = action_KBLGA.shape[:3]
        action = action_KBLGA.clamp(-MAX_CRITIC_ACTION, MAX_CRITIC_ACTION)
        parts = (state_BLD.unsqueeze(2), self.gamma_feature.unsqueeze(-1), action)
        inputs_KBLGX = torch.cat([part.expand(K, B, L, G, part.shape[-1]) for part in parts], dim=-1)
        return torch.stack([critic(inputs_KBLGX) for critic in self.members], dim=3).float()


class PlainAgent(nn.Module):
    """The losses of an agent whose weights it copies, computed plainly.

    Covers what the benchmarks run: no loss masks, no observations for the actor, critics in use.
    """

    def __init__(self, agent: Agent):
        super().__init__()
        self.agent = copy.deepcopy(agent)
        self.critics = PlainCritics(agent.critics)
        self.target_critics = PlainCritics(agent.target_critics).requires_grad_(False)
        self.frozen_critics = copy.deepcopy(self.critics).requires_grad_(False)

    def trainable(self) -> list[nn.Parameter]:
        return [*self.agent.policy.parameters(), *self.critics.parameters()]

    def forward(self, batch: TrainingBatch) -> AgentLoss:
        """The loss of one batch; draws in the order of `Agent.forward`. Updates statistics in training mode."""
        agent, policy = self.agent, self.agent.policy
        state = policy.encode(batch.obs, batch.rl2, batch.time_idx, batch.timestep_mask)
        before, after = state[:, :-1], state[:, 1:].detach()
        dist = policy.actor(before)
        target_BLG = self.td_target(after, batch)
        if self.training:
            agent.popart.update(target_BLG.unsqueeze(-1), batch.mask[..., None, None])
        taken_BLA = policy.actor.policy_output.action_from_buffer(batch.actions)
        pi_KBLGA = agent.draw(dist, agent.num_actions_pi, differentiable=agent.online_coeff > 0)

        q_BLCGO = self.critics(before, taken_BLA[None, :, :, None])[0]
        critic_loss = losses.masked_mean(agent.critic_error(q_BLCGO, target_BLG), batch.mask)

        with torch.no_grad():
            value_KBLCGO = self.critics(before, pi_KBLGA)
            weight_BLG = agent.filter_weight(agent.advantage(agent.scalars(q_BLCGO), agent.scalars(value_KBLCGO)))
        log_prob_BLG = dist.log_prob(batch.actions.unsqueeze(2)).squeeze(-1)
        actor_BLG = agent.offline_coeff * losses.filtered_behavior_cloning(log_prob_BLG, weight_BLG)
        if agent.online_coeff > 0:
            frozen_KBLCGO = self.frozen_critics(before.detach(), pi_KBLGA)
            actor_BLG = actor_BLG + agent.online_coeff * agent.dpg_objective(agent.scalars(frozen_KBLCGO))
        actor_loss = losses.masked_mean(actor_BLG, batch.mask)
        return AgentLoss(actor_loss + agent.critic_loss_weight * critic_loss, actor_loss, critic_loss)

    @torch.no_grad()
    def td_target(self, next_BLD: Tensor, batch: TrainingBatch) -> Tensor:
        """n-step TD targets (B, L, G); what stands in the padding means nothing."""
        agent = self.agent
        actor = agent.target_actor if agent.use_target_actor else agent.policy.actor
        action_KBLGA = agent.draw(actor(next_BLD), agent.num_actions_td, differentiable=False)
        q_KBLCGO = self.target_critics(next_BLD, action_KBLGA)
        q_BLCG = agent.returns(agent.scalars(q_KBLCGO)).mean(dim=0).squeeze(-1)
        q_BLSG = q_BLCG.gather(2, torch.from_numpy(agent.td_ensemble(*q_BLCG.shape[:2])).to(q_BLCG.device))
        q_next_BLG = q_BLSG.amin(dim=2) if agent.online_coeff > 0 else q_BLSG.mean(dim=2)
        reward_BL1 = agent.reward_multiplier * batch.rewards.unsqueeze(-1)
        done_BL1 = batch.terminated.unsqueeze(-1)
        return losses.n_step_target(reward_BL1, done_BL1, q_next_BLG, agent.gammas, batch.mask, agent.n_step)

    @torch.no_grad()
    def update_targets(self) -> None:
        """Polyak averages, and the frozen copy made anew."""
        averaged = ((self.agent.target_actor, self.agent.policy.actor), (self.target_critics, self.critics))
        for target, online in averaged:
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.mul_(1.0 - self.agent.tau).add_(self.agent.tau * fast)
        for frozen, trained in zip(self.frozen_critics.parameters(), self.critics.parameters(), strict=True):
            frozen.copy_(trained)


class PlainLearner:
    """`Learner.update` in so many words: forward, backward, clip, AdamW and Polyak, parameter by parameter."""

    def __init__(self, config: LearnerConfig, agent: Agent):
        self.config = config
        self.agent = PlainAgent(agent.to(config.device)).to(config.device).train()
        self._trainable = self.agent.trainable()
        self._optimizer = torch.optim.AdamW(
            self._trainable, lr=config.learning_rate, weight_decay=config.l2_coeff, foreach=False, fused=False
        )

    def update(self, batch: TrainingBatch) -> None:
        with torch.autocast(self.config.device, torch.bfloat16, enabled=self.config.mixed_precision == "bf16"):
            loss = self.agent(batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self._trainable, self.config.grad_clip, foreach=False)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.agent.update_targets()
