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
    q_BLCG: Tensor, target_BLG: Tensor, popart: PopArt, gamma_names: Sequence[str], num_real: int
) -> dict[str, Tensor]:
    """Values and targets, both in units of scaled reward, extremes of the first `num_real` targets, and the scale."""
    metrics = {}
    spread_BLG = q_BLCG.std(dim=2, correction=0)
    for g, gamma in enumerate(gamma_names):
        metrics[f"Q(s,a) (gamma={gamma})"] = q_BLCG[..., g].mean(dim=2)
        metrics[f"Q(s,a) Ensemble Std (gamma={gamma})"] = spread_BLG[..., g]
        metrics[f"TD Target (gamma={gamma})"] = target_BLG[..., g]
    metrics["TD Target Min"], metrics["TD Target Max"] = target_BLG[:, :num_real].aminmax()
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
