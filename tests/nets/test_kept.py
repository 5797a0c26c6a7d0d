"""What is kept of weights follows them, wherever they go."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from amago_ray.agent.flat_weights import flatten_state, load_flat_state
from amago_ray.nets.attention import CausalAttention
from amago_ray.nets.kept import Kept
from amago_ray.nets.scaling import InputNorm
from amago_ray.nets.transformer import Transformer


def test_it_is_made_again_only_after_a_write() -> None:
    weight, made = torch.ones(2), []

    def make() -> tuple[torch.Tensor, list[torch.Tensor]]:
        made.append(weight.clone())
        return 2 * weight, [weight]

    kept: Kept[torch.Tensor] = Kept()
    for number in (1, 2):
        for _ in range(3):
            assert torch.equal(kept.get(make), 2.0 * number * torch.ones(2))
        assert len(made) == number
        weight.add_(1.0)


@pytest.mark.parametrize("change", ["in place", "loaded", "trained", "a copy"])
def test_a_step_acts_by_the_weights_that_there_are(change: str) -> None:
    torch.manual_seed(0)
    model = Transformer(5, 16, 24, 2, 2, CausalAttention()).eval()
    x_B1D, time_idx = torch.randn(3, 1, 5), torch.zeros(3, 1, dtype=torch.int64)

    def step(model: nn.Module) -> torch.Tensor:
        return model(x_B1D, time_idx, model.initial_cache(3, 4))

    before = step(model)
    other = Transformer(5, 16, 24, 2, 2, CausalAttention())
    changed = model
    if change == "in place":
        with torch.no_grad():
            model.layers[1].ff2.gamma.mul_(100.0)
    elif change == "loaded":
        load_flat_state(model, flatten_state(other))
    elif change == "trained":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.3, fused=True)
        model.train()(x_B1D, time_idx).square().sum().backward()
        optimizer.step()
        model.eval()
    else:
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.layers[0].attention_layer.head_scaler.mul_(1000.0)
        assert torch.equal(step(model), before), "the first one is left as it was"
    after = step(changed)
    torch.testing.assert_close(after, changed(x_B1D, time_idx), atol=1e-5, rtol=1e-5)
    assert (after - before).abs().max() > 1e-4


def test_inputs_are_normalised_by_the_statistics_of_now() -> None:
    norm = InputNorm(3).eval()
    x = torch.randn(50, 3)
    with torch.no_grad():
        before = norm(x)
        norm.update(5.0 * x + 1.0)
        after = norm(x)
    assert (after - before).abs().max() > 1e-4
    torch.testing.assert_close(after, norm(x).detach(), atol=0.0, rtol=0.0)
