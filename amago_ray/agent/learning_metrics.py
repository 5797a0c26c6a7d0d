"""Names for what a loss can tell of itself, gamma by gamma: values (B, L), whose mean over what is real is logged.

Shape letters: B sequences, L transitions, C critics, G discount factors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amago_ray.nets.scaling import PopArt

APPROVED = 1e-3  # weights above it count as approval of an action


@torch.no_grad()
def value_metrics(
    q_BLCG: Tensor, target_BLG: Tensor, popart: PopArt, gamma_names: Sequence[str], counted_BL: Tensor | None
) -> dict[str, Tensor]:
    """Values, targets and their extremes where `counted_BL` is true, in units of scaled reward, and the scale."""
    metrics = {}
    spread_BLG = q_BLCG.std(dim=2, correction=0)
    for g, gamma in enumerate(gamma_names):
        metrics[f"Q(s,a) (gamma={gamma})"] = q_BLCG[..., g].mean(dim=2)
        metrics[f"Q(s,a) Ensemble Std (gamma={gamma})"] = spread_BLG[..., g]
        metrics[f"TD Target (gamma={gamma})"] = target_BLG[..., g]
    counted_BL1 = target_BLG.new_ones((), dtype=torch.bool) if counted_BL is None else counted_BL.unsqueeze(-1)
    metrics["TD Target Min"] = torch.where(counted_BL1, target_BLG, torch.inf).amin()
    metrics["TD Target Max"] = torch.where(counted_BL1, target_BLG, -torch.inf).amax()
    if popart.enabled:
        # A copy: metrics are fetched later, and the statistics move in place.
        mu, sigma = popart.mu.clone(), popart.sigma
        for g, gamma in enumerate(gamma_names):
            metrics[f"PopArt mu (gamma={gamma})"] = mu[g, 0]
            metrics[f"PopArt sigma (gamma={gamma})"] = sigma[g, 0]
    return metrics


def filter_metrics(
    weight_BLG: Tensor, advantage_BLG: Tensor, log_prob_BLG: Tensor, main_gamma: str
) -> dict[str, Tensor]:
    """What filtered behaviour cloning makes of the actions in the data."""
    return {
        "Pct. of Actions Approved by Filter (All Gammas)": 100.0 * (weight_BLG > APPROVED).float().mean(dim=2),
        f"Pct. of Actions Approved by Filter (gamma={main_gamma})": 100.0 * (weight_BLG[..., -1] > APPROVED).float(),
        "Mean Filter Weight": weight_BLG.mean(dim=2),
        "Mean Advantage": advantage_BLG.mean(dim=2),
        "Mean Action Logprob": log_prob_BLG.mean(dim=2),
    }


def entropy_metrics(entropy_BLG: Tensor, gamma_names: Sequence[str]) -> dict[str, Tensor]:
    return {f"Policy Entropy (gamma={gamma})": entropy_BLG[..., g] for g, gamma in enumerate(gamma_names)}
