"""The losses, as pure functions of tensors.

Shape letters: B sequences, L transitions, C critics, G discount factors. Formulas follow AMAGO (Grigsby et al. 2023,
arXiv 2310.09971; 2024, arXiv 2411.11188) and the papers that each function names.
"""

from __future__ import annotations

import gin
import torch
from torch import Tensor
from torch.nn import functional as F

PRIORITY_OF_LARGEST = 0.9
LEAST_PRIORITY = 1e-3  # so that nothing that was learned well is never drawn again


def n_step_target(
    reward_BLG: Tensor, done_BLG: Tensor, q_next_BLG: Tensor, gamma_G: Tensor, mask_BL: Tensor, n: int
) -> Tensor:
    """n-step returns (B, L, G) that bootstrap from `q_next`, the value of the state *after* each transition.

    y^1_t = r_t + gamma (1 - d_t) q'_t and y^n_t = r_t + gamma (1 - d_t) y^{n-1}_{t+1}; where t + 1 is padding or past
    the slice, the recursion falls back to q'_t. reward and done may have G = 1.
    """
    discount_BLG = gamma_G * (1.0 - done_BLG)
    target_BLG = reward_BLG + discount_BLG * q_next_BLG
    if n > 1:
        goes_on_BL1 = F.pad(mask_BL[:, 1:], (0, 1)).bool().unsqueeze(-1)
        for _ in range(n - 1):
            following_BLG = F.pad(target_BLG[:, 1:], (0, 0, 0, 1))
            target_BLG = reward_BLG + discount_BLG * torch.where(goes_on_BL1, following_BLG, q_next_BLG)
    return target_BLG


def critic_mse(q_BLCG: Tensor, target_BLG: Tensor) -> Tensor:
    """Squared error (B, L, C, G) of every critic against one target per gamma (clipped double Q and REDQ ensembles)."""
    return (q_BLCG - target_BLG.unsqueeze(2)).square()


def masked_mean(x: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Mean of x (B, L, ...) where `mask_BL` (bool) is true, 0 where it is true nowhere; None stands for everywhere."""
    if mask_BL is None:
        return x.mean()
    mask = mask_BL.view(*mask_BL.shape, *[1] * (x.dim() - 2)).expand_as(x)
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def sequence_priority(error_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """A mixture (B,) of the largest and the mean error over real transitions (R2D2, Kapturowski et al. 2019, 2.3).

    error_BL: at least 0, and 0 where `mask_BL` is false.
    """
    mean_B = error_BL.sum(dim=1) / mask_BL.sum(dim=1).clamp(min=1)
    return PRIORITY_OF_LARGEST * error_BL.amax(dim=1) + (1 - PRIORITY_OF_LARGEST) * mean_B + LEAST_PRIORITY


def filtered_behavior_cloning(log_prob_BLG: Tensor, weight_BLG: Tensor) -> Tensor:
    """- f(A) log pi(a | s), (B, L, G); the weight takes no gradient (CRR, arXiv 2006.15134, eq. 1)."""
    return -weight_BLG.detach() * log_prob_BLG


def _clip(weight: Tensor, low: float | None, high: float | None) -> Tensor:
    """`weight` within [low, high]; None leaves that side open."""
    return weight if low is None and high is None else weight.clamp(low, high)


@gin.configurable
def binary_filter(advantage: Tensor, threshold: float = 0.0) -> Tensor:
    """1 where the advantage is above `threshold`, else 0 (CRR's binary filter, arXiv 2006.15134, eq. 3)."""
    return (advantage > threshold).to(advantage.dtype)


@gin.configurable
def exp_filter(
    advantage: Tensor,
    beta: float = 1.0,
    clip_weights_low: float | None = 1e-7,
    clip_weights_high: float | None = None,
    clip_adv_low: float | None = None,
    clip_adv_high: float | None = None,
) -> Tensor:
    """exp(beta A), clipped (advantage-weighted regression; CRR's exponential filter, arXiv 2006.15134, eq. 4).

    clip_adv_low, clip_adv_high: bounds on A itself; clip_weights_low, clip_weights_high: on what becomes of it.
    """
    advantage = _clip(advantage, clip_adv_low, clip_adv_high)
    return _clip((beta * advantage).exp(), clip_weights_low, clip_weights_high)


@gin.configurable
def leaky_relu_filter(
    advantage: Tensor,
    beta: float = 2.0,
    tau: float = 1e-2,
    neg_slope: float = 0.05,
    target_f0: float = 1e-2,
    clip_weights_low: float | None = 1e-7,
    clip_weights_high: float | None = 10.0,
    add_binary: bool = True,
) -> Tensor:
    """A filter that leans: two ramps that meet at A = tau, plus, with `add_binary`, a step of 1 at A = 0; clipped.

    The lower ramp has slope neg_slope / beta and takes the value `target_f0` at A = 0; the upper has slope 1 / beta.
    The step belongs to A > 0, not to A > tau, so weights in (0, tau] are those of the lower ramp plus 1.
    """
    past_hinge = (advantage - tau) / beta
    at_hinge = target_f0 + neg_slope * tau / beta
    weight = at_hinge + F.leaky_relu(past_hinge, neg_slope)
    if add_binary:
        weight = weight + (advantage > 0).to(advantage.dtype)
    return _clip(weight, clip_weights_low, clip_weights_high)
