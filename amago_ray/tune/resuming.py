"""Whether a sweep may go on: it holds one that was begun, with the same settings and the same experiment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import gin
from ray import tune

from amago_ray import config
from amago_ray.config.text import without_secrets
from amago_ray.settings import ExperimentSettings
from amago_ray.tune.results import SWEEP_FILE, SweepResults
from amago_ray.tune.sweep import OF_THE_SWEEP, Sweep

TUNE_FOLDER = "tune"  # of a sweep, where Ray Tune keeps its own files
# Settings of an experiment that say where it runs, where it lies and who is told: no trial is another one for them.
MAY_CHANGE = (
    *OF_THE_SWEEP, "replay_dir", "preemption_grace_s", "call_timeout_s", "num_rollout_workers", "learner_device",
    "rollout_device", "learner_cpus", "learner_nodes", "rollout_nodes", "log_to_wandb", "wandb_project", "wandb_entity",
    "wandb_group_name", "wandb_mode", "log_to_tensorboard", "log_to_ray",
)  # fmt: skip


def check_resumable(folder: Path, sweep: Sweep, experiment: Mapping[str, str]) -> None:
    """Raises ValueError where `folder` holds no sweep that can go on, or one that was begun with other settings.

    Tune goes on with the settings that a sweep was begun with, whatever it is told; its trials would be of another
    experiment.
    experiment: see `settings_of`.
    """
    if not tune.Tuner.can_restore(str(folder / TUNE_FOLDER)):
        raise ValueError(f"--resume: {folder} holds no sweep that could go on; leave --resume out to start one")
    begun = SweepResults.read(folder) if (folder / SWEEP_FILE).is_file() else None
    if begun is None:
        return
    found = [*_other_settings(begun.settings or {}, sweep)]
    if begun.experiment is not None:  # as it is of a version that did not keep it
        found += _other_experiment(begun.experiment, experiment)
    if found:
        raise ValueError(
            f"--resume: {folder} was begun with {'; with '.join(found)}: give it what it was begun with, or begin "
            "another sweep with another --name"
        )


def _other_settings(begun: Mapping[str, Any], sweep: Sweep) -> Iterator[str]:
    for name, value in plain_settings(sweep).items():
        if name in begun and begun[name] != value:
            yield f"{name}={begun[name]!r}, and now it is {value!r}"


def _other_experiment(begun: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*begun, *now}):
        of_one_version = name.startswith("Experiment.") and (name not in begun or name not in now)
        if begun.get(name) != now.get(name) and not of_one_version:
            before = f"{name}={begun[name]}" if name in begun else f"{name} not set"
            yield f"{before}, and now it is {now.get(name, 'not set')}"


def plain_settings(sweep: Sweep) -> dict[str, Any]:
    """The settings of a sweep as `sweep.json` keeps them, by the names that messages call them."""
    return {f"Sweep.{name}": value for name, value in asdict(sweep).items()}


def settings_of(experiment: ExperimentSettings, varied: Mapping[str, Any]) -> dict[str, str]:
    """What all trials of a sweep have in common, as text: every setting of the experiment, and what else gin holds.

    Left out are what may change when a sweep goes on, what it varies itself, what has no text, and secrets.
    """
    found = dict(_bound())
    for each in fields(ExperimentSettings):
        text = config.literal(getattr(experiment, each.name))
        if text is not None:
            found[f"Experiment.{each.name}"] = text
    left_out = {f"Experiment.{name}" for name in MAY_CHANGE} | {_short(name) for name in varied}
    written = {name: without_secrets(f"{name} = {text}") for name, text in found.items() if name not in left_out}
    return {n: line.removeprefix(f"{n} = ") for n, line in sorted(written.items()) if line.startswith(f"{n} = ")}


def _bound() -> Iterator[tuple[str, str]]:
    """Everything that is bound in gin but for the sweep itself, as in `config.snapshot`."""
    for (scope, selector), arguments in gin.config._CONFIG.items():  # gin offers no public list
        owner = selector.rpartition(".")[2]
        for argument, value in arguments.items():
            text = config.literal(value)
            if text is not None and owner != "Sweep":
                yield (scope if owner == "macro" else _short(f"{scope}/{selector}.{argument}")), text


def _short(name: str) -> str:
    """The name of a setting without the module of its owner."""
    scope, _, setting = name.rpartition("/")
    short = ".".join(setting.split(".")[-2:])
    return f"{scope}/{short}" if scope else short


def number_of_trials(sweep: Sweep, space: Mapping[str, Any]) -> int:
    """How many trials a sweep has when all of them have begun."""
    grids = (len(values["grid_search"]) for values in space.values() if isinstance(values, dict))
    return sweep.num_samples * math.prod(grids)
