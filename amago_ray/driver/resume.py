"""Whether a run may begin in its folder, or go on there, and what from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal

from amago_ray import config
from amago_ray.agent import AgentSpec
from amago_ray.agent.flat_weights import first_difference, weight_shapes
from amago_ray.agent.value_units import check_value_units, value_units
from amago_ray.atomic_files import read_json, write_atomically
from amago_ray.driver.saved_state import check_training_state
from amago_ray.driver.watching import Watching
from amago_ray.envs.saved_spaces import write_spaces
from amago_ray.replay.datasets import RowLayout
from amago_ray.replay.datasets.recorded_spaces import check_meaning, meaning, record_spaces
from amago_ray.replay.storage import dealing
from amago_ray.replay.storage.config import StoreConfig
from amago_ray.replay.storage.folders import shard_folders
from amago_ray.run_directory import RUN_STATE, RunDirectory
from amago_ray.settings import ExperimentSettings, replay_folder
from amago_ray.watch.metrics import METRICS_FILE, Progress, read_metrics

Resume = bool | Literal["auto"]


def check_same_weights(saved: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> None:
    """Raises ValueError, naming a weight, when a saved run was of another architecture than is configured now."""
    if other := first_difference(saved, now):
        raise ValueError(
            f"resume: the configuration no longer matches the saved weights: {other}; resume with the run's own "
            "config.txt, or choose another run_name"
        )


def _deal_to_shards(settings: ExperimentSettings, state: dict[str, Any], say: Callable[[str], None]) -> None:
    """Where a run goes on with another number of shards, deal out what it has stored; `state` then says where it is.

    A folder that only the shards' own machines see is left to them. Raises ValueError where some shards are not there,
    StorageError.
    """
    folder, wanted, epoch = replay_folder(settings), settings.num_replay_shards, state["progress"]["epoch"]
    dealing.finish(folder)
    if not shard_folders(folder) and len(state.get("marks", ())) != wanted:
        state.pop("marks", None)  # nothing is here that could be dealt out, nor taken back to them
    if "marks" not in state or not shard_folders(folder):
        return
    state["marks"] = marks = dealing.marks_since(folder, epoch, state["marks"])
    if len(marks) == wanted:
        return
    if len(marks) != len(shard_folders(folder)):
        raise ValueError(
            f"Experiment.num_replay_shards={wanted}: the run was saved with {len(marks)} replay shards, and {folder} "
            f"holds {len(shard_folders(folder))}; resume it with num_replay_shards={len(marks)}"
        )
    num = sum(mark["end"] - mark["first"] for mark in marks.values())
    say(f"dealing {num:,} trajectories of {len(marks)} replay shards out over {wanted}")
    config = StoreConfig(compressed=tuple(settings.replay_compression))
    state["marks"] = dealing.deal_anew(folder, wanted, marks, config, tell=lambda damage: say(f"replay: {damage}"))
    dealing.put_in_place(folder, epoch, state["marks"])


def is_begun(settings: ExperimentSettings, directory: RunDirectory) -> bool:
    """Whether a run of this name has trained, or at least stored data, before."""
    return directory.exists() or any(replay_folder(settings).glob("shard_*/*.segment"))


def _check_nothing_is_lost(directory: RunDirectory) -> None:
    """Raises ValueError where a folder without a training state holds more than a run that was killed before its first.

    That one is begun after the first epoch, and others may end while it is written.
    """
    policies = directory.policy_epochs()
    rows = read_metrics(directory.root) if (directory.root / METRICS_FILE).is_file() else []
    finished = max((int(row["epoch"]) + 1 for row in rows), default=0)
    first_under_way = directory.is_saving(0) and policies in ([], [0])
    if not first_under_way and (finished > 1 or policies):
        raise ValueError(
            f"resume: {directory.root} holds {finished} finished epochs and {len(policies)} policies, and no training "
            f"state to go on from in {directory.training_states}: put one back, choose another run_name, or begin anew "
            "over what is there (--overwrite, or start(overwrite=True) in Python)"
        )


def state_to_resume(
    settings: ExperimentSettings,
    directory: RunDirectory,
    agent_spec: AgentSpec,
    layout: RowLayout,
    resume: Resume,
    overwrite: bool,
) -> dict[str, Any]:
    """The state to resume from, empty where the run starts anew.

    A run that ended before its first training state was complete begins anew: nothing was learned that is kept. A
    folder that was copied or renamed goes on from what it holds. Raises ValueError where it may not: the folder cannot
    be written, holds a run already, or none that fits.
    """
    if resume and overwrite:
        raise ValueError("start: resume goes on with a run and overwrite begins it anew: leave out either")
    directory.check_writable()
    if resume not in (True, False, "auto"):
        raise ValueError(f"resume={resume!r}: use True, False or 'auto', which begins where there is nothing to resume")
    name = directory.name_of_states() if resume else directory.run_name
    saved = directory.saved_epochs(name)
    if resume is True and not is_begun(settings, directory):
        raise ValueError(
            f"resume: {directory.root} holds no run; "
            "check run_name and ckpt_base_dir, start without resume, or use resume='auto'"
        )
    if is_begun(settings, directory) and not resume and not overwrite:
        raise ValueError(
            f"{directory.root} already holds a run: resume it (--resume, or start(resume=True) in Python), overwrite "
            "it (--overwrite, start(overwrite=True)), or choose another run_name"
        )
    if not resume:
        return {}
    if not saved:
        _check_nothing_is_lost(directory)
        return {}
    check_training_state(directory.training_state(saved[-1], name))
    state = read_json(directory.training_state(saved[-1], name) / RUN_STATE)
    if name != directory.run_name:
        state["wandb_run_id"] = None  # the original may be there yet
    done = state["progress"]["epoch"] + 1
    if done > settings.epochs:
        raise ValueError(
            f"resume: {directory.root} has {done} epochs already, and Experiment.epochs={settings.epochs} asks for "
            "no more: raise it, or evaluate what was learned (amago-ray evaluate)"
        )
    agent = agent_spec.build()
    check_value_units(state.get("values", {}), value_units(agent))
    check_same_weights(state["weight_shapes"], weight_shapes(agent.state_dict()))
    check_meaning(state.get("spaces"), layout, "resume: the environments are other ones than before")
    return state


def open_folder(
    settings: ExperimentSettings,
    directory: RunDirectory,
    layout: RowLayout,
    state: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Make the run's folder, in place of an earlier run's unless this one goes on with it, from `state`.

    Raises ValueError, naming the setting, where it cannot be written. Nothing is left then of a run that would begin.
    """
    if not state and is_begun(settings, directory):
        directory.remove()
        shutil.rmtree(replay_folder(settings), ignore_errors=True)
    try:
        if state and (former := directory.take_over_states()):
            say(f"the training states of {former!r}, which lie here, are taken over by {directory.run_name!r}")
        directory.stopped.unlink(missing_ok=True)
        create_folder(settings, directory, layout)
        if settings.replay_durable:
            record_spaces(replay_folder(settings), layout)
    except OSError as error:
        if not state:
            directory.remove()
        raise directory.not_writable(error) from error
    if state:
        _deal_to_shards(settings, state, say)


def create_folder(settings: ExperimentSettings, directory: RunDirectory, layout: RowLayout) -> None:
    """Make the run's folder, with the configuration that runs the same again, and the spaces of its policy."""
    directory.create()
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    text = config.record("Experiment", values | {"ckpt_base_dir": str(settings.ckpt_base_dir)})
    write_atomically(directory.config, lambda path: path.write_text(text, encoding="utf-8"))
    write_spaces(directory.spaces, layout.observation_space, layout.action_space)


def what_to_resume(progress: Progress, agent_spec: AgentSpec, layout: RowLayout, watching: Watching) -> dict[str, Any]:
    """What a training state says of the run, beside what the ring and the learners say of themselves.

    watching: keeps where the rows of `metrics.jsonl` go.
    """
    agent = agent_spec.build()
    return {
        **watching.to_resume,
        "progress": progress.to_dict(),
        "weight_shapes": weight_shapes(agent.state_dict()),
        "values": value_units(agent),
        "spaces": meaning(layout),
    }
