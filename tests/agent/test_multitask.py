"""`MultiTaskAgent` on small networks: it trains in every action space, by bins, and reads its settings as it says."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gin
import numpy as np
import pytest
import torch
from agent_cases import (
    ACTION_SPECS,
    OBS_SPEC,
    G,
    L,
    actor,
    bin_critics,
    build,
    gru,
    make_batch,
    state_of,
    train,
    tstep_encoder,
)

from amago_ray import Experiment, config
from amago_ray.agent.actor_critic import Agent
from amago_ray.agent.losses import binary_filter, exp_filter
from amago_ray.agent.multitask import MultiTaskAgent
from amago_ray.config import unread
from amago_ray.nets.actors import ResidualActor
from amago_ray.nets.critics import NCriticsTwoHot
from amago_ray.nets.policy_outputs import GMM, Beta

by_kind = pytest.mark.parametrize("kind", ACTION_SPECS)
by_label = pytest.mark.parametrize("label_type", ["twohot", "hlgauss"])
multitask = partial(build, agent_type=MultiTaskAgent)


@pytest.fixture(autouse=True)
def validation_of_distributions() -> Iterator[None]:
    """PyTorch's own checks of arguments, which a soft one-hot or a sample out of range would not pass."""
    torch.distributions.Distribution.set_default_validate_args(True)
    yield
    torch.distributions.Distribution.set_default_validate_args(__debug__)


# --- training --------------------------------------------------------------------------------------------------------


@by_kind
@by_label
@pytest.mark.parametrize("online_coeff", [0.0, 1.0], ids=["offline", "online"])
def test_loss_is_finite_and_falls(kind: str, label_type: str, online_coeff: float) -> None:
    critics = partial(bin_critics, label_type=label_type)
    settings = {"critic_type": critics, "fbc_filter_func": torch.ones_like, "online_coeff": online_coeff}
    agent, batch = multitask(kind, **settings).train(), make_batch(kind)
    history = train(agent, [p for p in agent.parameters() if p.requires_grad], batch, lr=3e-3)
    assert np.isfinite(history).all()
    total, actor_part, critic_part = (history[:3] - history[-3:]).mean(axis=0)
    assert total > 1.0 and critic_part > 0.1
    if not online_coeff:  # the loss of an online actor moves with the critics that judge it
        assert actor_part > 0.02


@pytest.mark.parametrize("family", [Beta, GMM])
def test_other_families_of_continuous_actions(family: type) -> None:
    agent = multitask("continuous", actor_type=partial(actor, policy_output_type=family)).train()
    batch = make_batch("continuous")
    history = train(agent, [p for p in agent.parameters() if p.requires_grad], batch, lr=3e-3)
    assert np.isfinite(history).all() and history[-1, 0] < history[0, 0]


def test_with_a_residual_actor() -> None:
    heads = partial(ResidualActor, feature_dim=8, residual_ff_dim=16)
    agent, batch = (
        multitask("discrete", actor_type=heads, fbc_filter_func=torch.ones_like).train(),
        make_batch("discrete"),
    )
    history = train(agent, [p for p in agent.parameters() if p.requires_grad], batch, lr=3e-3)
    assert np.isfinite(history).all() and history[-1, 1] < 0.9 * history[0, 1]


@by_kind
def test_bins_and_not_popart_carry_the_values(kind: str) -> None:
    """Statistics are kept, and neither targets nor the critic loss look at them."""
    results = []
    for mu in (0.0, 50.0):
        agent, batch = multitask(kind).train(), make_batch(kind)
        agent.popart.mu.fill_(mu)
        before = state_of(agent.popart)
        torch.manual_seed(1)
        results.append(agent(batch))
        assert not torch.equal(agent.popart.mu, before["mu"])
    assert results[0].critic_loss == results[1].critic_loss
    assert results[0].actor_loss == results[1].actor_loss


def test_the_actor_loss_does_not_scale_with_rewards() -> None:
    losses = []
    for multiplier in (1.0, 1000.0):
        agent = multitask("continuous", reward_multiplier=multiplier).eval()
        torch.manual_seed(1)
        losses.append(agent(make_batch("continuous")))
    assert losses[0].actor_loss == losses[1].actor_loss
    assert losses[1].critic_loss < 100 * losses[0].critic_loss


def test_discrete_actions_are_drawn_as_one_hots() -> None:
    agent = multitask("discrete")
    dist = agent.policy.actor(torch.randn(2, 3, 12))
    for differentiable in (False, True):
        drawn = agent.draw(dist, 3, differentiable)
        assert drawn.shape == (3, 2, 3, G, 4) and drawn.requires_grad == differentiable
        torch.testing.assert_close(drawn.sort(dim=-1).values[..., -1].detach(), torch.ones(3, 2, 3, G))
        torch.testing.assert_close(drawn.sum(dim=-1).detach(), torch.ones(3, 2, 3, G))
    assert len(drawn.detach().argmax(dim=-1).flatten().unique()) > 1


def test_the_value_is_the_mean_over_actions() -> None:
    """A = Q(s, a) less the mean over sampled actions and critics, on decoded returns."""
    agent = multitask("continuous", num_actions_for_value_in_actor_loss=5)
    q, value = torch.randn(2, 3, 4, G, 31), torch.randn(5, 2, 3, 4, G, 31)
    decode = agent.critics.bins.decode
    expected = decode(q).squeeze(-1).mean(dim=2) - decode(value).squeeze(-1).mean(dim=(0, 3))
    torch.testing.assert_close(agent.advantage(agent.scalars(q), agent.scalars(value)), expected)


# --- critics ---------------------------------------------------------------------------------------------------------


@by_kind
@by_label
@pytest.mark.parametrize("init_value", [0.0, -7.5, 40.0])
def test_fresh_critics_predict_the_initial_value(kind: str, label_type: str, init_value: float) -> None:
    critics = partial(bin_critics, label_type=label_type, init_value=init_value, output_bins=101, max_return=1e3)
    critics = partial(critics, min_return=-1e3)
    batch = make_batch(kind)
    values = multitask(kind, critic_type=critics).get_values(batch)
    for name in ("q", "value"):
        off = (torch.log1p(values[name][batch.mask].abs()) - np.log1p(abs(init_value))).abs()
        assert off.mean() < 0.1, "each layer adds its noise, on the scale of symlog"
        assert init_value == 0 or (values[name][batch.mask].sign() == np.sign(init_value)).all()


def test_the_initial_value_is_the_peak_of_wide_biases() -> None:
    """-(bin - v)^2 / (2 (4 widths)^2) for every critic, on the scale of the bins; the weights stay."""
    critics = multitask("discrete", critic_type=partial(bin_critics, output_bins=101, init_value=2.5)).critics
    bins, width = critics.bins.bins, critics.bins.width
    expected = -(bins - np.log(3.5)).square() / (2 * (4 * width) ** 2)
    torch.testing.assert_close(critics.output_layer.bias, expected.float().expand(4, 1, 101), rtol=1e-5, atol=1e-5)
    assert critics.output_layer.weight.any()


def test_initial_values_that_bins_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"init_value=101.0: it lies outside"):
        multitask("discrete", critic_type=partial(bin_critics, init_value=101.0))
    with pytest.warns(UserWarning, match=r"init_value=90.0 is within 12 bins"):
        multitask("discrete", critic_type=partial(bin_critics, init_value=90.0))


def test_label_types() -> None:
    """Two-hot labels have two entries, histograms of a Gaussian more; both mean the same number."""
    entries = {}
    for label_type in ("twohot", "hlgauss"):
        critics = multitask("discrete", critic_type=partial(bin_critics, label_type=label_type)).critics
        label = critics.bins.encode(torch.tensor([[12.3]]))
        torch.testing.assert_close(
            critics.bins.decode(label.clamp(min=1e-9).log()), torch.tensor([[12.3]]), rtol=0.02, atol=0
        )
        entries[label_type] = int((label > 1e-3).sum())
    assert entries["twohot"] == 2 < entries["hlgauss"]
    with pytest.raises(ValueError, match="label_type='twohots'"):
        multitask("discrete", critic_type=partial(bin_critics, label_type="twohots"))


# --- settings --------------------------------------------------------------------------------------------------------


def from_gin(*bindings: str) -> MultiTaskAgent:
    config.load([], ["NCriticsTwoHot.min_return = -9.0", "NCriticsTwoHot.max_return = 9.0", *bindings])
    return MultiTaskAgent(
        OBS_SPEC, ACTION_SPECS["discrete"], max_seq_len=L, tstep_encoder_type=tstep_encoder, traj_encoder_type=gru
    )


def test_its_own_defaults() -> None:
    agent = from_gin()
    assert isinstance(agent.critics, NCriticsTwoHot) and agent.critics.action_input
    assert (agent.online_coeff, agent.offline_coeff, agent.num_actions_pi) == (0.0, 1.0, 3)
    assert agent.filter is binary_filter


def test_its_settings_come_before_those_of_agent() -> None:
    agent = from_gin(
        "Agent.num_critics = 3",
        "Agent.tau = 0.5",
        "Agent.online_coeff = 0.7",
        "MultiTaskAgent.tau = 0.25",
        "MultiTaskAgent.fbc_filter_func = @exp_filter",
    )
    assert len(agent.critics.inp_layer.weight) == 3, "what only Agent sets holds"
    assert agent.tau == 0.25
    assert agent.online_coeff == 0.0, "its own defaults are not Agent's to set"
    weight = agent.filter_weight(torch.tensor([0.3]))
    torch.testing.assert_close(weight, exp_filter(torch.tensor([0.3])))


def test_a_misspelt_setting_is_refused() -> None:
    answer = r"MultiTaskAgent has no setting 'num_critic'; did you mean 'num_critics'\?"
    with pytest.raises(TypeError, match=answer):
        multitask("discrete", num_critic=3)
    with pytest.raises(TypeError, match=answer):
        from_gin("MultiTaskAgent.num_critic = 3")


def test_checks_name_the_agent_that_was_configured() -> None:
    with pytest.raises(ValueError, match="MultiTaskAgent.gamma=1.0"):
        multitask("discrete", gamma=1.0)


def test_online_needs_differentiable_samples() -> None:
    gmm = partial(actor, policy_output_type=GMM)
    with pytest.raises(NotImplementedError, match="online_coeff to 0"):
        multitask("continuous", actor_type=gmm, online_coeff=1.0)(make_batch("continuous"))


def test_both_agents_can_be_bound_at_once() -> None:
    config.load([], ["Agent.gamma = 0.5", "MultiTaskAgent.gamma = 0.75"])
    gammas = [float(build("discrete", agent_type=t).gammas[-1]) for t in (Agent, MultiTaskAgent)]
    assert gammas == [0.5, 0.75]
    assert gin.query_parameter("Agent.gamma") == 0.5


def told(caplog: pytest.LogCaptureFixture, *bindings: str, agent_type: type[Agent] = MultiTaskAgent) -> list[str]:
    caplog.clear()
    gin.clear_config()
    config.load([], [*bindings])
    unread._told.clear()
    for _ in range(2):  # as of several trials
        Experiment(run_name="a", make_train_env="CartPole-v1", max_seq_len=4, agent_type=agent_type)
    return [record.getMessage() for record in caplog.records]


def test_what_is_bound_of_agent_and_never_read_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, "Agent.offline_coeff = 0.5", "Agent.critic_type = @NCritics", "Agent.gamma = 0.5") == [
        "Agent.offline_coeff = 0.5 is not read: MultiTaskAgent has its own, 1.0; set MultiTaskAgent.offline_coeff",
        "Agent.critic_type = @NCritics is not read: MultiTaskAgent has its own, @NCriticsTwoHot; set "
        "MultiTaskAgent.critic_type",
    ]
    assert not told(caplog, "Agent.offline_coeff = 1", "Agent.critic_type = @NCriticsTwoHot"), "it has the same values"
    assert not told(caplog, "Agent.offline_coeff = 0.5", "MultiTaskAgent.offline_coeff = 0.6"), "it was chosen"
    assert not told(caplog, "Agent.offline_coeff = 0.5", agent_type=Agent)


def test_a_record_means_the_same_and_says_nothing(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    from_gin("Agent.offline_coeff = 0.5", "Agent.critic_type = @NCritics")
    text = config.record("Experiment", {"agent_type": MultiTaskAgent})
    assert "\nAgent.offline_coeff = 0.5\n" in text and "\nMultiTaskAgent.offline_coeff = 1.0\n" in text
    (tmp_path / "config.txt").write_text(text)
    include = f"include '{tmp_path / 'config.txt'}'"
    assert not told(caplog, include)
    agent = MultiTaskAgent(
        OBS_SPEC, ACTION_SPECS["discrete"], L, tstep_encoder_type=tstep_encoder, traj_encoder_type=gru
    )
    assert agent.offline_coeff == 1.0 and isinstance(agent.critics, NCriticsTwoHot)
    (line,) = told(caplog, include, "Agent.offline_coeff = 0.75")
    assert line.startswith("Agent.offline_coeff = 0.75 is not read: MultiTaskAgent has its own, 1.0")
