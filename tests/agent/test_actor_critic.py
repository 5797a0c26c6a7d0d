"""`Agent` on small networks: every action space trains, and padding, targets, draws and memory do what they promise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from agent_cases import (
    ACTION_SPECS,
    LENGTHS,
    OBS_SPEC,
    B,
    G,
    L,
    actor,
    build,
    every_critic,
    ff,
    fill_padding,
    gru,
    make_batch,
    state_of,
    tformer,
    train,
    tstep_encoder,
)
from torch import Tensor

from amago_ray.agent.actor_critic import Agent
from amago_ray.agent.multigammas import AUXILIARY_GAMMAS
from amago_ray.agent.multitask import MultiTaskAgent
from amago_ray.agent.spec import AgentSpec
from amago_ray.nets.policy_outputs import GMM, Beta, PolicyOutput, TanhGaussian
from amago_ray.nets.traj_encoders import TrajEncoder

by_kind = pytest.mark.parametrize("kind", ACTION_SPECS)
by_agent = pytest.mark.parametrize("agent_type", [Agent, MultiTaskAgent])


# --- losses ----------------------------------------------------------------------------------------------------------


@by_kind
@pytest.mark.parametrize("settings", [{}, {"online_coeff": 0.0, "offline_coeff": 1.0}], ids=["online", "offline"])
def test_loss_is_finite_and_falls(kind: str, settings: dict[str, float]) -> None:
    agent = build(kind, fbc_filter_func=torch.ones_like, **settings).train()
    trained = [p for p in agent.parameters() if p.requires_grad]
    history = train(agent, trained, make_batch(kind), lr=3e-3)
    assert np.isfinite(history).all()
    total, actor_part, critic_part = history[-3:].mean(axis=0) / history[:3].mean(axis=0)
    assert total < 0.7
    assert actor_part < 0.95
    assert critic_part < 0.7


@by_kind
def test_online_actor_climbs_the_critics(kind: str) -> None:
    """With the critics held still, the DPG loss alone raises the value of the policy's actions."""
    agent, batch = build(kind, ff, offline_coeff=0.0, critic_loss_weight=0.0).eval(), make_batch(kind)
    history = train(agent, agent.policy.actor.parameters(), batch, lr=1e-2)[:, 1]
    assert all(p.grad is None or not p.grad.any() for p in agent.critics.parameters())
    assert history[-5:].mean() < history[:5].mean() - 0.01


@by_kind
@by_agent
def test_every_trained_parameter_gets_gradient_and_no_other(kind: str, agent_type: type[Agent]) -> None:
    agent = build(kind, agent_type=agent_type, fbc_filter_func=torch.ones_like).train()
    agent(make_batch(kind)).loss.backward()
    idle = [n for n, p in agent.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []
    assert all(n.startswith("target_") for n, p in agent.named_parameters() if not p.requires_grad)
    assert all(p.grad is None for n, p in agent.named_parameters() if n.startswith("target_"))


@by_kind
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("traj_encoder", [gru, tformer], ids=["gru", "tformer"])
@by_agent
def test_padding_never_matters(
    kind: str, n_step: int, traj_encoder: Callable[..., TrajEncoder], agent_type: type[Agent]
) -> None:
    results = []
    for garbage in (0.0, 1e3, -777.0):
        agent = build(kind, traj_encoder, agent_type, n_step=n_step).train()
        batch = fill_padding(make_batch(kind), garbage)
        torch.manual_seed(1)  # the same draws of critics and actions
        out = agent(batch, log=True)
        out.loss.backward()
        gradients = {f"grad/{n}": p.grad for n, p in agent.named_parameters() if p.grad is not None}
        results.append({"loss": out.loss, **out.metrics, **gradients, **state_of(agent)})
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for name, value in results[0].items():
            torch.testing.assert_close(
                other[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
            )


def test_padding_does_not_matter_because_it_is_masked_and_not_by_chance() -> None:
    """The garbage above does reach a loss whose mask calls it real."""
    batch = fill_padding(make_batch("continuous"), 1e3)
    everything = dataclasses.replace(batch, mask=torch.ones_like(batch.mask))
    agent = build("continuous").eval()
    with torch.no_grad():
        losses = [agent(b).loss.item() for b in (batch, everything)]
    assert abs(losses[1] - losses[0]) > 1.0


def test_timestep_mask() -> None:
    batch = make_batch("discrete")
    assert batch.timestep_mask.sum(dim=1).tolist() == [n + 1 for n in LENGTHS]
    assert batch.timestep_mask[:, 0].all()


@by_kind
def test_behavior_cloning_computes_no_critic(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, batch = build(kind, fake_filter=True, online_coeff=0.0, offline_coeff=2.0).train(), make_batch(kind)
    for ensemble in (agent.critics, agent.target_critics):
        monkeypatch.setattr(ensemble, "prepare", None)
        monkeypatch.setattr(ensemble, "values", None)
    before = state_of(agent.popart)
    out = agent(batch, log=True)
    out.loss.backward()
    assert out.critic_loss == 0.0
    assert all(p.grad is None for p in agent.critics.parameters())
    assert all(p.grad is not None and p.grad.any() for p in agent.policy.parameters())
    assert all(torch.equal(value, before[name]) for name, value in agent.popart.state_dict().items())
    with torch.no_grad():
        dist = agent.eval().policy.actor(agent.policy.encode(batch.obs, batch.rl2, batch.time_idx)[:, :-1])
        log_prob = dist.log_prob(batch.actions.unsqueeze(2)).squeeze(-1)
    torch.testing.assert_close(out.loss.detach(), -2.0 * log_prob[batch.mask].mean(), rtol=1e-4, atol=1e-5)


def test_fake_filter_with_an_online_loss_still_has_critics() -> None:
    agent = build("discrete", fake_filter=True)
    assert agent.uses_critics
    assert agent(make_batch("discrete")).critic_loss > 0


def test_logging_changes_no_number_and_reports_every_gamma() -> None:
    results = []
    for log in (False, True):
        agent = build("continuous").train()
        torch.manual_seed(1)
        results.append(agent(make_batch("continuous"), log=log))
    quiet, logged = results
    assert quiet.metrics == {}
    assert quiet.loss.item() == pytest.approx(logged.loss.item(), rel=1e-6)
    for name in ("Q(s,a)", "TD Target", "Policy Entropy"):
        for gamma in (*AUXILIARY_GAMMAS, 0.999):
            assert f"{name} (gamma={gamma:g})" in logged.metrics
    assert all(value.dim() == 0 and value.isfinite() for value in logged.metrics.values())


# --- targets and ensembles -------------------------------------------------------------------------------------------


def test_targets_move_by_exactly_tau() -> None:
    agent = build("continuous", tau=0.25)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = state_of(agent)
    agent.update_targets()
    after = agent.state_dict()
    moved = 0
    for name, value in after.items():
        source = name.replace("target_actor.", "policy.actor.").replace("target_critics.", "critics.")
        if source == name:
            assert torch.equal(value, before[name]), name
        else:
            torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * before[source])
            moved += 1
    assert moved == len(agent.target_actor.state_dict()) + len(agent.target_critics.state_dict())


def test_targets_start_as_copies() -> None:
    agent = build("discrete")
    for target, online in ((agent.target_actor, agent.policy.actor), (agent.target_critics, agent.critics)):
        for ours, theirs in zip(target.parameters(), online.parameters(), strict=True):
            assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()


def test_td_ensemble_draws_with_replacement_for_every_timestep_and_gamma() -> None:
    agent, (b, t, c, g) = build("discrete", num_critics=4, num_critics_td=2), (64, 32, 4, G)
    torch.manual_seed(0)
    drawn = torch.from_numpy(agent.td_ensemble(b, t))
    assert drawn.shape == (b, t, 2, g)
    counts = torch.bincount(drawn.flatten(), minlength=c)
    assert len(counts) == c
    num = drawn.numel()
    assert (counts / num - 1 / c).abs().max() < 5 * math.sqrt(0.25 * 0.75 / num)

    def share_of_equals(x: Tensor, y: Tensor) -> float:
        return (x == y).float().mean().item()

    chance = pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / (num / 2)))
    assert share_of_equals(drawn[:, :, 0], drawn[:, :, 1]) == chance  # without replacement it would be 0
    assert share_of_equals(drawn[1:], drawn[:-1]) == chance
    assert share_of_equals(drawn[:, 1:], drawn[:, :-1]) == chance
    assert share_of_equals(drawn[..., 1:], drawn[..., :-1]) == chance


@pytest.mark.parametrize("online_coeff, reduce", [(1.0, Tensor.amin), (0.0, Tensor.mean)], ids=["min", "mean"])
def test_td_target_reduces_the_ensemble(online_coeff: float, reduce: Callable[..., Tensor]) -> None:
    """r + gamma (1 - d) times the least (online) or mean (offline) value, all in scaled reward."""
    agent = build("discrete", online_coeff=online_coeff, num_critics_td=4, reward_multiplier=7.0).eval()
    agent.td_ensemble = partial(every_critic, agent)
    batch, next_BLD = make_batch("discrete"), torch.randn(B, L, 12)
    probs = agent.target_actor(next_BLD).probs
    q_BLCG = (agent.target_critics.prepare(next_BLD) * probs.unsqueeze(2)).sum(dim=-1)
    value = 10.0 * reduce(q_BLCG, dim=2)  # PopArt starts with sigma 10 and mu 0
    expected = 7.0 * batch.rewards.unsqueeze(-1) + agent.gammas * (1 - batch.terminated.unsqueeze(-1)) * value
    target_1NG = agent.td_target(batch.real(next_BLD), batch)
    torch.testing.assert_close(target_1NG, batch.real(expected.detach()), rtol=1e-4, atol=1e-4)


def test_td_target_acts_by_the_target_actor_unless_told_otherwise() -> None:
    batch, next_BLD, targets = make_batch("discrete"), torch.randn(B, L, 12), {}
    for use_target_actor in (True, False):
        agent = build("discrete", use_target_actor=use_target_actor, num_critics=1, num_critics_td=1).eval()
        before = agent.td_target(batch.real(next_BLD), batch)
        with torch.no_grad():
            agent.policy.actor.base.out_layer.weight.add_(torch.randn(4 * G, 16))
        targets[use_target_actor] = (agent.td_target(batch.real(next_BLD), batch) - before).abs().max()
    assert targets[True] == 0.0 and targets[False] > 1e-2


# --- settings and construction ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"gamma": 1.0}, "Agent.gamma=1.0"),
        ({"gamma": -0.1}, "Agent.gamma=-0.1"),
        ({"num_critics_td": 5}, "Agent.num_critics_td=5.*num_critics=4"),
        ({"num_critics_td": 0}, "Agent.num_critics_td=0"),
        ({"n_step": 0}, "Agent.n_step=0"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("discrete", **settings)


def test_main_gamma_is_last_and_may_be_alone() -> None:
    agent = build("continuous", gamma=0.7)
    torch.testing.assert_close(agent.gammas, torch.tensor([*AUXILIARY_GAMMAS, 0.7]))
    alone = build("continuous", gamma=0.7, use_multigamma=False)
    assert alone.gamma_names == ("0.7",)
    assert alone(make_batch("continuous")).loss.isfinite()


def test_families_without_differentiable_samples_train_offline() -> None:
    gmm = partial(actor, policy_output_type=GMM)
    assert build("continuous", actor_type=gmm, online_coeff=0.0)(make_batch("continuous")).loss.isfinite()
    with pytest.raises(NotImplementedError, match="online_coeff to 0"):
        build("continuous", actor_type=gmm)(make_batch("continuous"))


@pytest.mark.parametrize("family", [TanhGaussian, Beta, GMM])
def test_actions_in_the_data_may_lie_at_the_bounds(family: type[PolicyOutput]) -> None:
    """Where tanh has no inverse and a Beta no finite density: everything stays finite while they are cloned."""
    agent = build(
        "continuous", actor_type=partial(actor, policy_output_type=family), online_coeff=0.0, offline_coeff=1.0,
        fbc_filter_func=torch.ones_like,
    ).train()  # fmt: skip
    batch = make_batch("continuous")
    batch = dataclasses.replace(batch, actions=batch.actions.sign())
    history = train(agent, agent.trainable_params, batch, lr=1e-2)
    assert np.isfinite(history).all() and all(p.isfinite().all() for p in agent.parameters())
    assert history[-1, 1] < history[0, 1]


def agent_spec(seed: int) -> AgentSpec:
    return AgentSpec(OBS_SPEC, ACTION_SPECS["discrete"], L, tstep_encoder, gru, Agent, seed)


def test_spec_builds_the_same_weights_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("an accelerator's random state was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state()
    first = agent_spec(3).build()
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(17)
    second, other = agent_spec(3).build(), agent_spec(4).build()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    name = "policy.actor.base.in_layer.weight"
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


# --- acting ----------------------------------------------------------------------------------------------------------


@by_kind
@pytest.mark.parametrize("traj_encoder", [gru, tformer, ff], ids=["gru", "tformer", "ff"])
def test_acting_by_steps_equals_whole_sequences(kind: str, traj_encoder: Callable[..., TrajEncoder]) -> None:
    """Environment 1 starts a new rollout in the middle; actions are those of the main gamma at every state."""
    agent, num_envs, total, restart = build(kind, traj_encoder).eval(), 2, L, 5
    policy, spec = agent.policy, ACTION_SPECS[kind]
    torch.manual_seed(3)
    obs = {"x": 3 * torch.randn(num_envs, total, 3), "n": torch.randint(4, (num_envs, total))}
    rl2 = 3 * torch.randn(num_envs, total, 1 + spec.vector_size)
    time_idx = torch.stack((torch.arange(total), torch.cat((torch.arange(restart), torch.arange(total - restart)))))
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter.mul_(5.0 if parameter.dim() == 2 else 0.0)  # policies that differ between states

        def modes(env: int, start: int, stop: int) -> Tensor:
            here = (slice(env, env + 1), slice(start, stop))
            state = policy.encode({k: v[here] for k, v in obs.items()}, rl2[here], time_idx[here])
            return policy.actor(state).mode[0, :, -1]

        expected = torch.stack((modes(0, 0, total), torch.cat((modes(1, 0, restart), modes(1, restart, total)))))

    memory, actions = policy.initial_memory(num_envs), []
    for t in range(total):
        memory = policy.reset_memory(memory, np.array([False, t == restart]))
        action, memory = policy.act(
            {k: v[:, t] for k, v in obs.items()}, rl2[:, t], time_idx[:, t], memory, sample=False
        )
        actions.append(action)
    actual = torch.stack(actions, dim=1)
    torch.testing.assert_close(actual.clone(), expected, rtol=1e-4, atol=1e-5)
    assert len(actual.flatten(0, 1).unique(dim=0)) > 1


def test_sampled_actions_follow_the_policy() -> None:
    agent, num_envs = build("discrete", ff).eval(), 4000
    obs = {"x": torch.ones(num_envs, 3), "n": torch.zeros(num_envs, dtype=torch.int64)}
    rl2, time_idx = torch.ones(num_envs, 5), torch.zeros(num_envs, dtype=torch.int64)
    with torch.no_grad():
        agent.policy.actor.base.out_layer.bias[-4:] = torch.tensor([0.0, 1.0, -1.0, 2.0])
        state = agent.policy.encode({k: v[:1, None] for k, v in obs.items()}, rl2[:1, None], time_idx[:1, None])
        probs = agent.policy.actor.main_gamma(state[:, 0]).probs[0]
    torch.manual_seed(0)
    sampled, _ = agent.policy.act(obs, rl2, time_idx, agent.policy.initial_memory(num_envs), sample=True)
    assert (sampled.sum(dim=-1) == 1).all()
    assert (sampled.mean(dim=0) - probs).abs().max() < 5 * 0.5 / math.sqrt(num_envs)
    greedy, _ = agent.policy.act(obs, rl2, time_idx, agent.policy.initial_memory(num_envs), sample=False)
    assert (greedy.argmax(dim=-1) == probs.argmax()).all()
