"""The plain learner that the benchmarks compare with computes the same loss and the same gradients."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from agent_cases import B, L, build, every_critic, make_batch
from torch import Tensor

from amago_ray.agent import Agent, MultiTaskAgent
from amago_ray.learner.learner import LearnerConfig
from amago_ray.nets.distributions import ActionDistribution

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
by_agent = pytest.mark.parametrize("agent_type", [Agent, MultiTaskAgent])
by_kind = pytest.mark.parametrize("kind", ["discrete", "continuous"])


@pytest.fixture
def plain_agent(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("plain_agent")


def stacked(plain_critics: torch.nn.Module, take: str) -> dict[str, Tensor]:
    """Weights ("data") or gradients ("grad") of the separate critics in the shapes of `CriticEnsemble`."""
    names = (
        "inp_layer",
        *(f"core_layers.{i}" for i in range(len(plain_critics.members[0].layers) - 2)),
        "output_layer",
    )
    tensors = {}
    for i, name in enumerate(names):
        layers = [critic.layers[i] for critic in plain_critics.members]
        tensors[f"{name}.weight"] = torch.stack([getattr(layer.weight, take).t() for layer in layers])
        tensors[f"{name}.bias"] = torch.stack([getattr(layer.bias, take) for layer in layers]).unsqueeze(1)
    return tensors


def assert_same(real: dict[str, Tensor], plain: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Equal up to `tolerance` of the largest entry of each tensor."""
    assert real.keys() == plain.keys()
    for name, value in real.items():
        error, largest = (value - plain[name]).abs().max(), value.abs().max()
        assert error <= tolerance * largest, f"{name}: {error:.2e} of {largest:.2e}"


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters()}


def assert_same_update(plain_agent: ModuleType, agent: Agent, batch: object) -> None:
    """Loss, gradients and statistics of one forward and backward in training mode, from one random state."""
    plain = plain_agent.PlainAgent(agent).train()
    agent.train()
    for _ in range(2):  # the second time with statistics that are no longer the initial ones
        agent.zero_grad()
        plain.zero_grad()
        torch.manual_seed(1)
        real_loss = agent(batch)
        torch.manual_seed(1)
        plain_loss = plain(batch)
        for part in ("loss", "actor_loss", "critic_loss"):
            torch.testing.assert_close(getattr(plain_loss, part), getattr(real_loss, part), rtol=1e-4, atol=1e-6)
        real_loss.loss.backward()
        plain_loss.loss.backward()
        assert_same(gradients(agent.policy), gradients(plain.agent.policy))
        assert_same(gradients(agent.critics), stacked(plain.critics, "grad"))
        assert_same(dict(agent.popart.named_buffers()), dict(plain.agent.popart.named_buffers()))
    assert max(p.grad.abs().max() for p in agent.parameters() if p.requires_grad) > 0


@by_agent
@by_kind
@pytest.mark.parametrize("n_step", [1, 3])
def test_random_draws_included_the_loss_is_the_same(
    plain_agent: ModuleType, agent_type: type[Agent], kind: str, n_step: int
) -> None:
    """On a batch without padding, where both draw as many actions and critics in the same order."""
    batch = dataclasses.replace(make_batch(kind), mask=torch.ones(B, L, dtype=torch.bool))
    agent = build(kind, agent_type=agent_type, n_step=n_step, num_actions_for_value_in_critic_loss=2)
    assert_same_update(plain_agent, agent, batch)


def every_mode(self: Agent, dist: ActionDistribution, num: int, differentiable: bool) -> Tensor:
    """As `Agent.draw`, without chance: the mode, moved a little for each further action."""
    if self.exact_expectation:
        return dist.probs.unsqueeze(0)
    action = dist.mode if differentiable else dist.mode.detach()
    return torch.stack([0.8**k * action for k in range(num)])


@by_agent
@by_kind
def test_padding_counts_for_nothing(
    plain_agent: ModuleType, monkeypatch: pytest.MonkeyPatch, agent_type: type[Agent], kind: str
) -> None:
    monkeypatch.setattr(Agent, "draw", every_mode)
    monkeypatch.setattr(Agent, "td_ensemble", lambda self, B, L: every_critic(self, B, L)[:, :, : self.num_critics_td])
    assert_same_update(plain_agent, build(kind, agent_type=agent_type), make_batch(kind))


@by_kind
def test_with_the_online_term_as_well(plain_agent: ModuleType, kind: str) -> None:
    batch = dataclasses.replace(make_batch(kind), mask=torch.ones(B, L, dtype=torch.bool))
    assert_same_update(plain_agent, build(kind, agent_type=MultiTaskAgent, online_coeff=0.5), batch)


@by_agent
@by_kind
def test_updates_leave_the_same_weights(plain_agent: ModuleType, agent_type: type[Agent], kind: str) -> None:
    """Clipping, AdamW, Polyak averages and the frozen copy: three updates, beside PyTorch's own defaults."""
    batch = dataclasses.replace(make_batch(kind), mask=torch.ones(B, L, dtype=torch.bool))
    # A clip far below the norm of the gradient, and averages that move fast, so that each would show if it were wrong.
    config = LearnerConfig(grad_clip=0.01, learning_rate=1e-3)
    agent = build(kind, agent_type=agent_type, tau=0.2).train()
    learner = plain_agent.PlainLearner(config, agent)
    trainable = [p for p in agent.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.l2_coeff, eps=1e-8)
    for seed in range(3):
        torch.manual_seed(seed)
        agent(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, config.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        agent.update_targets()
        torch.manual_seed(seed)
        learner.update(batch)
    plain = learner.agent
    assert_same(dict(agent.critics.named_parameters()), stacked(plain.critics, "data"), 1e-3)
    assert_same(dict(agent.target_critics.named_parameters()), stacked(plain.target_critics, "data"), 1e-3)
    assert_same(dict(agent.critics.named_parameters()), stacked(plain.frozen_critics, "data"), 1e-3)
    for name in ("policy", "target_actor"):
        real, copied = getattr(agent, name), getattr(plain.agent, name)
        assert_same(dict(real.named_parameters()), dict(copied.named_parameters()), 1e-3)
