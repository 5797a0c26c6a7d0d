"""Data that were there before the run: what a dataset is, and how several are mixed."""

from amago_ray.replay.datasets.dataset import Episode, MixtureOfDatasets, OnlineReplay, RLDataset, RowLayout

__all__ = ["Episode", "MixtureOfDatasets", "OnlineReplay", "RLDataset", "RowLayout"]
