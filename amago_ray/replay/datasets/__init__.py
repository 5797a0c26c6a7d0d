"""Data that were there before the run: what a dataset is, and how several are mixed."""

from amago_ray.replay.datasets.dataset import (
    Episode,
    MixtureOfDatasets,
    OnlineReplay,
    RLDataset,
    RowLayout,
    TrajectoryDataset,
)
from amago_ray.replay.datasets.disk_traj import DiskTrajDataset

__all__ = [
    "DiskTrajDataset",
    "Episode",
    "MixtureOfDatasets",
    "OnlineReplay",
    "RLDataset",
    "RowLayout",
    "TrajectoryDataset",
]
