"""AMAGO's name for what a run collects itself and keeps on disk, which here are settings of `Experiment`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin

from amago_ray.replay.sampling.relabeling import Relabeler
from amago_ray.warned import warn


@gin.configurable
@dataclass(frozen=True)
class DiskTrajDataset:
    """As `Experiment.dataset`: learn from what the run collects, with AMAGO's arguments for where and how much is kept.

        Experiment.dataset = @DiskTrajDataset()
        DiskTrajDataset.dset_root = "runs"
        DiskTrajDataset.dset_name = "maze"
        DiskTrajDataset.dset_max_size = 10_000

    dset_root, dset_name: the data lie below dset_root/dset_name; the run's own folder where that is the same.
    dset_max_size: trajectories kept, over all shards; the oldest make room. `Experiment.replay_capacity_gb` holds too.
    relabeler: changes trajectories as they are sampled; None for none.
    Trajectory files that AMAGO has left there are not read: give them to `AmagoDataset`.
    """

    dset_root: str | os.PathLike[str]
    dset_name: str
    dset_max_size: int
    relabeler: Relabeler | None = None

    def __post_init__(self) -> None:
        if self.dset_max_size < 1:
            raise ValueError(f"DiskTrajDataset.dset_max_size={self.dset_max_size!r}: it must be 1 trajectory or more")
        if self.relabeler is not None and not isinstance(self.relabeler, Relabeler):
            raise TypeError(
                f"DiskTrajDataset.relabeler={self.relabeler!r}: it must be a Relabeler of amago_ray, such as "
                "HindsightRelabeler()"
            )

    @property
    def folder(self) -> Path:
        """Where the data lie."""
        return (Path(self.dset_root).expanduser() / self.dset_name).resolve()

    def settings(self, run: Path) -> dict[str, Any]:
        """Values of `Experiment`'s settings that say the same, for a run in the folder `run`."""
        if next((self.folder / "buffer").glob("*/*.npz"), None) is not None:
            warn(
                f"DiskTrajDataset: the trajectory files of AMAGO in {self.folder / 'buffer'} are not read; to learn "
                "from them too, take MixtureOfDatasets.sources = (@OnlineReplay(), @AmagoDataset())",
                stacklevel=2,
            )
        found: dict[str, Any] = {
            "dataset": None,
            "replay_dir": None if self.folder == run.expanduser().resolve() else self.folder,
            "replay_capacity_trajectories": self.dset_max_size,
        }
        return found if self.relabeler is None else found | {"relabeler_type": self._give_relabeler}

    def _give_relabeler(self) -> Relabeler:
        assert self.relabeler is not None
        return self.relabeler
