"""Readers of data that others wrote: AMAGO's files, Minari's, those of an earlier run, and episodes in memory.

    Experiment.dataset = @MinariDataset()
    MinariDataset.dataset = "D4RL/pen/human-v2"

What they have in common, and how to write another one, is in `datasets`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import gin
import gymnasium as gym
import numpy as np

from amago_ray.envs.spaces import OBSERVATION
from amago_ray.messages import ACTION, REWARD, TERMINATED, Trajectory, TrajectoryId
from amago_ray.replay.datasets.dataset import NOT_FROM_A_WORKER, Episode, RLDataset, RowLayout
from amago_ray.replay.datasets.stored import StoredSource, open_stores
from amago_ray.replay.sampling.selection import SamplingMode, SelectionConfig
from amago_ray.replay.sampling.sources import Source
from amago_ray.replay.storage.records import Schema
from amago_ray.replay.storage.store import TrajectoryStore
from amago_ray.specs import ActionSpec

AMAGO_OBS_PREFIX = "_OBS_KEY_"
AMAGO_ARRAYS = ("rl2s", "time_idxs", "rews", "dones", "actions")


@gin.configurable
class EpisodeDataset(RLDataset):
    """Episodes that are in memory, and that are sent to every shard.

    episodes: `Episode`s, or mappings of an Episode's fields.
    """

    def __init__(self, episodes: Iterable[Episode | Mapping[str, Any]]):
        self.episodes = [e if isinstance(e, Episode) else Episode(**e) for e in episodes]

    def __len__(self) -> int:
        return len(self.episodes)

    def episode(self, index: int) -> Episode:
        return self.episodes[index]


@gin.configurable
class AmagoDataset(RLDataset):
    """Trajectory files that AMAGO 3.x wrote with save_trajs_as "npz" or "npz-compressed".

    A file holds the T + 1 rows of one piece of a rollout as the networks of AMAGO saw them: observations by name,
    "rl2s" (previous reward, previous action vector) and "time_idxs", and for its T transitions "actions" (vectors:
    one-hot for Discrete, in [-1, 1] for Box), "rews" and "dones".

    path: a folder with such files, at any depth; those that are there when the run starts are taken.
    Raises ValueError where there are none.
    """

    def __init__(self, path: str | os.PathLike[str]):
        folder = Path(path).expanduser()
        self.files = sorted(folder.rglob("*.npz"))
        if not self.files:
            pickled = next(folder.rglob("*.traj"), None)
            hint = "; .traj files are pickles of AMAGO's own classes and are not read: save npz" if pickled else ""
            raise ValueError(f"AmagoDataset.path={str(path)!r}: there are no .npz files below it{hint}")

    def __len__(self) -> int:
        return len(self.files)

    def episode(self, index: int) -> Episode:
        raise NotImplementedError("a file may hold the middle of a rollout, which is no Episode: see `trajectory`")

    def _trajectory(self, index: int, layout: RowLayout) -> Trajectory:
        path = self.files[index]
        try:
            with np.load(path) as file:
                arrays = dict(file)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error})") from error
        missing = [name for name in AMAGO_ARRAYS if name not in arrays]
        if missing:
            raise ValueError(f"{path} is no trajectory file of AMAGO 3.x: it lacks {', '.join(missing)}")
        rewards = arrays["rews"].reshape(-1)
        columns = layout.empty(len(rewards) + 1)
        observed = {k.removeprefix(AMAGO_OBS_PREFIX): v for k, v in arrays.items() if k.startswith(AMAGO_OBS_PREFIX)}
        for name in layout.obs.spec:
            if name not in observed:
                raise ValueError(f"{path} has no observation {name!r}: it has {', '.join(sorted(observed))}")
        named = isinstance(layout.observation_space, gym.spaces.Dict)
        layout.write_obs(columns, observed if named else observed[OBSERVATION])
        first_time_idx = int(arrays["time_idxs"].flat[0])
        columns[ACTION][1:] = _from_amago_vectors(arrays["actions"], layout.action.spec)
        columns[REWARD][1:], columns[TERMINATED][1:] = rewards, arrays["dones"].reshape(-1)
        if first_time_idx > 0:  # the later pieces of a rollout begin with what led to their first row
            columns[ACTION][:1] = _from_amago_vectors(arrays["rl2s"][:1, 1:], layout.action.spec)
            columns[REWARD][0] = arrays["rl2s"][0, 0]
        return Trajectory(
            id=TrajectoryId(NOT_FROM_A_WORKER, 0, index),
            env_name=path.stem.rsplit("_", 2)[0],  # {environment}_{random}_{time}
            columns=columns,
            first_time_idx=first_time_idx,
            truncated=False,  # a file does not tell a truncated rollout from one that was cut
            weight_version=0,
        )


def _from_amago_vectors(vectors: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """AMAGO's action vectors (N, A) as they are stored. Raises ValueError where they are not of this action space."""
    if vectors.shape[1:] != (spec.vector_size,) or spec.kind == "multidiscrete":
        raise ValueError(f"actions are vectors of shape {vectors.shape[1:]}, the action space has {spec}")
    if spec.kind == "continuous":
        if np.abs(vectors).max() > 1.0 + 1e-6:
            raise ValueError("actions are outside [-1, 1], to which AMAGO scales them")
        return vectors.astype(spec.dtype)
    if not (np.isin(vectors, (0, 1)).all() and (spec.kind == "multibinary" or (vectors.sum(axis=1) == 1).all())):
        raise ValueError(f"actions are not the 0 and 1 of {spec}")
    return (vectors if spec.kind == "multibinary" else vectors.argmax(axis=1)).astype(spec.dtype)


@gin.configurable
class MinariDataset(RLDataset):
    """A Minari dataset (https://minari.farama.org), read where it lies.

    dataset: its id, such as "D4RL/pen/human-v2", in Minari's local folder, or the path of its own folder.
    download: fetch a dataset that is not there.
    Raises ImportError where Minari is not installed, ValueError where there is no such dataset.
    """

    def __init__(self, dataset: str, download: bool = False):
        self.dataset, self.download = dataset, download
        if len(self._minari) == 0:  # opened here so that a mistake is seen where the run is set up
            raise ValueError(f"MinariDataset.dataset={dataset!r}: it has no episodes")

    @cached_property
    def _minari(self) -> Any:
        try:
            import h5py  # noqa: F401 (Minari looks for it when it first reads)
            import minari
        except ImportError as error:
            raise ImportError(
                f"MinariDataset needs Minari, which is not installed ({error}): install amago_ray[offline]"
            ) from error
        folder = Path(self.dataset).expanduser()
        try:
            if folder.is_dir():
                return minari.MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)
            return minari.load_dataset(self.dataset, download=self.download)
        except (ValueError, OSError) as error:
            raise ValueError(f"MinariDataset.dataset={self.dataset!r}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "download": self.download}

    def __len__(self) -> int:
        return len(self._minari)

    @property
    def spaces(self) -> tuple[gym.Space, gym.Space]:
        return self._minari.observation_space, self._minari.action_space

    def episode(self, index: int) -> Episode:
        read = self._minari[index]
        env = self._minari.env_spec
        return Episode(
            read.observations, read.actions, read.rewards, read.terminations, self._minari.id if env is None else env.id
        )


@gin.configurable
class StoredDataset(RLDataset):
    """What replay has stored: by an earlier run (its replay/ folder), or by `amago-ray import-data`. Read in place.

    Another run may still be writing: what it had committed when this one starts is what is read.

    path: the folder that holds shard_0, shard_1, ... .
    sampling: as `Experiment.replay_sampling`, but for "prioritized", which is for what a run collects itself.
    half_life: of "recent", in epochs of the run that stored the data.
    Raises ValueError where nothing is stored there.
    """

    def __init__(self, path: str | os.PathLike[str], sampling: SamplingMode = "trajectories", half_life: float = 100.0):
        if sampling == "prioritized":
            raise ValueError(
                "StoredDataset.sampling='prioritized': priorities are kept of what the run itself collects; use "
                "'trajectories', 'timesteps' or 'recent'"
            )
        self.path = Path(path).expanduser().resolve()
        self._selection = SelectionConfig(sampling, half_life)
        if len(self) == 0:
            raise ValueError(f"StoredDataset.path={str(path)!r}: no trajectories are stored there")
        for store in self._stores:
            for damage in store.damage:
                warnings.warn(f"StoredDataset: {damage}", stacklevel=2)

    @cached_property
    def _stores(self) -> list[TrajectoryStore]:
        return open_stores(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_stores"}

    def __len__(self) -> int:
        return sum(len(store) for store in self._stores)

    def episode(self, index: int) -> Episode:
        raise NotImplementedError("it may be the middle of a rollout, which is no Episode: see `trajectory`")

    def _trajectory(self, index: int, layout: RowLayout) -> Trajectory:
        for store in self._stores:
            if index < len(store):
                number = np.array([store.table.first + index])
                break
            index -= len(store)
        (facts,) = store.facts(number)
        columns = store.read(number, np.zeros(1, dtype=np.int64), facts["num_rows"][None])
        expected, found = Schema.of(layout.empty(0)).columns, Schema.of(columns).columns
        if set(expected) != set(found):
            raise ValueError(f"it is of other environments: it has the columns {found}, the run has {expected}")
        id = TrajectoryId(int(facts["worker"]), int(facts["incarnation"]), int(facts["sequence"]))
        return Trajectory(
            id=id,
            env_name=store.env_name(int(facts["env"])),
            columns=columns,
            first_time_idx=int(facts["first_time_idx"]),
            truncated=bool(facts["truncated"]),
            weight_version=int(facts["weight_version"]),
        )

    def source(self, layout: RowLayout, shard: int, num_shards: int) -> Source:
        return StoredSource(open_stores(self.path), self._selection, shard, num_shards)
