"""How many timesteps each environment has behind it: what exploration anneals over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amago_ray.settings import ExperimentSettings
from amago_ray.watch.metrics import Progress

ENV_STEPS = "env_steps"  # in a training state


class EnvSteps:
    """Timesteps of each environment, by the settings of now, on top of those that were made when the run was resumed.

    steps: made then, before epoch `epoch` and when the run had made `frames` over all environments.
    """

    def __init__(self, settings: ExperimentSettings, steps: int = 0, epoch: int = 0, frames: int = 0):
        self._settings, self._steps, self._frames = settings, steps, frames
        self._epoch = max(epoch, settings.start_collecting_at_epoch)

    @staticmethod
    def saved(settings: ExperimentSettings, state: Mapping[str, Any]) -> EnvSteps:
        """Going on from a training state."""
        steps = state.get(ENV_STEPS, _of_workers(state))
        if steps is None:  # it is older than this, and of a run that did not pause: as if settings had not changed
            return EnvSteps(settings)
        progress, ahead = Progress.from_dict(state["progress"]), state.get("ahead")
        epoch, frames = progress.epoch + 1, progress.total_frames
        if ahead is not None:
            epoch, frames = ahead["epoch"] + 1, frames + ahead["collected"]["timesteps"]
        return EnvSteps(settings, steps, epoch, frames)

    def before(self, epoch: int) -> int:
        """Those made when the collection of an epoch begins, where every environment has a quota."""
        return self._steps + max(epoch - self._epoch, 0) * self._settings.train_timesteps_per_epoch

    def at(self, frames: int) -> int:
        """Those made when there are so many `frames` over all environments, on the average."""
        return self._steps + max(frames - self._frames, 0) // self._settings.parallel_actors


def _of_workers(state: Mapping[str, Any]) -> int | None:
    """The most that an environment had made by what its worker said; None where no worker said so."""
    paused = [half for worker in state.get("workers", {}).values() for half in worker.get("halves", [worker])]
    explored = [each["exploration"].get("steps") for each in paused if each.get("exploration")]
    return max((step for steps in explored for step in steps or ()), default=None)
