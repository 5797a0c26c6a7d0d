"""Whether a run may begin in its folder, or go on there, and what from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from amago_ray.agent import AgentSpec
from amago_ray.replay.storage.folders import shard_folders
from amago_ray.run_directory import RunDirectory
from amago_ray.settings import ExperimentSettings, replay_folder


def weight_shapes(agent: nn.Module) -> dict[str, list[int]]:
    """Name -> shape of every weight, to be kept with a training state."""
    return {name: list(value.shape) for name, value in agent.state_dict().items()}


def check_same_weights(saved: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> None:
    """Raises ValueError, naming a weight, when a saved run was of another architecture than is configured now."""
    for name in sorted(saved.keys() | now.keys()):
        if saved.get(name) != now.get(name):
            before, after = (tuple(x[name]) if name in x else "absent" for x in (saved, now))
            raise ValueError(
                f"resume: the configuration no longer matches the saved weights: {name} was {before}, now {after}; "
                "resume with the run's own config.txt, or choose another run_name"
            )


def check_same_shards(folder: Path, num_shards: int) -> None:
    """Raises ValueError when a run to be resumed has stored its data in another number of replay shards."""
    found = len(shard_folders(folder))
    if found not in (0, num_shards):
        raise ValueError(
            f"Experiment.num_replay_shards={num_shards}: this run has stored its data in {found} shards in {folder}; "
            f"resume it with num_replay_shards={found}"
        )


def is_begun(settings: ExperimentSettings, directory: RunDirectory) -> bool:
    """Whether a run of this name has trained, or at least stored data, before."""
    return directory.exists() or any(replay_folder(settings).glob("shard_*/*.segment"))


def state_to_resume(
    settings: ExperimentSettings, directory: RunDirectory, agent_spec: AgentSpec, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """The state to resume from, empty where the run starts anew.

    Raises ValueError where it may not: the folder cannot be written, holds a run already, or none that fits.
    """
    directory.check_writable()
    saved = directory.saved_epochs()
    if resume and not saved:
        raise ValueError(
            f"resume: {directory.root} holds no complete training state; "
            "check run_name and ckpt_base_dir, or start without resume"
        )
    if is_begun(settings, directory) and not resume and not overwrite:
        raise ValueError(
            f"{directory.root} already holds a run: resume it (--resume), overwrite it (--overwrite), "
            "or choose another run_name"
        )
    state = directory.load_run_state(saved[-1]) if resume else {}
    if state:
        check_same_weights(state["weight_shapes"], weight_shapes(agent_spec.build()))
        check_same_shards(replay_folder(settings), settings.num_replay_shards)
    return state


def clear_folder(settings: ExperimentSettings, directory: RunDirectory) -> None:
    """Remove an earlier run of this name, with its data."""
    if is_begun(settings, directory):
        directory.remove()
        shutil.rmtree(replay_folder(settings), ignore_errors=True)
