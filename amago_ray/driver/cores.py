"""How the cores of a machine are shared by those who act and those who learn: none is idle, none is promised twice."""

from __future__ import annotations

import math
from dataclasses import dataclass

from amago_ray.driver.placement import Cluster
from amago_ray.settings import ExperimentSettings

ENVS_PER_WORKER = 8  # what one worker can step together at good speed, where cores could do something else meanwhile


@dataclass(frozen=True)
class Cores:
    """workers: rollout workers, of one core each. learner: threads of each learner.

    machine: cores that workers and learners share; None where each has its own. takes_turns: they have the machine one
    after the other, and all of it.
    """

    workers: int
    learner: int
    machine: int | None = None
    takes_turns: bool = False

    def beside(self, busy_cores: float, num_learners: int) -> int | None:
        """Threads of each learner beside workers that keep `busy_cores` busy; None where there is nothing to share."""
        return None if self.machine is None else max((self.machine - math.ceil(busy_cores)) // num_learners, 1)

    @property
    def in_words(self) -> str:
        workers = f"{self.workers} worker{'s' * (self.workers != 1)}"
        threads = f"{self.learner} thread{'s' * (self.learner != 1)}"
        if self.takes_turns:
            return f"{workers} collect, then the learner has {threads}: in turn, each on the whole machine"
        return f"{workers} and, at the same time, {threads} of each learner"


def share_cores(settings: ExperimentSettings, device: str, cluster: Cluster, free_cpus: int) -> Cores:
    """How many workers there are by default, and threads of each learner; what the settings say is taken as it is.

    device: of the learners. free_cpus: cores that workers may have beside the learners'.
    """
    x, given = settings, settings.learner_cpus
    takes_turns = cluster.local and (x.schedule == "alternate" or (x.schedule == "auto" and device == "cpu"))
    if takes_turns:
        # One for each core: when it is their turn nobody else needs one.
        workers = x.num_rollout_workers or min(cluster.cpus, x.parallel_actors)
        return Cores(workers, given or max(cluster.cpus // x.num_learners, 1), cluster.cpus, takes_turns=True)
    workers = x.num_rollout_workers or min(max(free_cpus, 1), -(-x.parallel_actors // ENVS_PER_WORKER))
    if not cluster.local:
        return Cores(workers, given or 1)
    return Cores(workers, given or max((cluster.cpus - workers) // x.num_learners, 1), cluster.cpus)
