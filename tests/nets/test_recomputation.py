"""What is computed again gives the same gradients, moves nothing twice, and holds less memory meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import build, ff, gru, make_batch, tformer
from torch import Tensor, nn

from amago_ray.agent import Agent, MultiTaskAgent
from amago_ray.nets.recomputation import held_statistics, recomputed, recomputing, statistics_are_held
from amago_ray.nets.scaling import InputNorm
from amago_ray.nets.sigma_reparam import SigmaReparam
from amago_ray.nets.traj_encoders import MambaTrajEncoder

ENCODERS = {
    "feed-forward": ff,
    "gru": gru,
    "transformer": partial(tformer, dropout_ff=0.1, dropout_emb=0.1, n_layers=2),
    "mamba": partial(MambaTrajEncoder, d_model=16, d_state=4, n_layers=2),
}


def learn(kind: str, encoder: Callable[..., Any], agent_type: type[Agent], again: bool) -> dict[str, Tensor]:
    """Loss, gradients and statistics of one batch."""
    agent, batch = build(kind, encoder, agent_type).train(), make_batch(kind)
    torch.manual_seed(1)
    with recomputing(again):
        loss = agent(batch).loss
    torch.manual_seed(2)  # what backward draws comes from where forward had it, not from here
    loss.backward()
    gradients = {name: p.grad for name, p in agent.named_parameters() if p.grad is not None}
    return {"loss": loss, **gradients, **dict(agent.named_buffers())}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("agent_type", [Agent, MultiTaskAgent])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_gradients_and_statistics_are_the_same(encoder: str, agent_type: type[Agent], kind: str) -> None:
    """With dropout, sampled actions and power iterations."""
    kept = learn(kind, ENCODERS[encoder], agent_type, again=False)
    again = learn(kind, ENCODERS[encoder], agent_type, again=True)
    assert kept.keys() == again.keys()
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("enabled", [False, True])
def test_a_part_is_computed_twice_only_where_that_is_asked_for(enabled: bool) -> None:
    calls = []

    def part(x: Tensor) -> Tensor:
        calls.append(statistics_are_held())
        return x.exp()

    x = torch.ones(3, requires_grad=True)
    with recomputing(enabled):
        y = recomputed(part, x)
        with torch.no_grad():
            recomputed(part, x)
    y.sum().backward()
    assert calls == [False, False] + [True] * enabled, "the second time, and it alone, statistics stay"


def test_held_statistics_stay() -> None:
    norm, layer = InputNorm(3).train(), SigmaReparam(3, 4).train()
    nn.init.normal_(layer.weight)
    before = [norm.mu.clone(), layer.u.clone()]
    with held_statistics():
        norm.update(torch.randn(5, 3))
        layer(torch.randn(5, 3))
    assert torch.equal(norm.mu, before[0]) and torch.equal(layer.u, before[1])
    norm.update(torch.randn(5, 3))
    layer(torch.randn(5, 3))
    assert not torch.equal(norm.mu, before[0]) and not torch.equal(layer.u, before[1])


def test_a_deep_network_holds_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight layers keep their inputs alone, and one at a time the rest: of every allocation that PyTorch makes."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from measure import peak_bytes

    encoder = tformer(8, 64, d_model=32, n_heads=2, d_ff=128, n_layers=8)
    x, time_idx = torch.randn(8, 64, 8), torch.arange(64).expand(8, -1)

    def pass_through(again: bool) -> None:
        with recomputing(again):
            out = encoder(x, time_idx)
        out.sum().backward()

    pass_through(False)  # gradients have their memory from here on
    kept, again = (peak_bytes(lambda how=how: pass_through(how)) for how in (False, True))
    assert again < 0.35 * kept
    sys.modules.pop("measure")
