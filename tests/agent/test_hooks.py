"""What users hang onto an agent: observations for the actor, loss masks, values of stored data without a trace,
further networks, optimisers, and a temperature to act at.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from agent_cases import ACTION_SPECS, LENGTHS, B, G, L, build, fill_padding, gru, make_batch, state_of, tformer, train
from torch import Tensor

from amago_ray.agent.actor_critic import Agent
from amago_ray.agent.losses import exp_filter
from amago_ray.agent.multitask import MultiTaskAgent
from amago_ray.agent.policy import TrainingBatch
from amago_ray.agent.transitions import Transitions
from amago_ray.nets.actors import NO_OBS, Actor
from amago_ray.nets.traj_encoders import TrajEncoder

by_kind = pytest.mark.parametrize("kind", ACTION_SPECS)
by_agent = pytest.mark.parametrize("agent_type", [Agent, MultiTaskAgent])
VALUES = {"q", "value", "target", "advantage", "filter_weight"}


# --- observations for the actor --------------------------------------------------------------------------------------


class SeeingActor(Actor):
    """Adds the first entry of observation "x" to every parameter, and remembers what it was shown."""

    def __init__(self, state_dim: int, action_spec: object, num_gammas: int):
        super().__init__(state_dim, action_spec, num_gammas, n_layers=1, d_hidden=16)
        self.shown: list[Mapping[str, Tensor]] = []

    def params(self, state: Tensor, main_gamma_only: bool, obs: Mapping[str, Tensor]) -> Tensor:
        self.shown.append(obs)
        return super().params(state, main_gamma_only, obs) + obs["x"][..., :1]


def seeing(kind: str = "continuous", **settings: object) -> Agent:
    return build(kind, actor_type=SeeingActor, pass_obs_keys_to_actor=("x", "n"), **settings)


@by_agent
def test_actors_see_the_named_observations_as_they_are(agent_type: type[Agent]) -> None:
    """The actor those that its actions answer to, the target actor those that come after."""
    agent, batch = seeing(agent_type=agent_type).train(), make_batch("continuous")
    assert agent(batch).loss.isfinite()
    (now,), (after,) = agent.policy.actor.shown, agent.target_actor.shown
    for name, first, last in (("x", now, after), ("n", now, after)):
        assert torch.equal(first[name][0], batch.obs[name][:, :-1][batch.mask])
        assert torch.equal(last[name][0], batch.obs[name][:, 1:][batch.mask])
    assert now["n"].dtype == torch.int64 and now["n"].shape == (1, sum(LENGTHS)), "raw: no one-hots"


def test_acting_sees_them_too() -> None:
    agent = seeing().eval()
    batch, policy = make_batch("continuous"), agent.policy
    with torch.no_grad():
        for layer in (policy.actor.base.in_layer, policy.actor.base.out_layer):
            layer.weight.zero_(), layer.bias.zero_()
    obs = {name: x[:, 0] for name, x in batch.obs.items()}
    action, _ = policy.act(obs, batch.rl2[:, 0], batch.time_idx[:, 0], policy.initial_memory(B), sample=False)
    torch.testing.assert_close(action.clone(), obs["x"][:, :1].tanh().expand(-1, 2))
    assert list(policy.actor.shown[-1]) == ["x", "n"]


def test_no_observation_is_gathered_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build("continuous")
    assert agent.policy.actor_obs({"x": torch.zeros(1)}) is NO_OBS
    gathered: list[Tensor] = []
    monkeypatch.setattr(
        TrainingBatch, "real", lambda self, x, real=TrainingBatch.real: gathered.append(x) or real(self, x)
    )
    agent(make_batch("continuous"))
    assert len(gathered) == 4, "states before and after, actions and targets"


@pytest.mark.parametrize("names", [None, (), []])
def test_no_names_in_any_form(names: object) -> None:
    assert build("continuous", pass_obs_keys_to_actor=names).policy.actor_obs_names == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x", "xx"), r"Agent.pass_obs_keys_to_actor=.*no observation is named 'xx'; did you mean 'x'\?"),
        (("zzz",), "no observation is named 'zzz'; known: n, x"),
        ("x", r"Agent.pass_obs_keys_to_actor='x': write a tuple of names, \('x',\)"),
    ],
)
def test_names_are_checked(names: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("continuous", pass_obs_keys_to_actor=names)


# --- loss masks ------------------------------------------------------------------------------------------------------


def with_mask(agent: Agent, which: str, mask_BL: Tensor) -> Agent:
    setattr(agent, which, lambda batch: mask_BL)
    return agent


@by_agent
@pytest.mark.parametrize("which", ["actor_mask", "critic_mask"])
def test_a_mask_of_everything_changes_nothing(agent_type: type[Agent], which: str) -> None:
    results = []
    for masked in (False, True):
        agent, batch = build("discrete", agent_type=agent_type).eval(), make_batch("discrete")
        if masked:
            with_mask(agent, which, torch.ones(B, L, dtype=torch.bool))
        torch.manual_seed(1)
        results.append(agent(batch))
    for name in ("loss", "actor_loss", "critic_loss"):
        torch.testing.assert_close(getattr(results[1], name), getattr(results[0], name), rtol=1e-5, atol=1e-6)


@by_agent
def test_the_critic_loss_is_that_of_the_transitions_left_in(agent_type: type[Agent]) -> None:
    """What is left out may have any reward; the mean is over what is left."""
    batch, keep = make_batch("discrete"), torch.rand(B, L) < 0.5
    spoilt = dataclasses.replace(batch, rewards=torch.where(keep, batch.rewards, batch.rewards + 5.0))
    only = dataclasses.replace(batch, mask=batch.mask & keep)  # a mask with holes: n_step is 1 and nothing is updated
    losses = []
    for data, mask in ((batch, keep), (spoilt, keep), (only, None), (batch, None)):
        agent = build("discrete", agent_type=agent_type, num_critics=1, num_critics_td=1, popart=False).eval()
        if mask is not None:
            with_mask(agent, "critic_mask", mask)
        agent.draw = lambda dist, num, differentiable: dist.probs.unsqueeze(0)
        losses.append(agent(data).critic_loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    assert abs(losses[3] - losses[0]) > 1e-3 * abs(losses[0])


@pytest.mark.parametrize("behavior_cloning", [False, True])
def test_the_actor_loss_is_that_of_the_transitions_left_in(behavior_cloning: bool) -> None:
    settings = {"online_coeff": 0.0, "fake_filter": behavior_cloning, "fbc_filter_func": torch.ones_like}
    batch, keep = make_batch("discrete"), torch.rand(B, L) < 0.5
    agent = with_mask(build("discrete", offline_coeff=2.0, **settings), "actor_mask", keep).eval()
    assert agent.uses_critics != behavior_cloning
    with torch.no_grad():
        state = agent.policy.encode(batch.obs, batch.rl2, batch.time_idx)[:, :-1]
        log_prob = agent.policy.actor(state).log_prob(batch.actions.unsqueeze(2)).squeeze(-1)
    expected = -2.0 * log_prob[batch.mask & keep].mean()
    torch.testing.assert_close(agent(batch).actor_loss.detach(), expected, rtol=1e-4, atol=1e-5)


def test_leaving_out_everything_is_a_loss_of_zero() -> None:
    agent, batch = build("continuous").train(), make_batch("continuous")
    for which in ("actor_mask", "critic_mask"):
        with_mask(agent, which, torch.zeros(B, L, dtype=torch.bool))
    out = agent(batch)
    out.loss.backward()
    assert out.loss == 0.0
    assert all(not p.grad.any() for p in agent.parameters() if p.grad is not None)


def test_a_subclass_may_define_a_mask() -> None:
    class SecondHalf(Agent):
        def critic_mask(self, batch: TrainingBatch) -> Tensor:
            return batch.unpacked(batch.time_idx)[:, :-1] >= L // 2

    batch = make_batch("discrete")
    losses = []
    for agent_type in (Agent, SecondHalf):
        agent = build("discrete", agent_type=agent_type).eval()
        torch.manual_seed(1)
        losses.append(agent(batch))
    assert abs(losses[0].critic_loss - losses[1].critic_loss) > 1e-3
    assert losses[0].actor_loss == losses[1].actor_loss


# --- values of stored data -------------------------------------------------------------------------------------------


@by_kind
@by_agent
def test_values_of_every_real_transition(kind: str, agent_type: type[Agent]) -> None:
    batch = make_batch(kind)
    values = build(kind, agent_type=agent_type).get_values(batch)
    assert values.keys() == VALUES
    for name, value in values.items():
        assert value.shape == (B, L, G) and not value.requires_grad, name
        assert torch.equal(value.isfinite(), batch.mask.unsqueeze(-1).expand(B, L, G)), name
        assert value[~batch.mask].isnan().all(), name


@by_kind
@by_agent
def test_values_are_those_of_the_loss(kind: str, agent_type: type[Agent]) -> None:
    agent, batch = build(kind, agent_type=agent_type, fbc_filter_func=exp_filter).eval(), make_batch(kind)
    train(agent.train(), [p for p in agent.parameters() if p.requires_grad], batch, lr=3e-3)
    agent.eval()
    torch.manual_seed(1)
    values = {name: x[batch.mask] for name, x in agent.get_values(batch).items()}
    torch.manual_seed(1)  # the same draws
    metrics = agent(batch, log=True).metrics

    def same(value: Tensor, name: str) -> None:
        torch.testing.assert_close(value, metrics[name].detach(), rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")

    for g, gamma in enumerate(agent.gamma_names):
        same(values["q"][:, g].mean(), f"Q(s,a) (gamma={gamma})")
        same(values["target"][:, g].mean(), f"TD Target (gamma={gamma})")
    same(values["target"].min(), "TD Target Min")
    same(values["advantage"].mean(), "Mean Advantage")
    same(values["filter_weight"].mean(), "Mean Filter Weight")
    torch.testing.assert_close(values["filter_weight"], exp_filter(values["advantage"]))
    scale = agent.popart.sigma.squeeze(-1) * agent.popart.w.squeeze(-1) if agent_type is Agent else 1.0
    torch.testing.assert_close(values["q"] - values["value"], values["advantage"] * scale, rtol=1e-3, atol=1e-3)


@by_agent
@pytest.mark.parametrize("traj_encoder", [gru, tformer], ids=["gru", "tformer"])
def test_getting_values_leaves_no_trace(agent_type: type[Agent], traj_encoder: Callable[..., TrajEncoder]) -> None:
    encoder = partial(traj_encoder, dropout_emb=0.5) if traj_encoder is tformer else traj_encoder
    agent, batch = build("continuous", encoder, agent_type).train(), make_batch("continuous")
    agent.target_critics.eval()  # modes of parts are kept as well
    before, modes = state_of(agent), [module.training for module in agent.modules()]
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    values = agent.get_values(batch)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in agent.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
    assert all(parameter.grad is None for parameter in agent.parameters())
    assert torch.is_grad_enabled()
    for name, value in agent.get_values(batch).items():
        assert torch.equal(value[batch.mask], values[name][batch.mask]), f"{name} is not the same again"
    agent(batch)
    assert not torch.equal(agent.popart.mu, before["popart.mu"]), "training does leave one"


def test_modes_and_random_state_come_back_after_an_error() -> None:
    agent, batch = build("continuous").train(), make_batch("continuous")
    agent.advantage = None
    random_state = torch.get_rng_state()
    with pytest.raises(TypeError):
        agent.get_values(batch)
    assert agent.training and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)


@by_agent
@pytest.mark.parametrize("traj_encoder", [gru, tformer], ids=["gru", "tformer"])
def test_values_do_not_depend_on_padding_or_mode(
    agent_type: type[Agent], traj_encoder: Callable[..., TrajEncoder]
) -> None:
    agent, batch = build("continuous", traj_encoder, agent_type).train(), make_batch("continuous")
    expected = agent.get_values(batch)
    for mode, data in ((False, batch), (True, fill_padding(batch, 1e3))):
        for name, value in agent.train(mode).get_values(data).items():
            torch.testing.assert_close(value, expected[name], equal_nan=True, rtol=1e-4, atol=1e-4)


def test_without_critics_there_are_no_values() -> None:
    with pytest.raises(ValueError, match="get_values: .* trains no critics"):
        build("discrete", fake_filter=True, online_coeff=0.0).get_values(make_batch("discrete"))


def test_a_fake_filter_weighs_every_transition_alike() -> None:
    agent, batch = build("discrete", fake_filter=True), make_batch("discrete")
    values = agent.get_values(batch)
    assert (values["filter_weight"][batch.mask] == 1.0).all()
    assert (values["advantage"][batch.mask] < 0.0).any(), "which the filter would have turned down"


# --- further networks and optimisers ---------------------------------------------------------------------------------


class Curious(Agent):
    """Predicts the next state's norm with a network of its own, and has a slow copy of it."""

    def init_extra_networks(self) -> None:
        self.curiosity = torch.nn.Linear(self.policy.traj_encoder.emb_dim, 1)
        self.target_curiosity = self.slow_copy(self.curiosity)

    def extra_loss(self, real: Transitions, batch: TrainingBatch) -> Tensor:
        error = self.curiosity(real.state).squeeze(-1) - real.next_state.norm(dim=-1)
        return error.square().mean()


def test_an_extra_loss_is_added_and_told() -> None:
    plain, curious = (build("discrete", agent_type=t).eval() for t in (Agent, Curious))
    losses = []
    for agent in (plain, curious):
        torch.manual_seed(1)
        losses.append(agent(make_batch("discrete"), log=True))
    extra = losses[1].metrics["Extra Loss"]
    assert extra > 0.0 and "Extra Loss" not in losses[0].metrics
    torch.testing.assert_close(losses[1].loss, losses[0].loss + extra)
    assert losses[1].metrics["Total Loss"] == losses[1].loss


def test_extra_networks_are_trained_saved_and_averaged() -> None:
    agent, batch = build("discrete", agent_type=Curious, tau=0.25).train(), make_batch("discrete")
    assert torch.equal(agent.curiosity.weight, agent.target_curiosity.weight)
    assert {"curiosity.weight", "target_curiosity.weight"} <= agent.state_dict().keys()
    trained = {id(p) for p in agent.trainable_params}
    assert id(agent.curiosity.weight) in trained and id(agent.target_curiosity.weight) not in trained
    before = state_of(agent)
    train(agent, agent.trainable_params, batch, lr=3e-3)
    assert not torch.equal(agent.curiosity.weight, before["curiosity.weight"])
    slow = agent.target_curiosity.weight.clone()
    agent.update_targets()
    torch.testing.assert_close(agent.target_curiosity.weight, 0.75 * slow + 0.25 * agent.curiosity.weight.detach())
    assert not any("curiosity" in name for name in agent.policy.state_dict()), "workers do without"


def test_extra_networks_change_no_initial_weight() -> None:
    plain, curious = (build("discrete", agent_type=t).state_dict() for t in (Agent, Curious))
    assert all(torch.equal(value, curious[name]) for name, value in plain.items())


def test_slow_copies_of_copied_agents_are_their_own() -> None:
    agent = build("discrete", agent_type=Curious, tau=1.0)
    other = copy.deepcopy(agent)
    with torch.no_grad():
        other.curiosity.weight.fill_(7.0)
    other.update_targets()
    assert other.target_curiosity.weight.eq(7.0).all() and not agent.target_curiosity.weight.eq(7.0).any()


def test_a_slow_copy_has_the_statistics_of_its_network() -> None:
    """Also where it computes while it trains, by itself and with statistics of its own."""

    class SlowEyes(Curious):
        def init_extra_networks(self) -> None:
            super().init_extra_networks()
            self.slow_encoder = self.slow_copy(self.policy.tstep_encoder)

        def extra_loss(self, real: Transitions, batch: TrainingBatch) -> Tensor:
            self.slow_encoder(batch.obs, batch.rl2)
            return super().extra_loss(real, batch)

    agent, batch = build("discrete", agent_type=SlowEyes, tau=1.0).train(), make_batch("discrete")
    for _ in range(3):
        train(agent, agent.trainable_params, batch, lr=3e-3)
        agent.update_targets()
    assert list(agent.slow_encoder.buffers())
    agent.eval()
    torch.testing.assert_close(
        agent.slow_encoder(batch.obs, batch.rl2), agent.policy.tstep_encoder(batch.obs, batch.rl2), rtol=0, atol=0
    )


@by_agent
def test_the_optimiser_is_a_setting(agent_type: type[Agent]) -> None:
    default = build("discrete", agent_type=agent_type).init_optimizer(0.1, 0.2)
    assert type(default) is torch.optim.AdamW
    agent = build("discrete", agent_type=agent_type, optimizer_type=torch.optim.RMSprop)
    optimizer = agent.init_optimizer(0.1, 0.2)
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.RMSprop and (group["lr"], group["weight_decay"]) == (0.1, 0.2)
    assert [id(p) for p in group["params"]] == [id(p) for p in agent.trainable_params]


def test_an_agent_that_trains_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="Agent.online_coeff=0 and offline_coeff=0 with fake_filter: nothing is"):
        build("discrete", fake_filter=True, online_coeff=0.0, offline_coeff=0.0)


# --- temperature -----------------------------------------------------------------------------------------------------


def sampled(agent: Agent, num_envs: int = 3000) -> Tensor:
    torch.manual_seed(0)
    obs = {"x": torch.ones(num_envs, 3), "n": torch.zeros(num_envs, dtype=torch.int64)}
    rl2, time_idx = torch.zeros(num_envs, 1 + agent.action_spec.vector_size), torch.zeros(num_envs, dtype=torch.int64)
    return agent.policy.act(obs, rl2, time_idx, agent.policy.initial_memory(num_envs), sample=True)[0].clone()


@by_kind
def test_the_temperature_of_acting(kind: str) -> None:
    """A setting, and an attribute for whoever evaluates; the loss does not see it."""
    agent = build(kind).eval()
    spread = {}
    for temperature in (1e-3, 1.0, 3.0):
        agent.policy.temperature = temperature
        spread[temperature] = sampled(agent).std(dim=0).mean().item()
    assert spread[1e-3] < 0.01 < spread[1.0]
    if kind == "continuous":
        assert spread[3.0] > 1.2 * spread[1.0]
    agent.policy.temperature = 1.0
    as_set = build(kind, temperature=3.0).eval()
    assert sampled(as_set).std(dim=0).mean().item() == pytest.approx(spread[3.0])
    losses = []
    for each in (agent, as_set):
        torch.manual_seed(1)
        losses.append(each(make_batch(kind)).loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("temperature", [0.0, 1e-7, -1.0, 1e46, float("inf"), float("nan"), True, "1"])
def test_temperatures_are_checked(temperature: object) -> None:
    """At infinity actions that a mask forbids would be drawn: 0 ** 0 is 1."""
    with pytest.raises(ValueError, match=r"^Agent.temperature=.*: it must be a number from 1e-06 to 1e\+06"):
        build("discrete", temperature=temperature)
    with pytest.raises(ValueError, match=r"^temperature=.*: it must be a number from 1e-06 to 1e\+06"):
        build("discrete").policy.temperature = temperature  # type: ignore[assignment]
