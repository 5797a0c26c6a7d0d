"""What bounds a run: where the time of an epoch goes, by resource, and what to change."""

from __future__ import annotations

from typing import Literal

from amago_ray.driver.collection import CollectSummary
from amago_ray.messages import LearnReport

Resource = Literal["environment", "policy", "replay", "learner", "waiting"]

REMEDIES: dict[Resource, str] = {
    "environment": "give the environments more cores or nodes (num_rollout_workers), or step them faster",
    "policy": "act in more environments at once (parallel_actors), on more cores, or by a smaller policy",
    "replay": "use more shards (num_replay_shards), or none of replay_compression",
    "learner": "give the learner more cores or a GPU, mixed_precision='auto' or, with padding, batch_layout='packed'",
    "waiting": "make epochs longer (train_timesteps_per_epoch, train_batches_per_epoch)",
}
FASTER_ON_A_GPU = "use mixed_precision='auto', for a Transformer compile_learning='always', or more GPUs (num_learners)"


def time_by_resource(
    collected: CollectSummary | None, learned: LearnReport | None, epoch_s: float, together: bool
) -> dict[Resource, float]:
    """Fractions of an epoch's time, which add up to 1: who would have to be faster for it to be shorter.

    epoch_s: seconds that it took. together: collecting and learning went on at the same time, so that only the longer
    of the two counts. What neither of them accounts for, and what workers spend without a call, is waiting.
    """
    seconds: dict[Resource, float] = dict.fromkeys(REMEDIES, 0.0)
    collect_s, learn_s = collected.wall_s if collected else 0.0, learned.total_s if learned else 0.0
    if collected is not None and (not together or collect_s >= learn_s):
        # Workers that finished early, or wait for the next call, do nothing that could be faster.
        scale = collect_s / max(collected.busy_s, collect_s * collected.num_workers, 1e-9)
        seconds["policy"] += collected.act_s * scale
        seconds["environment"] += collected.step_s * scale
        seconds["replay"] += collected.wait_s * scale
    if learned is not None and (not together or learn_s > collect_s):
        seconds["learner"] += learn_s - learned.wait_s
        seconds["replay"] += learned.wait_s
    total = max(epoch_s, sum(seconds.values()), 1e-9)
    seconds["waiting"] = total - sum(seconds.values())
    return {resource: s / total for resource, s in seconds.items()}


def bound_of(fractions: dict[Resource, float]) -> Resource:
    """The resource that takes the largest part of the time."""
    return max(fractions, key=lambda resource: fractions[resource])


def in_words(fractions: dict[Resource, float], learner_device: str = "cpu") -> str:
    """What bounds the run and what would change that, in a line."""
    bound = bound_of(fractions)
    rest = ", ".join(f"{r} {x:.0%}" for r, x in fractions.items() if r != bound and x >= 0.005)
    what = "waiting for processes" if bound == "waiting" else f"the {bound}"
    others = f" ({rest})" if rest else ""
    remedy = FASTER_ON_A_GPU if bound == "learner" and learner_device == "cuda" else REMEDIES[bound]
    return f"{what} takes {fractions[bound]:.0%} of the time{others}; to be faster, {remedy}"
