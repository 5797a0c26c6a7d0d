"""Stored trajectories as files that others read: AMAGO's npz, and Minari's datasets.

A rollout longer than `Experiment.traj_save_len` was stored in pieces, and it is exported in pieces: nothing that is
stored says for certain which piece continues which. AMAGO's files carry each row's time within its rollout; in Minari,
every episode's metadata say where in its rollout it begins and whether it was cut at its end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from amago_ray.atomic_files import check_room
from amago_ray.envs.spaces import OBSERVATION
from amago_ray.messages import ACTION, REWARD, TERMINATED, Trajectory
from amago_ray.replay.datasets.dataset import RowLayout
from amago_ray.replay.pieces import facts_of
from amago_ray.replay.readers import AMAGO_OBS_PREFIX
from amago_ray.replay.storage.records import Schema
from amago_ray.specs import OBS_PREFIX, ActionSpec

LONGEST_NAME = 200  # of an environment in the name of a file, in bytes
# What HDF5 may have to write later, of an episode and of the file: where it has no room for that, it ends the process.
HDF5_EPISODE_BYTES, HDF5_FILE_BYTES = 2 << 10, 8 << 20


def export_npz(trajectories: Iterable[Trajectory], layout: RowLayout, folder: Path) -> int:
    """Write one file per trajectory as AMAGO 3.x does with save_trajs_as "npz"; returns how many.

    Each holds T + 1 rows of "_OBS_KEY_<name>" (as the environment gave it), "rl2s" (previous reward, previous action
    vector) and "time_idxs", and T of "actions" (vectors: one-hot for Discrete, in [-1, 1] for Box), "rews" and "dones".
    They are named {environment}_{number}_{weight version}.npz, in the order in which they were stored. The format has
    no place for whether a rollout was truncated.
    Raises ValueError for trajectories that are not of `layout`, and for observations in nested spaces.
    """
    _check_flat(layout.observation_space)
    folder.mkdir(parents=True)
    num = 0
    for num, t in enumerate(_checked(trajectories, layout), start=1):
        _write_npz(t, layout, folder, f"{num - 1:08d}")
    return num


def npz_writer(spaces_of_env: tuple[gym.Space, gym.Space], folder: Path) -> Callable[[Trajectory], None]:
    """What writes an evaluation's trajectories into a folder, as `export_npz` does, each when it is given to it.

    spaces_of_env: of observations and of actions. A file's number is made of those of environment and rollout, so that
    a rollout that is played again, because a worker died, takes its own place.
    Raises ValueError for observations in nested spaces.
    """
    layout = RowLayout(*spaces_of_env)
    _check_flat(layout.observation_space)
    folder.mkdir(parents=True, exist_ok=True)

    def write(t: Trajectory) -> None:
        _write_npz(t, layout, folder, f"{t.id.worker:04d}{t.id.sequence:06d}")

    return write


def _check_flat(space: gym.Space) -> None:
    if any(isinstance(part, (spaces.Dict, spaces.Tuple)) for part in _parts(space)):
        raise ValueError(
            f"AMAGO's files have no place for the nested observations {space}: Minari's have (--format minari)"
        )


def _write_npz(t: Trajectory, layout: RowLayout, folder: Path, number: str) -> None:
    """One trajectory as AMAGO's file {environment}_{number}_{weight version}.npz."""
    space = layout.observation_space
    observed = observations(t.columns, space)
    named = observed if isinstance(space, spaces.Dict) else {OBSERVATION: observed}
    vectors = action_vectors(t.columns[ACTION], layout.action.spec)
    if t.first_time_idx == 0:
        vectors[0] = 0.0  # there was no action before the first row of a rollout
    try:
        np.savez(
            folder / f"{_file_name(t.env_name)}_{number}_{t.weight_version}.npz",
            **{AMAGO_OBS_PREFIX + name: values for name, values in named.items()},
            rl2s=np.concatenate([t.columns[REWARD][:, None], vectors], axis=1),
            time_idxs=t.first_time_idx + np.arange(t.num_transitions + 1)[:, None],
            rews=t.columns[REWARD][1:, None],
            dones=t.columns[TERMINATED][1:, None],
            actions=vectors[1:],
        )
    except OSError as error:  # it does not say which file was being written
        raise OSError(error.errno, f"{folder} cannot be written: {error.strerror}") from error


def _file_name(env_name: str) -> str:
    """An environment's name as part of the name of a file, in one folder, whatever the environment calls itself."""
    plain = "".join(letter if letter.isprintable() and letter != "/" else "-" for letter in env_name)
    return plain.encode(errors="replace")[:LONGEST_NAME].decode(errors="ignore")


def export_minari(trajectories: Iterable[Trajectory], layout: RowLayout, folder: Path) -> int:
    """Write a Minari dataset named after `folder` into it, one episode per trajectory; returns how many.

    Observations and actions are as the environment gave and took them. An episode that does not end in a terminal state
    ends in a truncation, as Minari has it. Its metadata tell env_name, first_time_idx (above 0 for the later pieces of
    a rollout that was cut), cut (its rollout goes on behind it) and weight_version; those of later pieces also tell
    previous_action (as the environment took it) and previous_reward, which led to their first observation.
    Raises ImportError where Minari is not installed, ValueError for trajectories that are not of `layout`, and OSError
    where the disk has no room for another episode.
    """
    try:
        import h5py  # noqa: F401 (Minari looks for it when it first writes)
        import minari
        from minari.dataset.minari_storage import MinariStorage
    except ImportError as error:
        raise ImportError(
            f"--format minari needs Minari, which is not installed ({error}): install amago_ray[offline]"
        ) from error
    data = folder.resolve() / "data"  # where Minari looks for it; a relative path it would join to itself
    data.mkdir(parents=True)
    storage = MinariStorage.new(data, layout.observation_space, layout.action_space, jpeg_encoding=False)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name).strip("-.") or "replay"
    storage.update_metadata({"dataset_id": f"{name}-v0", "minari_version": minari.__version__})
    facts: list[dict[str, Any]] = []
    storage.update_episodes(_episodes(_with_room(trajectories, folder), layout, facts))
    storage.update_episode_metadata(facts)
    return len(facts)


def _with_room(trajectories: Iterable[Trajectory], folder: Path) -> Iterator[Trajectory]:
    """The same, as long as there is room for them. Raises OSError."""
    for i, t in enumerate(trajectories):
        check_room(folder, 2 * t.num_bytes + i * HDF5_EPISODE_BYTES + HDF5_FILE_BYTES)
        yield t


def _episodes(trajectories: Iterable[Trajectory], layout: RowLayout, facts: list[dict[str, Any]]) -> Iterator[Any]:
    """Minari's episodes. facts: grows by the metadata of each."""
    from minari.data_collector import EpisodeBuffer

    for i, t in enumerate(_checked(trajectories, layout)):
        terminated = t.columns[TERMINATED][1:]
        facts.append(facts_of(t, layout))
        yield EpisodeBuffer(
            id=i,
            observations=observations(t.columns, layout.observation_space),
            actions=layout.action.to_env(t.columns[ACTION][1:]),
            rewards=t.columns[REWARD][1:],
            terminations=terminated,
            truncations=(np.arange(t.num_transitions) == t.num_transitions - 1) & ~terminated,
        )


def observations(columns: dict[str, np.ndarray], space: gym.Space) -> Any:
    """The observations of a table in the structure of `space`, every array with a leading axis of T + 1."""
    return _observations(columns, space, "" if isinstance(space, spaces.Dict) else OBSERVATION)


def _observations(columns: dict[str, np.ndarray], space: gym.Space, name: str) -> Any:
    prefix = f"{name}/" if name else ""
    match space:
        case spaces.Dict():
            return {key: _observations(columns, part, f"{prefix}{key}") for key, part in space.spaces.items()}
        case spaces.Tuple():
            return tuple(_observations(columns, part, f"{prefix}{i}") for i, part in enumerate(space.spaces))
    stored = columns[OBS_PREFIX + name]
    values = stored.reshape(len(stored), *(space.shape or ()))
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        values = values.astype(space.dtype) + space.start  # stored counted from 0
    return values.astype(space.dtype)


def _parts(space: gym.Space) -> list[gym.Space]:
    """The spaces of the named arrays of an observation."""
    return list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]


def _checked(trajectories: Iterable[Trajectory], layout: RowLayout) -> Iterator[Trajectory]:
    """The same trajectories. Raises ValueError at one whose columns are not those of `layout`."""
    expected = set(Schema.of(layout.empty(0)).columns)
    for t in trajectories:
        found = set(Schema.of(t.columns).columns)
        if found != expected:
            differing = json.dumps(sorted({column.name for column in found ^ expected}))
            raise ValueError(f"the configuration is of other environments than the stored data: {differing} differ")
        yield t


def action_vectors(stored: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Stored actions (N, ...) as AMAGO's float32 vectors (N, A): one-hots end to end for categories."""
    if not spec.nvec:
        return stored.reshape(len(stored), -1).astype(np.float32)
    categories = stored.reshape(len(stored), -1)
    return np.concatenate([np.eye(n, dtype=np.float32)[categories[:, i]] for i, n in enumerate(spec.nvec)], axis=1)
