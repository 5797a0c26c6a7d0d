"""A replay shard as a Ray actor; apart from the others, because without PyTorch it starts at once and stays small."""

from __future__ import annotations

from collections.abc import Sequence

from amago_ray import config
from amago_ray.driver.malloc import keep_freed_memory
from amago_ray.replay.datasets.dataset import RowLayout, TrajectoryDataset
from amago_ray.replay.shard import ReplayConfig, ReplayShard

CONFIGURABLE_MODULES = ("amago_ray.replay.datasets", "amago_ray.replay.readers", "amago_ray.replay.sampling.relabeling")


class ShardActor(ReplayShard):
    """A replay process.

    datasets: sources beside what is collected, of which this shard serves its share; layout: of their rows.
    """

    def __init__(
        self,
        replay: ReplayConfig,
        shard: int,
        num_shards: int,
        datasets: Sequence[TrajectoryDataset],
        layout: RowLayout | None,
        gin_config: str,
    ):
        keep_freed_memory()
        config.restore(gin_config, modules=CONFIGURABLE_MODULES)
        assert layout is not None or not datasets, "a run with datasets has a layout"
        sources = [dataset.source(layout, shard, num_shards) for dataset in datasets if layout is not None]
        super().__init__(replay, shard, sources)
