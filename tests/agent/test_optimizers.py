"""AdamW on local time does what its paper says, and goes on from a state dict as if nothing had happened."""

from __future__ import annotations

import copy
from functools import partial

import gin
import pytest
import torch
from torch import Tensor

from amago_ray.agent.optimizers import AdamWRel, OptimizerType, build_optimizer

LR, DECAY, EPS = 0.05, 0.1, 1e-8
torch.set_num_threads(1)


def gradients(num: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(num, 4)


def naive(start: Tensor, interval: int, num: int, betas: tuple[float, float]) -> list[Tensor]:
    """Parameters after each update, by the formulas; t is counted from the last reset."""
    x, m, v, found = start.double(), torch.zeros(4).double(), torch.zeros(4).double(), []
    for i, g in enumerate(gradients(num).double()):
        t = i % interval + 1
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        x = x - LR * DECAY * x
        x = x - LR * (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + EPS)
        found.append(x.float())
    return found


def trained(optimizer: torch.optim.Optimizer, parameter: Tensor, rows: Tensor) -> list[Tensor]:
    found = []
    for gradient in rows:
        parameter.grad = gradient.clone()
        optimizer.step()
        found.append(parameter.detach().clone())
    return found


@pytest.mark.parametrize("interval", [1, 3, 7, 100])
@pytest.mark.parametrize("fused", [False, True])
def test_equals_a_naive_reading(interval: int, fused: bool) -> None:
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 4))
    optimizer = AdamWRel([parameter], interval, lr=LR, betas=(0.8, 0.95), weight_decay=DECAY, fused=fused)
    expected = naive(parameter.detach(), interval, 20, (0.8, 0.95))
    torch.testing.assert_close(trained(optimizer, parameter, gradients(20)), expected, rtol=1e-4, atol=1e-5)


def test_without_a_reset_it_is_adamw() -> None:
    first, second = (torch.nn.Parameter(torch.linspace(-1, 1, 4)) for _ in range(2))
    plain = torch.optim.AdamW([first], lr=LR, weight_decay=DECAY)
    relative = AdamWRel([second], 21, lr=LR, weight_decay=DECAY)
    for a, b in zip(trained(plain, first, gradients(20)), trained(relative, second, gradients(20)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("saved_after", [2, 3, 4, 7])
def test_goes_on_from_a_state_dict_as_if_nothing_had_happened(saved_after: int) -> None:
    parameter, rows = torch.nn.Parameter(torch.linspace(-1, 1, 4)), gradients(12)
    optimizer = AdamWRel([parameter], 3, lr=LR)
    trained(optimizer, parameter, rows[:saved_after])
    resumed = torch.nn.Parameter(parameter.detach().clone())
    other = AdamWRel([resumed], 3, lr=1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    expected = trained(optimizer, parameter, rows[saved_after:])
    for a, b in zip(trained(other, resumed, rows[saved_after:]), expected, strict=True):
        assert torch.equal(a, b)


def test_parameters_without_gradient_and_several_groups() -> None:
    still, moved = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4))
    optimizer = AdamWRel([{"params": [still]}, {"params": [moved], "lr": 0.5}], 2, lr=LR)
    trained(optimizer, moved, gradients(5))
    assert torch.equal(still, torch.ones(4)) and not torch.equal(moved, torch.ones(4))
    assert [group["updates_since_reset"] for group in optimizer.param_groups] == [1, 1]


def test_goes_on_from_a_run_of_adamw_and_takes_the_interval_of_now() -> None:
    first, second = (torch.nn.Parameter(torch.linspace(-1, 1, 4)) for _ in range(2))
    plain, other = torch.optim.AdamW([first], lr=LR), AdamWRel([second], 2, lr=LR)
    trained(plain, first, gradients(5))
    other.load_state_dict(copy.deepcopy(plain.state_dict()))
    trained(other, second, gradients(2))
    assert other.state[second]["step"] == 7
    trained(other, second, gradients(1))
    assert other.state[second]["step"] == 1
    shorter = AdamWRel([second], 1, lr=LR)
    shorter.load_state_dict(other.state_dict())
    trained(shorter, second, gradients(1))
    assert shorter.state[second]["step"] == 1


def test_optimisers_are_built_by_type_and_checked() -> None:
    def built(kind: OptimizerType | None) -> torch.optim.Optimizer:
        return build_optimizer(kind, [torch.nn.Parameter(torch.ones(1))], lr=0.5, weight_decay=0.25)

    for kind in (None, torch.optim.SGD, torch.optim.RMSprop, partial(AdamWRel, reset_interval=3)):
        optimizer = built(kind)
        (group,) = optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
        assert group.get("fused", True)
    assert type(built(None)) is torch.optim.AdamW
    with pytest.raises(TypeError, match="Agent.optimizer_type=.*LBFGS.*must take lr and weight_decay"):
        built(torch.optim.LBFGS)
    with pytest.raises(TypeError, match="Agent.optimizer_type=.*must make a torch.optim.Optimizer"):
        built(lambda params, lr, weight_decay: None)


def test_the_interval_is_set_by_gin_and_checked() -> None:
    for interval in (0, None, 1.5):
        with pytest.raises(ValueError, match=f"AdamWRel.reset_interval={interval}: it must be 1 or more updates"):
            AdamWRel([torch.nn.Parameter(torch.ones(1))], interval)
    gin.clear_config()
    gin.parse_config("AdamWRel.reset_interval = 5")
    assert AdamWRel([torch.nn.Parameter(torch.ones(1))]).defaults["reset_interval"] == 5
    gin.clear_config()
