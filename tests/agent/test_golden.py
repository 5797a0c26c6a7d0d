"""One training step of `Agent`, and cached acting, equal the reference's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent_cases import every_critic
from golden_cases import build_agent, group, load, training_batch
from torch import Tensor, nn

from amago_ray.agent import Agent, MultiTaskAgent
from amago_ray.agent.amago_weights import convert_amago_entries, convert_amago_weights
from amago_ray.nets.distributions import ActionDistribution

AGENT_CASES = [
    "agent_behavior_cloning",
    "agent_continuous_ff",
    "agent_continuous_residual_actor",
    "agent_continuous_transformer_k2",
    "agent_discrete_cnn_gru",
    "agent_discrete_cnn_impala",
    "agent_discrete_cnn_impala_no_norm",
    "agent_discrete_ff_d_ff",
    "agent_discrete_gru",
    "agent_discrete_residual_actor",
    "agent_discrete_transformer",
    "agent_discrete_transformer_rope_nstep3",
    "agent_leaky_filter_no_binary",
    "agent_no_sigma_reparam",
    "agent_offline_only_gru",
    "multitask_continuous_transformer",
    "multitask_discrete_gru",
    "multitask_discrete_hlgauss_exp",
    "multitask_exp_filter_clipped",
]
LOSS_RTOL, GRAD_RTOL = 1e-5, 1e-4
ROUNDING = 1e-5  # of gradients that are sums of terms about 1


class WithoutDraws:
    """The golden numbers were made with two random draws taken out; this takes out the same two."""

    def td_ensemble(self, B: int, L: int) -> np.ndarray:
        return every_critic(self, B, L)

    def draw(self, dist: ActionDistribution, num: int, differentiable: bool) -> Tensor:
        action = dist.probs if self.action_spec.kind == "discrete" else dist.mean
        return action.unsqueeze(0).expand(1 if self.exact_expectation else num, *[-1] * 4)


class AgentWithoutDraws(WithoutDraws, Agent):
    pass


class MultiTaskAgentWithoutDraws(WithoutDraws, MultiTaskAgent):
    pass


AGENT_TYPES = {"agent": AgentWithoutDraws, "multitask": MultiTaskAgentWithoutDraws}


def biases_that_a_norm_removes(agent: Agent) -> set[str]:
    """Biases of single channels right before a norm of single channels: their gradient is 0 but for rounding."""
    return {
        f"{name}.conv2.bias"
        for name, module in agent.named_modules()
        if isinstance(norm := getattr(module, "norm", None), nn.GroupNorm) and norm.num_groups == norm.num_channels
    }


def check_gradients(agent: Agent, expected: dict[str, Tensor]) -> None:
    """Every golden gradient (ours by name), and no other, to `GRAD_RTOL` of that tensor's norm."""
    actual = {name: p.grad for name, p in agent.named_parameters() if p.grad is not None}
    assert actual.keys() == expected.keys()
    removed = biases_that_a_norm_removes(agent)
    for name, value in expected.items():
        if name in removed:
            assert max(value.norm(), actual[name].norm()) < ROUNDING, name
            continue
        error = (actual[name] - value).norm() / value.norm().clamp(min=1e-6)
        assert error < GRAD_RTOL, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("name", AGENT_CASES)
def test_training_step(name: str) -> None:
    meta, arrays = load(name)
    batch = training_batch(arrays)
    agent = build_agent(meta, arrays, AGENT_TYPES[meta["agent"]], {k: v.numpy() for k, v in batch.obs.items()}).train()

    out = agent(batch, log=True)
    out.loss.backward()

    for key in ("loss", "actor_loss", "critic_loss"):
        np.testing.assert_allclose(getattr(out, key).item(), arrays[f"out/{key}"], rtol=LOSS_RTOL, err_msg=key)
    check_gradients(agent, convert_amago_entries(group(arrays, "grad/"), agent))
    state = agent.state_dict()
    for key, value in convert_amago_entries(group(arrays, "after/"), agent).items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")

    agent.eval()
    with torch.no_grad():
        embedding = agent.policy.tstep_encoder(batch.obs, batch.rl2)
        states = agent.policy.traj_encoder(embedding, batch.time_idx)
        dist = agent.policy.actor(states)
    action = dist.probs if agent.action_spec.kind == "discrete" else dist.mean
    real = batch.timestep_mask
    for key, value in (("tstep_emb", embedding), ("state_emb", states)):
        expected = torch.from_numpy(arrays[f"eval/{key}"])
        torch.testing.assert_close(value[real], expected[real], rtol=1e-4, atol=1e-5)
    expected = torch.from_numpy(arrays.get("eval/action_probs", arrays.get("eval/action_mean")))
    torch.testing.assert_close(action[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["rollout_gru", "rollout_transformer", "rollout_transformer_rope"])
def test_cached_acting(name: str) -> None:
    """Environments reset at different times and run past `max_seq_len`."""
    meta, arrays = load(name)
    agent = build_agent(meta, arrays, Agent, {"observation": arrays["obs"]}).eval()
    policy, memory = agent.policy, agent.policy.initial_memory(arrays["obs"].shape[1])
    with torch.no_grad():
        for t in range(len(arrays["obs"])):
            obs, rl2 = torch.from_numpy(arrays["obs"][t]), torch.from_numpy(arrays["rl2s"][t])
            embedding = policy.tstep_encoder({"observation": obs.unsqueeze(1)}, rl2.unsqueeze(1)).squeeze(1)
            state, memory = policy.traj_encoder.step(embedding, torch.from_numpy(arrays["time_idxs"][t]), memory)
            probs = policy.actor.main_gamma(state).probs
            np.testing.assert_allclose(state, arrays["state_emb"][t], rtol=1e-4, atol=1e-5, err_msg=f"step {t}")
            np.testing.assert_allclose(probs, arrays["probs"][t], rtol=1e-4, atol=1e-5, err_msg=f"step {t}")
            memory = policy.reset_memory(memory, arrays["reset_after"][t])


def test_weights_of_another_architecture_are_refused() -> None:
    meta, arrays = load("agent_discrete_gru")
    agent = build_agent(meta, arrays, Agent, {k: v.numpy() for k, v in training_batch(arrays).obs.items()})
    state = group(arrays, "state/")
    with pytest.raises(ValueError, match="missing"):
        convert_amago_weights({k: v for k, v in state.items() if "rnn" not in k}, agent)
    state["actor.base.in_layer.weight"] = state["actor.base.in_layer.weight"][:, :-1]
    with pytest.raises(ValueError, match="in_layer.weight"):
        convert_amago_weights(state, agent)
