"""How far learning may run ahead of collecting, and the other way round."""

from __future__ import annotations

from amago_ray.settings import ExperimentSettings


class RateLimiter:
    """Holds the ratio of batches learned to timesteps collected within a tolerance (as in Reverb, arXiv 2102.04736).

    The balance is what was collected, in batches, minus what was learned; it starts at 0 when learning becomes
    possible. Collecting waits while the balance would rise above `tolerance`, learning while it would fall below
    -`tolerance`; whatever the balance, at least one of them may go on.

    batches_per_timestep: the ratio, above 0. min_timesteps: stored before learning begins. tolerance: in batches; at
    least 1, and at least what one step of all environments is worth.
    """

    def __init__(self, batches_per_timestep: float, min_timesteps: int, tolerance: float):
        self.batches_per_timestep = batches_per_timestep
        self.min_timesteps = min_timesteps
        self.tolerance = tolerance
        self.timesteps = 0  # collected since the limiter was made
        self.batches = 0
        self._before_learning: int | None = None

    @property
    def balance(self) -> float:
        """Batches that collecting is ahead of learning."""
        return self._balance(self.timesteps)

    def _balance(self, timesteps: int) -> float:
        if self._before_learning is None:
            return 0.0
        return (timesteps - self._before_learning) * self.batches_per_timestep - self.batches

    def may_collect(self, under_way: int) -> int:
        """Timesteps that may be started now. under_way: those that were started and are not done."""
        if self._before_learning is None:
            return max(self.largest_collection - under_way, 0)
        room = self.tolerance - self._balance(self.timesteps + under_way)
        return max(int(room / self.batches_per_timestep), 0)

    @property
    def largest_collection(self) -> int:
        """Timesteps that are worth the tolerance."""
        return max(int(self.tolerance / self.batches_per_timestep), 1)

    def may_learn(self) -> int:
        """Batches that may be learned now; never more than the tolerance at once."""
        if self._before_learning is None:
            return 0
        return max(int(min(self.balance, 0.0) + self.tolerance), 0)

    def collected(self, timesteps: int) -> None:
        """So many more timesteps were made."""
        self.timesteps += timesteps

    def stored(self, timesteps: int) -> None:
        """So many timesteps can be sampled now."""
        if self._before_learning is None and timesteps >= max(self.min_timesteps, 1):
            self._before_learning = self.timesteps

    def learned(self, batches: int) -> None:
        """So many more batches were learned from."""
        self.batches += batches


def rate_limiter(settings: ExperimentSettings) -> RateLimiter:
    """What holds the ratio of learning to collecting where both run freely."""
    x = settings
    per_epoch = x.parallel_actors * x.train_timesteps_per_epoch
    ratio = x.train_batches_per_epoch / max(per_epoch, 1)
    if x.updates_per_timestep is not None:
        ratio = x.updates_per_timestep * x.batches_per_update
    ratio = ratio or 1.0  # a run that never learns never asks
    # Both sides move in whole steps, and one of each must fit.
    tolerance = max(x.rate_tolerance * x.train_batches_per_epoch, 2.0, 2 * x.parallel_actors * ratio)
    return RateLimiter(ratio, x.replay_min_timesteps, tolerance)
