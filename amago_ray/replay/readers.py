"""Readers of data that others wrote: AMAGO's files, Minari's, those of an earlier run, and episodes in memory.

    Experiment.dataset = @MinariDataset()
    MinariDataset.dataset = "D4RL/pen/human-v2"

What they have in common, and how to write another one, is in `datasets`.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import gin
import gymnasium as gym
import numpy as np

from amago_ray.envs.spaces import OBSERVATION
from amago_ray.messages import ACTION, REWARD, TERMINATED, Trajectory, TrajectoryId
from amago_ray.replay.datasets.checks import reward_column
from amago_ray.replay.datasets.dataset import NOT_FROM_A_WORKER, Episode, RLDataset, RowLayout, TrajectoryDataset
from amago_ray.replay.datasets.recorded_spaces import check_meaning, recorded_spaces
from amago_ray.replay.datasets.stored_source import UNBOUNDED, StoredSource
from amago_ray.replay.inspection import NothingStored, StoredData, find_stored_data
from amago_ray.replay.pieces import continued, is_exported
from amago_ray.replay.sampling.selection import SamplingMode, SelectionConfig
from amago_ray.replay.sampling.sources import Source
from amago_ray.replay.storage.records import Schema
from amago_ray.replay.storage.store import TrajectoryStore
from amago_ray.specs import ActionSpec
from amago_ray.warned import warn

AMAGO_OBS_PREFIX = "_OBS_KEY_"
EXPORTED_FILE = re.compile(r"_(?:\d{8}|\d{10})_(-?\d{1,9})$")  # of a number and a weight version, see `export_npz`
MINARI_ID = re.compile(r"[\w-]+(/[\w-]+)*-v\d+")
AMAGO_ARRAYS = ("rl2s", "time_idxs", "rews", "dones", "actions")


@gin.configurable
class EpisodeDataset(RLDataset):
    """Episodes that are in memory, and that are sent to every shard.

    episodes: `Episode`s, or mappings of an Episode's fields. All of them are checked before the run starts.
    Raises ValueError where there are none: shards have copies, and later ones would never be seen.
    """

    checked_bytes = UNBOUNDED

    def __init__(self, episodes: Iterable[Episode | Mapping[str, Any]]):
        self.episodes = [e if isinstance(e, Episode) else Episode(**e) for e in episodes]
        if not self.episodes:
            raise ValueError("EpisodeDataset.episodes=[]: it must hold one episode or more")

    def __len__(self) -> int:
        return len(self.episodes)

    def episode(self, index: int) -> Episode:
        return self.episodes[index]


@gin.configurable
class AmagoDataset(TrajectoryDataset):
    """Trajectory files that AMAGO 3.x wrote with save_trajs_as "npz" or "npz-compressed".

    A file holds the T + 1 rows of one piece of a rollout as the networks of AMAGO saw them: observations by name,
    "rl2s" (previous reward, previous action vector) and "time_idxs", and for its T transitions "actions" (vectors:
    one-hot for Discrete, one-hots end to end for MultiDiscrete, in [-1, 1] for Box), "rews" and "dones". The names of
    those that `amago-ray replay --export` wrote tell the version of the weights, too.

    path: a folder with such files, at any depth; those that are there when the run starts are taken. Using it raises
    ValueError where there are none.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser()

    @cached_property
    def files(self) -> list[Path]:
        """The files, in order."""
        found = sorted(self.path.rglob("*.npz"))
        if not found:
            pickled = next(self.path.rglob("*.traj"), None)
            hint = "; .traj files are pickles of AMAGO's own classes and are not read: save npz" if pickled else ""
            raise ValueError(f"AmagoDataset.path={str(self.path)!r}: there are no .npz files below it{hint}")
        return found

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int, layout: RowLayout) -> Trajectory:
        path = self.files[index]
        arrays = _read_npz(path)
        rewards = reward_column(arrays["rews"])
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
            weight_version=_weight_version(path),
        )


def _weight_version(path: Path) -> int:
    """As it stands in the name of a file that `export_npz` wrote; AMAGO's end in a time, in seconds since 1970."""
    exported = EXPORTED_FILE.search(path.stem)
    return int(exported.group(1)) if exported else 0


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a trajectory file. Raises ValueError for one that is broken, of another kind or inconsistent."""
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    missing = [name for name in AMAGO_ARRAYS if name not in arrays]
    if missing:
        raise ValueError(f"{path} is no trajectory file of AMAGO 3.x: it lacks {', '.join(missing)}")
    num = len(arrays["rews"]) if arrays["rews"].ndim else 0
    if num == 0:
        raise ValueError(f"{path} has no transition")
    for name, rows in {"rews": num, "dones": num, "actions": num, "rl2s": num + 1, "time_idxs": num + 1}.items():
        shape, of_vectors = arrays[name].shape, name in ("actions", "rl2s")
        if shape[:1] != (rows,) or (len(shape) != 2 if of_vectors else arrays[name].size != rows):
            right = f"{rows} rows of {'vectors' if of_vectors else 'one number'} are right"
            raise ValueError(f"{path} has {name} of shape {shape} for {num} rewards: {right}")
    _check_one_rollout(path, arrays)
    return arrays


def _check_one_rollout(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for a file whose rows do not follow one another, or tell of other rewards than its "rews"."""
    times = arrays["time_idxs"].reshape(-1)
    wrong = (times != times[0] + np.arange(len(times))) | (times < 0)
    if wrong.any():
        t = int(wrong.argmax())
        raise ValueError(f"{path}: time_idxs is {times[t]} in row {t}: it must count the rows of one rollout")
    rewards, seen = arrays["rews"].reshape(-1).astype(np.float32), arrays["rl2s"][1:, 0].astype(np.float32)
    apart = ~np.isclose(rewards, seen, rtol=2e-3, atol=1e-6) & np.isfinite(rewards)  # others are refused as such
    if apart.any():
        t = int(apart.argmax())
        raise ValueError(f"{path}: rl2s has the reward {seen[t]} in row {t + 1}, and rews has {rewards[t]} for it")


def _from_amago_vectors(vectors: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """AMAGO's action vectors (N, A) as they are stored. Raises ValueError where they are not of this action space."""
    if vectors.shape[1:] != (spec.vector_size,):
        raise ValueError(f"actions are vectors of shape {vectors.shape[1:]}, the action space has {spec}")
    if spec.kind == "continuous":
        _check_all(np.abs(vectors) <= 1.0 + 1e-6, vectors, "it is outside [-1, 1], to which AMAGO scales actions")
        return vectors.astype(spec.dtype)
    _check_all(np.isin(vectors, (0, 1)), vectors, f"it is not made of the 0 and 1 of {spec}")
    if spec.kind == "multibinary":
        return vectors.astype(spec.dtype)
    one_hots = np.split(vectors, np.cumsum(spec.nvec)[:-1], axis=1)  # end to end
    _check_all(np.stack([part.sum(axis=1) == 1 for part in one_hots], axis=1), vectors, f"it is not one-hot in {spec}")
    categories = np.stack([part.argmax(axis=1) for part in one_hots], axis=1)
    return categories.reshape(len(vectors), *spec.shape).astype(spec.dtype)


def _check_all(right: np.ndarray, vectors: np.ndarray, what: str) -> None:
    """Raises ValueError for the first of the vectors (N, A) that is not right in all of its (N, ...) places."""
    rows = right.all(axis=1)
    if not rows.all():
        t = int((~rows).argmax())
        raise ValueError(f"action {t} is {vectors[t].tolist()}: {what}")


@gin.configurable
class MinariDataset(RLDataset):
    """A Minari dataset (https://minari.farama.org), read where it lies.

    Of what `amago-ray replay --export` wrote, each episode is the piece of a rollout that was stored.

    dataset: its id, such as "D4RL/pen/human-v2", in Minari's local folder, or the path of its own folder.
    download: fetch a dataset that is not there.
    Using it raises ImportError where Minari is not installed, ValueError where there is no such dataset.
    """

    def __init__(self, dataset: str, download: bool = False):
        self.dataset, self.download = dataset, download

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
                found = minari.MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)
            else:
                found = minari.load_dataset(self.dataset, download=self.download)
        except (ValueError, OSError) as error:
            why = self._not_here() if isinstance(error, FileNotFoundError) and not folder.is_dir() else error
            raise ValueError(f"MinariDataset.dataset={self.dataset!r}: {why}") from error
        if len(found) == 0:
            raise ValueError(f"MinariDataset.dataset={self.dataset!r}: it has no episodes")
        return found

    def _not_here(self) -> str:
        fetched = MINARI_ID.fullmatch(self.dataset) and not self.download
        fetch = "; MinariDataset.download = True fetches one" if fetched else ""
        return f"there is no such folder, and no Minari data set of that id here{fetch}"

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "download": self.download}

    def __len__(self) -> int:
        return len(self._minari)

    @property
    def spaces(self) -> tuple[gym.Space, gym.Space]:
        return self._minari.observation_space, self._minari.action_space

    def read(self, index: int, layout: RowLayout) -> Trajectory:
        found = super().read(index, layout)
        facts = next(iter(self._minari.storage.get_episode_metadata([index])))
        return continued(found, facts, layout) if is_exported(facts) else found

    def episode(self, index: int) -> Episode:
        read = self._minari[index]
        env = self._minari.env_spec
        return Episode(
            read.observations, read.actions, read.rewards, read.terminations, self._minari.id if env is None else env.id
        )


@gin.configurable
class StoredDataset(TrajectoryDataset):
    """What replay has stored: by an earlier run (its replay/ folder), or by `amago-ray import-data`. Read in place.

    Another run may still be writing: what it had committed when this one starts is what is read.

    path: the folder that holds shard_0, shard_1, ..., or that of the run. What the run has evicted is left out, also
        where its files still hold it.
    sampling: as `Experiment.replay_sampling`, but for "prioritized", which is for what a run collects itself.
    half_life: of "recent", in epochs of the run that stored the data.
    Using it raises ValueError where nothing is stored there.
    """

    def __init__(self, path: str | os.PathLike[str], sampling: SamplingMode = "trajectories", half_life: float = 100.0):
        if sampling == "prioritized":
            raise ValueError(
                "StoredDataset.sampling='prioritized': priorities are kept of what the run itself collects; use "
                "'trajectories', 'timesteps' or 'recent'"
            )
        self.path = Path(path).expanduser().resolve()
        self._selection = SelectionConfig(sampling, half_life)

    @cached_property
    def _stores(self) -> list[TrajectoryStore]:
        stores: list[TrajectoryStore] = [*self._found().open()]
        if not any(len(store) for store in stores):
            found = [text for store in stores for text in store.damage]
            raise self._nothing(f" that can be read: {found[0]}" if found else "")
        for store in stores:
            for damage in store.damage:
                warn(f"StoredDataset: {damage}", stacklevel=2)
        return stores

    def _found(self) -> StoredData:
        try:
            return find_stored_data(self.path)
        except NothingStored as error:
            raise self._nothing() from error

    def _nothing(self, because: str = "") -> ValueError:
        return ValueError(f"StoredDataset.path={str(self.path)!r}: no trajectories are stored there{because}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_stores"}

    def __len__(self) -> int:
        return sum(len(store) for store in self._stores)

    @property
    def recorded(self) -> dict[str, Any] | None:
        """What the stored rows mean (see `recorded_spaces.meaning`); None where it was not kept."""
        return recorded_spaces(self._found().shards[0].parent)

    def check_spaces(self, layout: RowLayout) -> None:
        what = f"StoredDataset.path={str(self.path)!r} holds data of other environments"
        check_meaning(self.recorded, layout, what)

    def readable(self) -> Iterator[int]:
        commits = np.concatenate([store.table.rows["commit"] for store in self._stores])
        oldest_first = np.argsort(commits, kind="stable").tolist()
        return (index for index in oldest_first if not self._is_damaged(*self._place(index)))

    def commit_of(self, index: int) -> int:
        store, number = self._place(index)
        return int(store.facts(np.array([number]))["commit"][0])

    @property
    def damage(self) -> Sequence[str]:
        return [text for store in self._stores for text in store.damage]

    def read(self, index: int, layout: RowLayout) -> Trajectory:
        store, number = self._place(index)
        if self._is_damaged(store, number):
            raise ValueError(f"it is damaged ({store.damage[-1]}): amago-ray replay {self.path} --verify tells more")
        found = store.trajectory(number)
        expected, stored = Schema.of(layout.empty(0)).columns, Schema.of(found.columns).columns
        if set(expected) != set(stored):
            raise ValueError(f"it is of other environments: it has the columns {stored}, the run has {expected}")
        return found

    def _place(self, index: int) -> tuple[TrajectoryStore, int]:
        """The store that holds trajectory number `index` of all, and its number there."""
        for store in self._stores:
            if index < len(store):
                return store, store.table.first + index
            index -= len(store)
        raise IndexError(index)

    @staticmethod
    def _is_damaged(store: TrajectoryStore, number: int) -> bool:
        return bool(store.damaged(np.array([number])))

    def source(self, layout: RowLayout, shard: int, num_shards: int) -> Source:
        return StoredSource(self._found().open(), layout, self._selection, shard, num_shards)
