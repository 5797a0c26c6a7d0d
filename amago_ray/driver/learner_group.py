"""The learner group as the driver sees it: what it has learned, where a new one begins, and what that one lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from amago_ray.driver.failures import Decision, FailurePolicy
from amago_ray.driver.placement import LEARNER
from amago_ray.driver.remote import RemoteCall
from amago_ray.driver.topology import LearnerDied, Topology
from amago_ray.messages import LearnReport
from amago_ray.run_directory import RunDirectory

T = TypeVar("T")

MAX_DEATHS_OVER_ONE_WORK = 3  # each costs what was learned since the newest training state


class LearnerGroup:
    """Keeps a group of learners alive: one that dies is rebuilt as a unit, and what the new one lacks is learned again.

    forgive: told when a rebuild has kept the driver from looking at anybody else. catch_up: learns so many batches.
    batches: learned from, by this group and those before it.
    """

    def __init__(
        self,
        topology: Topology,
        failures: FailurePolicy,
        directory: RunDirectory,
        say: Callable[[str], None],
        forgive: Callable[[], None],
        catch_up: Callable[[int], None],
    ):
        self._topology, self._failures, self._directory = topology, failures, directory
        self._say, self._forgive, self._catch_up = say, forgive, catch_up
        saved = directory.saved_epochs()
        self._base_epoch = saved[-1] if saved else None  # whose training state a new group begins with
        self._base_policy: Path | None = None  # that was loaded over it
        self.batches = 0

    def start(self, batches: int) -> None:
        """Start the first group of this process. batches: that it was learned from, where the run goes on."""
        self.batches = batches
        try:
            self._begin()
        except LearnerDied as death:
            self.rebuild(death)

    def insist(self, work: Callable[[], T]) -> T:
        """Do `work` on the learners, and again with a new group that has caught up, when one dies over it.

        Raises LearnerDied when one group after the other has died over the same work.
        """
        deaths = 0
        while True:
            try:
                return work()
            except LearnerDied as death:
                deaths += 1
                if deaths > MAX_DEATHS_OVER_ONE_WORK:
                    raise
                behind = self.rebuild(death)
                if behind:
                    self.batches -= behind  # until they are learned again
                    self._catch_up(behind)

    def rebuild(self, death: LearnerDied) -> int:
        """A new group. Returns how many batches it lacks of those that were learned.

        Raises `death` when groups have died time and again without finishing anything in between.
        """
        while self._failures.decide(LEARNER, 0, death) is Decision.REBUILD:
            self._say(f"{death}; going on from {self._beginning}")
            try:
                behind = self._begin()
            except LearnerDied as another:
                death = another
                continue
            self._forgive()
            return behind
        raise death

    @property
    def _beginning(self) -> str:
        if self._base_policy is not None:
            return f"the weights of {self._base_policy}"
        if self._base_epoch is not None:
            return f"the training state of epoch {self._base_epoch + 1}"
        return "the initial weights"

    def _begin(self) -> int:
        """A group where the last one began: see `_beginning`. Returns how many batches it lacks."""
        self._topology.start_learners()
        if self._base_epoch is not None:
            self._topology.load_state(self._directory.training_state(self._base_epoch))
        if self._base_policy is not None:
            self._topology.load_agent(self._base_policy)
        return max(self.batches - self._batches_of_base(), 0)

    def _batches_of_base(self) -> int:
        return 0 if self._base_epoch is None else self._directory.load_run_state(self._base_epoch)["batches"]

    def learned(self, batches: int, report: LearnReport) -> None:
        """So many more batches are in the weights."""
        self._failures.recovered(LEARNER, 0)
        self.batches += batches

    # ---------------------------------------------------------------- files

    def save_policy(self, path: Path) -> None:
        """Write the agent's weights as they are."""
        self.insist(lambda: self._topology.save_agent(path))

    def load_policy(self, path: Path) -> None:
        """Go on from an agent's weights. Raises RuntimeError where they fit another architecture."""
        self.insist(lambda: self._topology.load_agent(path))
        self._base_policy = path

    def snapshot(self, epoch: int) -> None:
        """Let every learner copy its state as it is now, at the end of `epoch`."""
        self.insist(lambda: self._topology.snapshot(epoch))

    def write_state(self, folder: Path, policy: Path, epoch: int) -> list[RemoteCall[None]]:
        """Let every learner write its share of that snapshot; `saved` then says that all is complete."""
        return self._topology.write_state(folder, policy, epoch)

    def saved(self, epoch: int) -> None:
        """The training state of `epoch` is complete: a new group begins with it."""
        self._base_epoch, self._base_policy = epoch, None

    def load_state(self, epoch: int) -> None:
        """Put the group where it was after `epoch`."""
        self.saved(epoch)
        self.batches = self._batches_of_base()
        self.insist(lambda: self._topology.load_state(self._directory.training_state(epoch)))
