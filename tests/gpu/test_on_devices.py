"""On a CPU, and on a GPU where there is one: the same numbers in every layout and precision, and nothing waits."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import golden_cases
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from agent_cases import LENGTHS, L, every_critic
from gpu.cases import AGENTS, ENCODERS, agent_spec, make_learner, on_devices, prepared_batch, to
from torch import Tensor

from amago_ray.agent import Agent, MultiTaskAgent
from amago_ray.agent.losses import exp_filter
from amago_ray.agent.micro_batches import cut
from amago_ray.agent.policy import TrainingBatch
from amago_ray.learner.learner import Learner
from amago_ray.nets.distributions import ActionDistribution
from amago_ray.nets.mamba import Mamba, cuda_kernels, kernels_for
from amago_ray.nets.packed_sequences import Packing
from amago_ray.rollout.random_stream import TorchRandomStream

GOLDEN = (
    "agent_continuous_ff",
    "agent_discrete_cnn_gru",
    "agent_discrete_transformer_rope_nstep3",
    "multitask_continuous_transformer",
    "multitask_discrete_gru",
)
# A GPU adds up in other orders, and its libraries choose among algorithms.
RTOL = {"cpu": 1e-5, "cuda": 2e-3}
by_encoder = pytest.mark.parametrize("encoder", ENCODERS)


def draw_nothing(agent: Agent) -> None:
    """Take the two random draws out of the loss, as they were for the golden numbers."""

    def draw(dist: ActionDistribution, num: int, differentiable: bool) -> Tensor:
        action = dist.probs if agent.action_spec.kind == "discrete" else dist.mean
        return action.unsqueeze(0).expand(1 if agent.exact_expectation else num, *[-1] * 4)

    agent.draw = draw  # type: ignore[method-assign]
    agent.td_ensemble = partial(every_critic, agent)  # type: ignore[method-assign]


def gradient_of(agent: Agent, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """(loss, all gradients end to end), on the CPU."""
    agent.zero_grad()
    loss = agent(batch).loss
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in agent.parameters() if p.grad is not None])
    return loss.detach().cpu(), gradient.cpu()


def assert_near(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], rtol: float) -> None:
    torch.testing.assert_close(actual[0], expected[0], rtol=rtol, atol=rtol)
    assert (actual[1] - expected[1]).norm() < rtol * expected[1].norm()


@on_devices
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(name: str, device: str) -> None:
    """Losses that AMAGO 3.3 computed, and the gradient that a CPU has."""
    meta, arrays = golden_cases.load(name)
    agent_type = MultiTaskAgent if name.startswith("multitask") else Agent
    results = []
    for place in ("cpu", device):
        batch = golden_cases.training_batch(arrays)
        agent = golden_cases.build_agent(meta, arrays, agent_type, {k: v.numpy() for k, v in batch.obs.items()})
        draw_nothing(agent)
        results.append(gradient_of(agent.to(place).train(), to(batch, place)))
    np.testing.assert_allclose(results[1][0].numpy(), arrays["out/loss"], rtol=RTOL[device])
    assert_near(results[1], results[0], RTOL[device])


def packed(batch: TrainingBatch, device: str) -> TrainingBatch:
    on_host, lengths = Packing.of(np.array(LENGTHS) + 1), np.array(LENGTHS)
    laid_out = {name: on_host.pack(getattr(batch, name)) for name in ("rl2", "time_idx")}
    obs = {name: on_host.pack(x) for name, x in batch.obs.items()}
    moved = to(dataclasses.replace(batch, obs=obs, **laid_out), device)
    return dataclasses.replace(moved, packing=Packing.of(lengths + 1, device))


@on_devices
@pytest.mark.parametrize("agent", AGENTS)
@by_encoder
def test_packed_padded_and_the_cpu_agree(agent: str, encoder: str, device: str) -> None:
    spec, batch = agent_spec(agent, "continuous", ENCODERS[encoder]), prepared_batch("continuous")
    results = []
    for place, laid_out in (("cpu", batch), (device, to(batch, device)), (device, packed(batch, device))):
        made = spec.build().to(place).train()  # as cuDNN wants recurrent networks that have gradients
        draw_nothing(made)
        results.append(gradient_of(made, laid_out))
    for result in results[1:]:
        assert_near(result, results[0], max(RTOL[device], 1e-4))


@on_devices
@by_encoder
def test_bfloat16_is_near_float32(encoder: str, device: str) -> None:
    """Eight bits of mantissa hold two digits and a half."""
    losses = []
    for precision in ("no", "bf16"):
        forget_accelerator()
        learner = make_learner(
            agent_spec(encoder=ENCODERS[encoder], fbc_filter_func=exp_filter), device, mixed_precision=precision
        )
        torch.manual_seed(1)
        metrics = learner.update(prepared_batch("discrete", learner.device), log=True)
        losses.append([metrics[name].item() for name in ("Actor Loss", "Critic Loss")])
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def forget_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@on_devices
@by_encoder
@pytest.mark.parametrize("large", [{}, {"activation_checkpointing": True}], ids=["kept", "again"])
def test_updates_never_wait(encoder: str, device: str, large: dict[str, Any]) -> None:
    """PyTorch raises an error at what would wait. A CPU has no such mode: there the updates run, and learn."""
    learner = make_learner(agent_spec(encoder=ENCODERS[encoder]), device, micro_batch_size=3, **large)
    batch = cut(prepared_batch("discrete", learner.device), np.array(LENGTHS), 3)
    learner.update(batch)  # the optimiser makes its state, cuDNN its plans
    before = learner.agent.critics.inp_layer.weight.detach().clone()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        for log in (False, True, False):
            learner.update(batch, log=log)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert learner.updates_done == 4 and not torch.equal(before, learner.agent.critics.inp_layer.weight)


@on_devices
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_learner_goes_on_as_it_would_have(tmp_path: Path, device: str, precision: str) -> None:
    """The optimiser's state, its step counts too, is where its parameters are."""

    def make() -> Learner:
        forget_accelerator()
        return make_learner(agent_spec(), device, mixed_precision=precision)

    learner = make()
    batch = prepared_batch("discrete", learner.device)
    learner.update(batch)
    learner.save_state(str(tmp_path))
    resumed = make()
    resumed.load_state(str(tmp_path))
    for one in (learner, resumed):
        torch.manual_seed(2)
        one.update(batch)
    state = resumed._optimizer.state_dict()["state"].values()
    assert {x.device.type for values in state for x in values.values()} == {device}
    for name, value in resumed.agent.state_dict().items():
        torch.testing.assert_close(value, learner.agent.state_dict()[name], rtol=RTOL[device], atol=1e-6, msg=name)


@on_devices
@by_encoder
def test_acting_step_by_step_is_acting_on_whole_sequences(encoder: str, device: str) -> None:
    """Also past the length that training has, and as the step that is one graph."""
    spec = agent_spec(encoder=ENCODERS[encoder])
    policy, num = spec.build().policy.to(device).eval(), 3
    memory, portable = policy.initial_memory(num), policy.traj_encoder.portable_memory(num)
    portable = {name: value.to(device) for name, value in portable.items()}
    x = torch.randn(L, num, 12, device=device)
    steps, graph_steps = [], []
    with torch.no_grad():
        for t in range(L):
            time_idx = torch.full((num,), t, device=device)
            state, memory = policy.traj_encoder.step(x[t], time_idx, memory)
            steps.append(state)
            state, portable = policy.traj_encoder.portable_step(x[t], time_idx, portable)
            graph_steps.append(state)
        whole = policy.traj_encoder(x.transpose(0, 1), torch.arange(L, device=device).expand(num, -1))
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.stack(graph_steps, dim=1), whole, rtol=1e-3, atol=1e-4)


@on_devices
def test_mamba_s_kernels_compute_what_the_plain_path_does(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU with mamba-ssm; elsewhere both are the plain path, on the device and on the CPU."""
    layer, x = Mamba(32), torch.randn(3, 50, 32)
    expected = layer(x)
    expected.square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    layer, x = layer.to(device), x.to(device)
    assert (kernels_for(x) is not None) == (device == "cuda" and cuda_kernels() is not None)
    actual = layer(x)
    actual.square().sum().backward()
    torch.testing.assert_close(actual.cpu(), expected, rtol=RTOL[device], atol=RTOL[device])
    for name, parameter in layer.named_parameters():
        assert (parameter.grad.cpu() - wanted[name]).norm() <= RTOL[device] * wanted[name].norm(), name


@on_devices
def test_a_stream_of_random_numbers_is_its_own(device: str) -> None:
    """Draws under it, on either side, are the same whatever else is drawn; and what else is drawn, whatever these."""

    def draw(stream: TorchRandomStream) -> list[Tensor]:
        with stream:
            return [torch.rand(3), torch.rand(3, device=device).cpu()]

    first, second = (TorchRandomStream(5, device) for _ in range(2))
    torch.manual_seed(1)
    alone = [torch.rand(3, device=device) for _ in range(2)]
    torch.manual_seed(1)
    drawn = [draw(first)]
    among = [torch.rand(3, device=device)]
    drawn += [draw(first), draw(second)]
    among += [torch.rand(3, device=device)]
    drawn += [draw(second)]
    for a, b in zip(drawn[0] + drawn[1], drawn[2] + drawn[3], strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(alone, among, strict=True))
    assert not torch.equal(drawn[0][0], drawn[1][0])


def test_a_gpu_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match="LearnerConfig.device='cuda': there is none in sight, only cpu"):
        make_learner(agent_spec(), "cuda")


@pytest.mark.processes
def test_what_is_tested_here_needs_no_ray() -> None:
    """PyTorch, numpy, gymnasium, gin, accelerate and pytest are all that a machine with a GPU must have."""
    tests = Path(__file__).parents[1]
    missing = "import sys; sys.modules.update(dict.fromkeys(('ray', 'wandb', 'rich', 'matplotlib', 'hypothesis')));"
    code = f"{missing} import conftest, gpu.test_on_devices, gpu.test_pretended"
    result = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
