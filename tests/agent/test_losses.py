"""The losses equal the reference's numbers and a plain reading of their formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amago_ray.agent import losses

PARTS = np.load(Path(__file__).parents[1] / "golden" / "parts.npz")
torch.set_num_threads(1)


def part(name: str) -> Tensor:
    return torch.from_numpy(PARTS[name])


# --- means -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trailing", [(), (5,), (2, 5)])
def test_masked_mean(trailing: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(3, 4, *trailing), torch.rand(3, 4) < 0.5
    torch.testing.assert_close(losses.masked_mean(x, mask), x[mask].mean())
    assert losses.masked_mean(x, None) == x.mean()
    torch.testing.assert_close(losses.masked_mean(x, torch.ones_like(mask)), x.mean())


def test_masked_mean_of_nothing_is_zero_and_garbage_does_not_come_through() -> None:
    x = torch.tensor([[torch.nan, 2.0]], requires_grad=True)
    assert losses.masked_mean(x, torch.tensor([[False, False]])) == 0.0
    mean = losses.masked_mean(x, torch.tensor([[False, True]]))
    mean.backward()
    assert mean == 2.0 and x.grad.tolist() == [[0.0, 1.0]]


# --- filters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["binary", "exp", "leaky_relu"])
def test_filter_equals_the_reference(name: str) -> None:
    weight = getattr(losses, f"{name}_filter")(part("filter/advantage"))
    torch.testing.assert_close(weight, part(f"filter/{name}").float(), rtol=1e-6, atol=0.0)


def test_binary_filter_threshold() -> None:
    weight = losses.binary_filter(torch.tensor([-1.0, 0.0, 0.5, 0.6]), threshold=0.5)
    assert weight.tolist() == [0.0, 0.0, 0.0, 1.0]


def test_exp_filter_clips_each_side_that_is_given() -> None:
    advantage = torch.tensor([-30.0, 1.0, 3.0])
    weight = losses.exp_filter(advantage, beta=2.0, clip_weights_low=1e-3, clip_weights_high=50.0)
    torch.testing.assert_close(weight, torch.tensor([1e-3, np.exp(2.0), 50.0], dtype=torch.float32))
    open_ended = losses.exp_filter(advantage, clip_weights_low=None, clip_weights_high=None)
    torch.testing.assert_close(open_ended, advantage.exp())


def test_exp_filter_bounds_advantages_before_the_exponential() -> None:
    advantage = torch.tensor([-30.0, -0.05, 0.05, 30.0])
    weight = losses.exp_filter(advantage, beta=2.0, clip_adv_low=-0.1, clip_adv_high=0.2)
    torch.testing.assert_close(weight, torch.tensor([-0.2, -0.1, 0.1, 0.4]).exp())
    one_side = losses.exp_filter(advantage, clip_adv_high=0.0, clip_weights_low=1e-2)
    torch.testing.assert_close(one_side, torch.tensor([1e-2, np.exp(-0.05), 1.0, 1.0], dtype=torch.float32))


def test_leaky_relu_filter_is_two_ramps_and_a_step_at_zero() -> None:
    tiny, tau, beta, slope = 1e-6, 0.5, 4.0, 0.1
    at = {"below": -1.0, "zero": 0.0, "after_step": tiny, "hinge": tau, "after_hinge": tau + 1.0}
    weights = losses.leaky_relu_filter(
        torch.tensor(list(at.values()), dtype=torch.float64), beta, tau, slope, 0.2, None, None
    )
    weight = dict(zip(at, weights.tolist()))
    assert weight["zero"] == pytest.approx(0.2)
    assert weight["after_step"] == pytest.approx(1.2, abs=1e-5)
    assert weight["zero"] - weight["below"] == pytest.approx(slope / beta)
    assert weight["hinge"] - weight["after_step"] == pytest.approx(slope / beta * tau, abs=1e-5)
    assert weight["after_hinge"] - weight["hinge"] == pytest.approx(1 / beta)
    clipped = losses.leaky_relu_filter(torch.tensor([-1e3, 1e3]), clip_weights_low=1e-7, clip_weights_high=10.0)
    torch.testing.assert_close(clipped, torch.tensor([1e-7, 10.0]))
    advantage = torch.tensor([-0.5, 0.25, 0.75])
    step = losses.leaky_relu_filter(advantage) - losses.leaky_relu_filter(advantage, add_binary=False)
    torch.testing.assert_close(step, torch.tensor([0.0, 1.0, 1.0]))


# --- n-step targets --------------------------------------------------------------------------------------------------


def plain_n_step_target(
    reward: np.ndarray, done: np.ndarray, q_next: np.ndarray, gamma: float, length: int, n: int
) -> list[float]:
    """Targets of the first `length` transitions of one sequence and one gamma: the sum of section 4, term by term."""
    targets = []
    for t in range(length):
        total, discount = 0.0, 1.0
        for step in range(t, min(t + n, length)):
            total += discount * reward[step]
            discount *= gamma
            if done[step]:
                discount = 0.0
                break
        targets.append(total + discount * q_next[step] if discount else total)
    return targets


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_n_step_target_equals_the_reference(n: int) -> None:
    reward, done, q_next = (part(f"nstep/{name}").flatten(2) for name in ("reward", "done", "q_next"))
    mask_BL = part("nstep/mask").flatten(1).bool()
    target = losses.n_step_target(reward, done, q_next, part("nstep/gamma").flatten(), mask_BL, n)
    expected = part(f"nstep/target_n{n}").flatten(2)
    assert not mask_BL.all()
    torch.testing.assert_close(target[mask_BL], expected[mask_BL], rtol=1e-6, atol=1e-6)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    padding=st.integers(0, 3),
    n=st.integers(1, 9),
    shared_reward=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_n_step_target_equals_a_plain_loop(
    lengths: list[int], padding: int, n: int, shared_reward: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    B, L, gamma = len(lengths), max(lengths) + padding, np.array([0.5, 0.9, 0.999])
    mask = np.arange(L) < np.array(lengths)[:, None]
    G_reward = 1 if shared_reward else 3
    reward, q_next = random.normal(size=(B, L, G_reward)), 10 * random.normal(size=(B, L, 3))
    done = (random.random((B, L, 1)) < 0.2).astype(float)
    # NaN in the padding: whatever reads it shows up in a real target.
    arrays = [np.where(mask[..., None], x, np.nan) for x in (reward, done, q_next)]
    target = losses.n_step_target(
        *(torch.from_numpy(x) for x in arrays), torch.from_numpy(gamma), torch.from_numpy(mask), n
    )
    assert target.shape == (B, L, 3)
    for b, length in enumerate(lengths):
        for g in range(3):
            expected = plain_n_step_target(
                reward[b, :, 0 if shared_reward else g], done[b, :, 0], q_next[b, :, g], gamma[g], length, n
            )
            np.testing.assert_allclose(target[b, :length, g], expected, rtol=1e-9, atol=1e-9)


# --- errors ------------------------------------------------------------------------------------------------


def test_critic_mse_compares_every_critic_with_one_target_per_gamma() -> None:
    q_BLCG, target_BLG = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 5)
    error = losses.critic_mse(q_BLCG, target_BLG)
    assert error.shape == q_BLCG.shape
    assert error[1, 2, 3, 4] == (q_BLCG[1, 2, 3, 4] - target_BLG[1, 2, 4]) ** 2


def test_filter_weights_take_no_gradient() -> None:
    log_prob, weight = torch.randn(2, 3, 4, requires_grad=True), torch.rand(2, 3, 4, requires_grad=True)
    losses.filtered_behavior_cloning(log_prob, weight).sum().backward()
    assert weight.grad is None
    assert torch.equal(log_prob.grad, -weight.detach())
