"""`Agent`: off-policy actor-critic RL on top of a sequence model (AMAGO, arXiv 2310.09971).

Around a `policy.Policy`, the half that acts, `Agent` puts critics, target networks and value scales, and turns a batch
into a loss.

Shape letters: B sequences, L transitions of a training sequence (L + 1 timesteps), D state width, K sampled actions,
C critics, S of them that a target reduces over, G discount factors (the main gamma is always the last), A action
vector.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import gin
import numpy as np
import torch
from torch import Tensor, nn

from amago_ray.agent import losses
from amago_ray.agent.checks import check_action_mask, check_actor_sees, check_numbers, check_obs_names
from amago_ray.agent.learning_metrics import entropy_metrics, filter_metrics, value_metrics
from amago_ray.agent.micro_batches import chosen, share
from amago_ray.agent.multigammas import Multigammas
from amago_ray.agent.optimizers import OptimizerType, build_optimizer
from amago_ray.agent.policy import Policy, TrainingBatch
from amago_ray.agent.transitions import AgentLoss, Transitions
from amago_ray.config.value_checks import check_temperature
from amago_ray.nets.actors import Actor, ActorHead
from amago_ray.nets.critics import CriticEnsemble, NCritics
from amago_ray.nets.distributions import ActionDistribution
from amago_ray.nets.recomputation import recomputed
from amago_ray.nets.scaling import PopArt
from amago_ray.nets.traj_encoders import TformerTrajEncoder, TrajEncoder
from amago_ray.nets.tstep_encoders import FFTstepEncoder, TstepEncoder
from amago_ray.specs import ActionSpec, ObsSpec

Network = TypeVar("Network", bound=nn.Module)


@gin.configurable(denylist=["action_mask_key"])
class Agent(nn.Module):
    """Actor-critic over every gamma at once: an ensemble TD loss, a DPG loss and filtered behaviour cloning.

    online_coeff, offline_coeff: weights of the DPG and the filtered-BC term of the actor loss.
    gamma: main discount factor, the one that acts; it is trained last of `Multigammas`.
    reward_multiplier: scale of rewards in the loss. tau: Polyak rate of the target networks.
    num_critics: ensemble size. num_critics_td: how many of them, drawn anew each step, a TD target reduces over.
    num_actions_for_value_in_critic_loss, ..._in_actor_loss: sampled actions per state (ignored where the expectation
        over actions is exact, which it is for discrete actions).
    fake_filter: clone all behaviour; with online_coeff 0 no critic is computed at all.
    fbc_filter_func: advantage -> weight (`binary_filter`, `exp_filter`, `leaky_relu_filter`).
    popart: normalise values (arXiv 1809.04474). use_target_actor: TD targets act by the slow copy of the actor.
    use_multigamma: train the auxiliary gammas. n_step: length of the TD returns.
    critic_loss_weight: weight of the critic loss beside the actor loss.
    pass_obs_keys_to_actor: names of observation arrays that the actor sees as they are, beside the state (see
        `ActorHead`).
    temperature: of the actions that are sampled to act (`ActionDistribution.tempered`); the loss knows nothing of it.
    optimizer_type: (parameters, lr=..., weight_decay=...) -> optimiser; None: AdamW. See `init_optimizer`.
    action_mask_key: comes from `Experiment.action_mask_key`. The observation array, one number per entry of the action
        vector, whose zeros say which categories are illegal. Wherever the policy is used these have probability 0:
        sampled actions, V(s), and targets by the mask of the next state.
    """

    gammas: Tensor

    def __init__(
        self,
        obs_spec: ObsSpec,
        action_spec: ActionSpec,
        max_seq_len: int,
        tstep_encoder_type: type[TstepEncoder] = FFTstepEncoder,
        traj_encoder_type: type[TrajEncoder] = TformerTrajEncoder,
        actor_type: type[ActorHead] = Actor,
        critic_type: Callable[..., CriticEnsemble] = NCritics,
        num_critics: int = 4,
        num_critics_td: int = 2,
        online_coeff: float = 1.0,
        offline_coeff: float = 0.1,
        gamma: float = 0.999,
        reward_multiplier: float = 10.0,
        tau: float = 0.003,
        fake_filter: bool = False,
        num_actions_for_value_in_critic_loss: int = 1,
        num_actions_for_value_in_actor_loss: int = 1,
        fbc_filter_func: Callable[[Tensor], Tensor] = losses.binary_filter,
        popart: bool = True,
        use_target_actor: bool = True,
        use_multigamma: bool = True,
        n_step: int = 1,
        critic_loss_weight: float = 10.0,
        pass_obs_keys_to_actor: Sequence[str] | None = None,
        temperature: float = 1.0,
        optimizer_type: OptimizerType | None = None,
        action_mask_key: str | None = None,
    ):
        super().__init__()
        name = type(self).__name__
        counts = {
            "n_step": n_step,
            "num_actions_for_value_in_critic_loss": num_actions_for_value_in_critic_loss,
            "num_actions_for_value_in_actor_loss": num_actions_for_value_in_actor_loss,
        }
        coefficients = {"online_coeff": online_coeff, "offline_coeff": offline_coeff}
        check_numbers(name, gamma, num_critics, num_critics_td, tau, counts, coefficients)
        if fake_filter and online_coeff == 0 and offline_coeff == 0:
            raise ValueError(f"{name}.online_coeff=0 and offline_coeff=0 with fake_filter: nothing is trained")
        obs_names = () if pass_obs_keys_to_actor is None else pass_obs_keys_to_actor
        check_obs_names(f"{name}.pass_obs_keys_to_actor", obs_names, obs_spec)
        check_temperature(temperature, f"{name}.temperature={temperature!r}")
        check_action_mask(action_mask_key, obs_spec, action_spec)
        self.action_spec = action_spec
        self.num_critics_td = num_critics_td
        self.online_coeff, self.offline_coeff = online_coeff, offline_coeff
        self.reward_multiplier = reward_multiplier
        self.tau = tau
        self.fake_filter = fake_filter
        self.num_actions_td = num_actions_for_value_in_critic_loss
        self.num_actions_pi = num_actions_for_value_in_actor_loss
        self.filter = fbc_filter_func
        self.use_target_actor = use_target_actor
        self.n_step = n_step
        self.critic_loss_weight = critic_loss_weight
        self.optimizer_type = optimizer_type

        gammas = (*(Multigammas().for_actions(action_spec.kind) if use_multigamma else ()), gamma)
        self.gamma_names = tuple(f"{g:g}" for g in gammas)
        self.register_buffer("gammas", torch.tensor(gammas, dtype=torch.float32), persistent=False)
        tstep_encoder = tstep_encoder_type(obs_spec=obs_spec, rl2_dim=1 + action_spec.vector_size)
        traj_encoder = traj_encoder_type(tstep_dim=tstep_encoder.emb_dim, max_seq_len=max_seq_len)
        state_dim = traj_encoder.emb_dim
        actor = actor_type(state_dim=state_dim, action_spec=action_spec, num_gammas=len(gammas))
        check_actor_sees(f"{name}.pass_obs_keys_to_actor", obs_names, actor)
        self.policy = Policy(tstep_encoder, traj_encoder, actor, tuple(obs_names), action_mask_key, temperature)
        self.critics = critic_type(
            state_dim=state_dim, action_spec=action_spec, gammas=self.gammas, num_critics=num_critics
        )
        if type(self).critic_error is Agent.critic_error and getattr(self.critics, "num_outputs", 1) != 1:
            raise ValueError(
                f"{name}.critic_type={type(self.critics).__name__}: returns are regressed, by critics of one output, "
                "such as NCritics; take MultiTaskAgent for critics that classify them"
            )
        self.popart = PopArt(len(gammas), enabled=popart)
        self._slow_copies: list[tuple[nn.Module, nn.Module]] = []
        self.target_actor = self.slow_copy(actor)
        self.target_critics = self.slow_copy(self.critics)
        self.init_extra_networks()

    def init_extra_networks(self) -> None:
        """A hook for subclasses: make further modules here, as attributes.

        Everything that `Agent` has is there (`policy`, `critics`, `gammas`, `action_spec`). What is made is trained,
        moved between devices and saved with the agent; `slow_copy` gives it a target network. Workers, who hold
        `policy` alone, never see it.
        """

    def slow_copy(self, network: Network) -> Network:
        """A target network, to be kept as an attribute: a copy that is not trained and follows `network` by `tau`.

        Its buffers are those of `network`, as they are after every update.
        """
        target = copy.deepcopy(network).requires_grad_(False)
        self._slow_copies.append((target, network))
        return target

    @property
    def trainable_params(self) -> list[nn.Parameter]:
        """What an optimiser trains: everything but the target networks."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def init_optimizer(self, learning_rate: float, l2_coeff: float) -> torch.optim.Optimizer:
        """The optimiser of this agent's `trainable_params`; override it for groups with rates of their own.

        The learner warms up every group's rate, and clips the gradient over all.
        """
        return build_optimizer(self.optimizer_type, self.trainable_params, learning_rate, l2_coeff)

    @property
    def exact_expectation(self) -> bool:
        """Whether action probabilities may stand for sampled actions: V(s) = sum_a pi(a|s) Q(s, a)."""
        return not self.critics.action_input

    @property
    def uses_critics(self) -> bool:
        return not (self.fake_filter and self.online_coeff == 0)

    @property
    def trains_all(self) -> bool:
        """Whether the loss has a gradient for all `trainable_params`, unless further networks say otherwise."""
        return self.uses_critics and (self.online_coeff > 0 or self.offline_coeff > 0)

    def forward(self, batch: TrainingBatch, log: bool = False) -> AgentLoss:
        """The loss of one batch. Updates PopArt and input statistics as it goes when in training mode.

        Only the encoders see padded sequences. Actor and critics compute on the N real transitions of the batch, laid
        out as (B, L) = (1, N).
        """
        metrics: dict[str, Tensor] = {}
        real = self.encode(batch)
        critic_loss, priority_B, judgement = real.state.new_zeros(()), None, None
        if self.uses_critics:
            target_BLG = self.td_target(real.next_state, batch) if batch.target is None else batch.target
            if self.training and batch.target is None:
                counted = batch.counted
                self.popart.update(target_BLG.unsqueeze(-1), None if counted is None else counted[..., None, None])
            q_out, value_KBLCG1 = self.judge(real)
            critic_BLCG = self.critic_error(q_out, target_BLG)
            if batch.weight is not None:
                priority_B = self.priority(critic_BLCG.detach(), batch)
            critic_loss = self._mean(critic_BLCG, self.critic_mask, batch)
            q_BLCG1 = self.scalars(q_out.detach())
            judgement = q_BLCG1, value_KBLCG1
            if log:
                q_BLCG = self.returns(q_BLCG1).squeeze(-1)
                metrics |= value_metrics(q_BLCG, target_BLG, self.popart, self.gamma_names, batch.counted)
        actor_BLG = self.actor_objective(real.dist, real.taken, judgement, metrics, log)
        actor_loss = self._mean(actor_BLG, self.actor_mask, batch)
        loss = actor_loss + self.critic_loss_weight * critic_loss
        extra = self.extra_loss(real, batch)
        if extra is not None:
            extra = extra if batch.whole is None else extra * share(batch, batch.whole)
            loss = loss + extra
            metrics |= {"Extra Loss": extra} if log else {}
        if log:
            metrics |= entropy_metrics(real.dist.entropy().squeeze(-1), self.gamma_names)
            metrics = {name: batch.mean(value) if value.dim() > 1 else value for name, value in metrics.items()}
            metrics |= {"Total Loss": loss, "Actor Loss": actor_loss, "Critic Loss": critic_loss}
        return AgentLoss(loss, actor_loss, critic_loss, metrics, priority_B)

    @staticmethod
    def _mean(x: Tensor, counts: Callable[[TrainingBatch], Tensor | None], batch: TrainingBatch) -> Tensor:
        """Of x (1, N, ...), over the real transitions that `counts` leaves in; each weighs as its sequence does."""
        if batch.weight is not None:
            weight_1N = batch.real(batch.weight.unsqueeze(1).expand_as(batch.mask))
            x = x * weight_1N.view(*weight_1N.shape, *[1] * (x.dim() - 2))
        mask_BL, counted_1N = chosen(counts, batch), batch.counted
        if mask_BL is not None:
            counted_1N = batch.real(mask_BL) if counted_1N is None else batch.real(mask_BL) & counted_1N
        mean = losses.masked_mean(x, counted_1N)
        return mean if batch.whole is None else mean * share(batch, batch.whole, counts)

    def priority(self, critic_BLCG: Tensor, batch: TrainingBatch) -> Tensor:
        """How much is still to be learned from each sequence, (B,): the larger, the more often replay draws it.

        See `losses.sequence_priority`. critic_BLCG: `critic_error` of the real transitions.
        """
        error_BL = batch.padded(self.td_error(critic_BLCG).mean(dim=(2, 3)))
        return losses.sequence_priority(error_BL, batch.mask)

    def td_error(self, critic_BLCG: Tensor) -> Tensor:
        """The size of each critic's error, from `critic_error`."""
        return critic_BLCG.sqrt()

    def get_values(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """What the agent makes of stored data, name -> (B, L, G) with NaN in the padding; nothing is left changed.

        "q": Q(s, a), and "value": V(s), means over the ensemble. "target": TD targets of Q. These three are returns in
            units of scaled reward.
        "advantage": A(s, a), and "filter_weight": the weight that filtered behaviour cloning gives it. For `Agent`
            advantages are in the units of raw critic outputs, as in its loss.

        Computed in evaluation mode. Actions and critics are drawn as for the loss, and asking again draws the same.
        Raises ValueError where no critic is trained.
        """
        if not self.uses_critics:
            raise ValueError("get_values: with fake_filter and online_coeff=0 this agent trains no critics")
        with self._looking_only():
            real = self.encode(batch)
            target_BLG = self.td_target(real.next_state, batch)
            q_out, value = self.judge(real)
            q = self.scalars(q_out)
            advantage_BLG = self.advantage(q, value)
            values = {
                "q": self.returns(q).mean(dim=2).squeeze(-1),
                "value": self.returns(value).mean(dim=(0, 3)).squeeze(-1),
                "advantage": advantage_BLG,
                "filter_weight": self.filter_weight(advantage_BLG),
                "target": target_BLG,
            }
            return {name: batch.padded(value, fill=torch.nan) for name, value in values.items()}

    @contextmanager
    def _looking_only(self) -> Iterator[None]:
        """In evaluation mode, without gradient; afterwards modes and random states are what they were."""
        modes = [(module, module.training) for module in self.modules()]
        devices = [self.gammas.device] if self.gammas.is_cuda else []
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                self.eval()
                yield
        finally:
            for module, training in modes:
                module.training = training

    def actor_mask(self, batch: TrainingBatch) -> Tensor | None:
        """(B, L) bool, transitions that the actor loss counts; override it to leave some out. None: all real ones.

        What belongs to timesteps, such as `time_idx`, has that shape as `batch.unpacked(x)[:, :-1]`.
        What is true in the padding does not matter. PopArt and logged means go on counting every real transition.
        """
        return None

    def critic_mask(self, batch: TrainingBatch) -> Tensor | None:
        """As `actor_mask`, for the critic loss."""
        return None

    def extra_loss(self, real: Transitions, batch: TrainingBatch) -> Tensor | None:
        """A scalar to add to the loss; override it, for what `init_extra_networks` made, say. None: nothing.

        A mean over real transitions, as `batch.mean` makes it: of a batch in pieces, each counts by its number of them.
        """
        return None

    def encode(self, batch: TrainingBatch) -> Transitions:
        """States and policy of the real transitions of a batch."""
        state = self.policy.encode(batch.obs, batch.rl2, batch.time_idx, batch.timestep_mask, batch.packing)
        before, after = batch.before(state), batch.after(state.detach())
        obs = {name: batch.before(x) for name, x in self.policy.actor_obs(batch.obs).items()}
        legal = self.policy.legal_actions(batch.obs, batch.before)
        dist = self.policy.actor(before, obs, legal)
        return Transitions(before, after, batch.real(batch.actions), dist, legal)

    def judge(self, real: Transitions) -> tuple[Tensor, Tensor]:
        """Critic outputs for the actions taken, (1, N, C, G, O), and scalars for the policy's, (K, 1, N, C, G, 1).

        The latter pass gradient to the policy's actions alone.
        """
        prepared = recomputed(self.critics.prepare, real.state)
        taken_BLA = self.policy.actor.policy_output.action_from_buffer(real.taken, real.legal)
        q_out = self.critics.values(prepared, taken_BLA[None, :, :, None])[0]
        pi_KBLGA = self.draw(real.dist, self.num_actions_pi, differentiable=self.online_coeff > 0)
        return q_out, self.critics.values(prepared, pi_KBLGA, frozen=True, read=self.scalars)

    @torch.no_grad()
    def td_target(self, next_BLD: Tensor, batch: TrainingBatch) -> Tensor:
        """n-step TD targets (1, N, G), in units of scaled reward, from the states (1, N, D) after each transition."""
        actor = self.target_actor if self.use_target_actor else self.policy.actor
        obs = {name: batch.after(x) for name, x in self.policy.actor_obs(batch.obs).items()}
        dist = actor(next_BLD, obs, self.policy.legal_actions(batch.obs, batch.after))
        action_KBLGA = self.draw(dist, self.num_actions_td, differentiable=False)
        members_BLSG = self.td_ensemble(*next_BLD.shape[:2]) if batch.critics is None else batch.critics
        prepared = self.target_critics.prepare(next_BLD)
        q_KBLSG1 = self.target_critics.values_of(members_BLSG, prepared, action_KBLGA, read=self.scalars)
        q_BLSG = self.returns(q_KBLSG1).mean(dim=0).squeeze(-1)
        q_next_BLG = q_BLSG.amin(dim=2) if self.online_coeff > 0 else q_BLSG.mean(dim=2)
        reward_BL1 = self.reward_multiplier * batch.rewards.unsqueeze(-1)
        return batch.real(
            losses.n_step_target(
                reward_BL1,
                batch.terminated.unsqueeze(-1),
                batch.padded(q_next_BLG),
                self.gammas,
                batch.mask,
                self.n_step,
            )
        )

    def scalars(self, q: Tensor) -> Tensor:
        """Critic outputs (..., O) as one number each, (..., 1), on the critics' own scale: the same for all gammas."""
        return q

    def returns(self, scalars: Tensor) -> Tensor:
        """`scalars` (..., G, 1) in units of scaled reward."""
        return self.popart.denormalize(scalars)

    def td_ensemble(self, B: int, L: int) -> np.ndarray:
        """The critics that a TD target reduces over, (B, L, S, G) int64: a random subset, drawn with replacement for
        every timestep and gamma (REDQ, arXiv 2101.05982). On the host, which so knows how much each has to compute.
        """
        members = np.empty((B, L, self.num_critics_td, len(self.gammas)), np.int64)
        torch.randint(self.critics.num_critics, members.shape, out=torch.from_numpy(members))
        return members

    def draw(self, dist: ActionDistribution, num: int, differentiable: bool) -> Tensor:
        """Action vectors (K, B, L, G, A): the probabilities alone where expectations are exact, else `num` samples."""
        if self.exact_expectation:
            return dist.probs.unsqueeze(0)
        sample = dist.rsample if differentiable else dist.sample
        return torch.stack([sample() for _ in range(num)])

    def critic_error(self, q_BLCGO: Tensor, target_BLG: Tensor) -> Tensor:
        """Error of every critic (B, L, C, G) in the normalised space."""
        normalised_BLG = self.popart.normalize_target(target_BLG.unsqueeze(-1)).squeeze(-1)
        return losses.critic_mse(self.popart(q_BLCGO).squeeze(-1), normalised_BLG)

    def advantage(self, q_BLCG1: Tensor, value_KBLCG1: Tensor) -> Tensor:
        """A(s, a) = mean over critics of Q(s, a) minus that of V(s), (B, L, G), in `scalars`."""
        return (q_BLCG1.mean(dim=2) - value_KBLCG1.detach().mean(dim=(0, 3))).squeeze(-1)

    def filter_weight(self, advantage_BLG: Tensor) -> Tensor:
        """Weight (B, L, G) of each transition in behaviour cloning."""
        return torch.ones_like(advantage_BLG) if self.fake_filter else self.filter(advantage_BLG)

    def dpg_objective(self, value_KBLCG1: Tensor) -> Tensor:
        """- min over critics of Q(s, a ~ pi), normalised, (B, L, G); gradient flows to the action only."""
        return -self.popart(value_KBLCG1.mean(dim=0).amin(dim=2)).squeeze(-1)

    def actor_objective(
        self,
        dist: ActionDistribution,
        taken_BLA: Tensor,
        judgement: tuple[Tensor, Tensor] | None,
        metrics: dict[str, Tensor],
        log: bool,
    ) -> Tensor:
        """Weighted sum (B, L, G) of the DPG and the filtered-BC objective.

        judgement: scalars Q(s, a) of the actions taken, (B, L, C, G, 1), and those of the policy's, (K, B, L, C, G, 1);
        None where no critic is trained, and all actions are cloned alike.
        metrics: what to log goes in here: (B, L), for its mean over real transitions, or a scalar.
        """
        objective = taken_BLA.new_zeros((*taken_BLA.shape[:2], len(self.gammas)))
        if judgement is not None and self.online_coeff > 0:
            objective = objective + self.online_coeff * self.dpg_objective(judgement[1])
        if self.offline_coeff > 0:
            log_prob_BLG = dist.log_prob(taken_BLA.unsqueeze(2)).squeeze(-1)
            weight_BLG = torch.ones_like(log_prob_BLG)
            if judgement is not None:
                advantage_BLG = self.advantage(*judgement)
                weight_BLG = self.filter_weight(advantage_BLG)
                if log:
                    metrics |= filter_metrics(weight_BLG, advantage_BLG, log_prob_BLG, self.gamma_names[-1])
            objective = objective + self.offline_coeff * losses.filtered_behavior_cloning(log_prob_BLG, weight_BLG)
        return objective

    @torch.no_grad()
    def update_targets(self) -> None:
        """Move the target networks toward the trained ones by `tau` (Polyak); call after every optimiser step."""
        for target, online in self._slow_copies:
            torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), self.tau)
            if statistics := list(target.buffers()):  # such as those of input normalisation
                torch._foreach_copy_(statistics, list(online.buffers()))
