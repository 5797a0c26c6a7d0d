"""An action mask in the observation: illegal actions count for nothing, in acting, in the loss and in its targets."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import gin
import numpy as np
import pytest
import torch
from agent_cases import ACTION_SPECS, LENGTHS, OBS_SPEC, B, L, actor, bin_critics, critics, gru, make_batch, train
from agent_cases import tstep_encoder as ff_tstep
from torch import Tensor

from amago_ray.agent.actor_critic import Agent
from amago_ray.agent.multitask import MultiTaskAgent
from amago_ray.agent.policy import TrainingBatch
from amago_ray.agent.spec import AgentSpec
from amago_ray.nets.actors import ActorHead, ResidualActor
from amago_ray.specs import ActionSpec, ArraySpec

KEY = "legal"
residual = partial(ResidualActor, feature_dim=8, residual_ff_dim=12, residual_blocks=1)
by_kind = pytest.mark.parametrize("kind", ["discrete", "multidiscrete"])
by_agent = pytest.mark.parametrize("agent_type", [Agent, MultiTaskAgent])
by_actor = pytest.mark.parametrize("actor_type", [actor, residual], ids=["plain", "residual"])
torch.set_num_threads(1)


def masked_agent(kind: str, agent_type: type[Agent] = Agent, key: str | None = KEY, **settings: Any) -> Agent:
    """Its encoder does not see the mask, so that only what the policy may do depends on it."""
    spec = ACTION_SPECS[kind]
    settings = {"actor_type": actor, "critic_type": bin_critics if agent_type is MultiTaskAgent else critics} | settings
    return AgentSpec(
        obs_spec=OBS_SPEC | {KEY: ArraySpec((spec.vector_size,), "int8")},
        action_spec=spec,
        max_seq_len=L,
        tstep_encoder_type=lambda obs_spec, rl2_dim: ff_tstep(obs_spec=OBS_SPEC, rl2_dim=rl2_dim),
        traj_encoder_type=gru,
        agent_type=partial(agent_type, **settings),
        seed=0,
        action_mask_key=key,
    ).build()


def random_masks(spec: ActionSpec, shape: tuple[int, ...]) -> Tensor:
    """(*shape, A) of 0 and 2 (any number but 0 is legal), with something legal in every part."""
    parts = []
    for n in spec.nvec:
        legal = torch.rand(*shape, n) < 0.4
        parts.append(legal.scatter(-1, torch.randint(n, (*shape, 1)), True))
    return 2 * torch.cat(parts, dim=-1).to(torch.int8)


def masked_batch(kind: str) -> TrainingBatch:
    """Actions taken are legal ones."""
    batch, spec = make_batch(kind), ACTION_SPECS[kind]
    masks = random_masks(spec, (B, L + 1))
    scores = torch.rand(B, L, spec.vector_size).masked_fill(masks[:, :-1] == 0, -1.0).split(spec.nvec, dim=-1)
    taken = torch.cat([(x == x.amax(dim=-1, keepdim=True)).float() for x in scores], dim=-1)
    return dataclasses.replace(batch, obs=batch.obs | {KEY: masks}, actions=taken)


@by_kind
@by_actor
@pytest.mark.parametrize("sample", [True, False])
def test_illegal_actions_are_never_taken(kind: str, actor_type: type[ActorHead], sample: bool) -> None:
    agent, spec, num = masked_agent(kind, actor_type=actor_type).eval(), ACTION_SPECS[kind], 2000
    agent.policy.temperature = 20.0
    obs = {"x": torch.randn(num, 3), "n": torch.randint(4, (num,)), KEY: random_masks(spec, (num,))}
    rl2, time_idx = torch.zeros(num, 1 + spec.vector_size), torch.zeros(num, dtype=torch.int64)
    action, _ = agent.policy.act(obs, rl2, time_idx, agent.policy.initial_memory(num), sample)
    assert action[obs[KEY] == 0].eq(0.0).all()
    assert action.sum(dim=-1).eq(len(spec.nvec)).all()
    unmasked, _ = masked_agent(kind, key=None).policy.act(obs, rl2, time_idx, agent.policy.initial_memory(num), sample)
    assert unmasked[obs[KEY] == 0].any()


@by_kind
@by_agent
@by_actor
def test_it_trains(kind: str, agent_type: type[Agent], actor_type: type[ActorHead]) -> None:
    agent = masked_agent(kind, agent_type, actor_type=actor_type, fbc_filter_func=torch.ones_like).train()
    batch = masked_batch(kind)
    history = train(agent, agent.trainable_params, batch, lr=3e-3)
    assert all(value.isfinite().all() for value in agent.state_dict().values())
    assert history[-3:, 0].mean() < history[:3, 0].mean()
    probs = agent.encode(batch).dist.probs
    illegal = batch.before(batch.obs[KEY]) == 0
    assert probs[illegal.unsqueeze(2).expand_as(probs)].eq(0.0).all()


@by_kind
@by_agent
def test_actions_that_critics_see(kind: str, agent_type: type[Agent], monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken ones and the policy's by the mask of their state, the target policy's by that of the next."""
    agent, batch = masked_agent(kind, agent_type, online_coeff=1.0).train(), masked_batch(kind)
    seen: dict[str, list[Tensor]] = {"now": [], "next": []}
    values, values_of = agent.critics.values, agent.target_critics.values_of

    def now(prepared: Tensor, action: Tensor, *args: Any, **settings: Any) -> Tensor:
        seen["now"].append(action.detach())
        return values(prepared, action, *args, **settings)

    def after(members: Any, prepared: Tensor, action: Tensor, *args: Any, **settings: Any) -> Tensor:
        seen["next"].append(action)
        return values_of(members, prepared, action, *args, **settings)

    monkeypatch.setattr(agent.critics, "values", now)
    monkeypatch.setattr(agent.target_critics, "values_of", after)
    agent(batch).loss.backward()
    assert [len(actions) for actions in seen.values()] == [2, 1]
    for name, rows in (("now", batch.before), ("next", batch.after)):
        illegal = rows(batch.obs[KEY])[None, :, :, None] == 0
        for action in seen[name]:
            assert action[illegal.expand_as(action)].eq(0.0).all()
            assert action.sum(dim=-1).allclose(torch.tensor(float(len(ACTION_SPECS[kind].nvec))))
    assert all(p.grad is None or p.grad.isfinite().all() for p in agent.parameters())


def test_values_and_targets_know_nothing_of_illegal_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the critics believe of actions that are illegal in a state, V(s), targets and the loss are the same."""
    batch, results = masked_batch("discrete"), []
    for belief in (0.0, 1e4, -1e4):
        agent = masked_agent("discrete", fbc_filter_func=torch.ones_like, popart=False).eval()
        for ensemble, rows in ((agent.critics, batch.before), (agent.target_critics, batch.after)):
            wrong = belief * (rows(batch.obs[KEY]) == 0)[:, :, None, None].float()
            prepare = ensemble.prepare
            monkeypatch.setattr(ensemble, "prepare", lambda state, prepare=prepare, wrong=wrong: prepare(state) + wrong)
        torch.manual_seed(1)
        out = agent(batch)
        results.append({"loss": out.loss.detach(), **{k: v[batch.mask] for k, v in agent.get_values(batch).items()}})
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(
                other[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
            )


@by_kind
@by_agent
def test_a_mask_of_ones_changes_no_number(kind: str, agent_type: type[Agent]) -> None:
    batch, results = masked_batch(kind), []
    everything = dataclasses.replace(batch, obs=batch.obs | {KEY: torch.ones_like(batch.obs[KEY])})
    for key in (KEY, None):
        agent = masked_agent(kind, agent_type, key=key).train()
        torch.manual_seed(1)
        results.append(agent(everything).loss)
    assert results[0] == results[1]


@by_kind
@by_agent
def test_last_states_in_which_nothing_is_legal(kind: str, agent_type: type[Agent]) -> None:
    """Environments write zeros there. It matters neither to the loss, since nothing follows, nor to its gradient."""
    batch, results = masked_batch(kind), []
    ended = dataclasses.replace(batch, terminated=torch.ones_like(batch.terminated))
    for fill in (0, 1):
        masks = batch.obs[KEY].clone()
        masks[torch.arange(B), torch.tensor(LENGTHS)] = fill
        data = dataclasses.replace(ended, obs=batch.obs | {KEY: masks})
        agent = masked_agent(kind, agent_type).eval()
        agent.td_ensemble = lambda *shape, agent=agent: np.zeros((*shape, 2, len(agent.gammas)), np.int64)
        agent.draw = lambda dist, num, differentiable: dist.probs.unsqueeze(0)
        out = agent(data)
        out.loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in agent.parameters())
        results.append(out.loss.detach())
    torch.testing.assert_close(results[0], results[1])


@by_agent
def test_illegal_actions_in_the_data_leave_the_loss_finite(agent_type: type[Agent]) -> None:
    agent, batch = (
        masked_agent("discrete", agent_type, fbc_filter_func=torch.ones_like).train(),
        masked_batch("discrete"),
    )
    stray = dataclasses.replace(batch, actions=make_batch("discrete").actions)
    out = agent(stray)
    out.loss.backward()
    assert out.loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in agent.parameters())


@pytest.mark.parametrize(
    ("kind", "key", "shape", "message"),
    [
        (
            "discrete",
            "legl",
            (4,),
            r"Experiment.action_mask_key='legl': no observation is named 'legl'; did you mean 'le",
        ),
        ("discrete", KEY, (3,), r"one number per action is needed, shape \(4,\), not \(3,\)"),
        ("multidiscrete", KEY, (2,), r"shape \(5,\), not \(2,\)"),
        ("continuous", KEY, (2,), "masks are for categories, but the environment's actions are continuous"),
    ],
)
def test_the_setting_is_checked(kind: str, key: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Agent(
            OBS_SPEC | {KEY: ArraySpec(shape, "int8")}, ACTION_SPECS[kind], L,
            tstep_encoder_type=ff_tstep, traj_encoder_type=gru, action_mask_key=key,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["Agent", "MultiTaskAgent"])
def test_it_is_set_in_one_place(name: str) -> None:
    with pytest.raises(ValueError, match="action_mask_key"):
        gin.parse_config(f"{name}.action_mask_key = 'legal'")
