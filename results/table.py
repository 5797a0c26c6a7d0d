"""What is measured: the tasks of tasks.toml, and the runs that were recorded of them."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent
ROOT = RESULTS.parent
TASKS = RESULTS / "tasks.toml"


@dataclass(frozen=True)
class Published:
    """A number that somebody else reports.

    by: which method. frames: as a reader should see it. url: where it stands.
    """

    value: float
    by: str
    frames: str
    url: str

    @property
    def digits(self) -> int:
        """Decimals that the number is given to; one at least, so that 0.8 is not a success rate of 1."""
        return max(len(repr(self.value).partition(".")[2].rstrip("0")), 1)


@dataclass(frozen=True)
class Task:
    """One row of the table, and how it is run.

    configs: gin files, later ones win. set: gin bindings on top of them. frames: of training, at most.
    episodes: of the test, without exploration; greedy: with the policy's mode. note: what a reader should know.
    run: the name of the training that it has in common with other tasks; its own by default. env: name of the one
    environment whose rollouts count; all by default. metric: what `env` tells of every rollout ("AMAGO_LOG_METRIC ..."
    in its info) and is published of it, in place of the return.
    """

    name: str
    title: str
    configs: tuple[str, ...]
    frames: int
    published: Published
    set: tuple[str, ...] = ()
    episodes: int = 200
    greedy: bool = False
    note: str = ""
    run: str = ""
    env: str = ""
    metric: str = ""

    def arguments(self, seed: int) -> list[str]:
        """Of `results.in_process` or `amago-ray`, for one run."""
        bindings = [*self.set, f"Experiment.run_name = '{self.run_name(seed)}'", f"Experiment.seed = {seed}"]
        options = [word for config in self.configs for word in ("--config", config)]
        return [*options, *(word for binding in bindings for word in ("--set", binding))]

    def command(self, seed: int) -> str:
        return shlex.join(["python", "-m", "results.in_process", *self.arguments(seed)])

    def run_name(self, seed: int) -> str:
        return f"{self.run or self.name}_seed_{seed}"


@dataclass(frozen=True)
class Run:
    """One recorded run.

    returns: of the test's rollouts, or what the task's metric is of each. curve: "frames", "wall_s" and "return", or
    that metric, of validation, (N,) each.
    command, evaluation: what makes the policy, and what plays the same rollouts of the test again.
    """

    task: str
    seed: int
    command: str
    evaluation: str
    returns: tuple[float, ...]
    frames: int
    updates: int
    wall_s: float
    curve: Mapping[str, list[float]]
    revision: str
    date: str
    machine: Mapping[str, Any]

    @property
    def score(self) -> float:
        """Mean of the test."""
        return sum(self.returns) / len(self.returns)

    @property
    def path(self) -> Path:
        return RESULTS / self.task / f"seed_{self.seed}.json"


def tasks(file: Path = TASKS) -> dict[str, Task]:
    """Every task by its name, in the file's order. Raises TypeError for a key that is none."""
    with open(file, "rb") as opened:
        entries = tomllib.load(opened)
    return {name: _task(name, **entry) for name, entry in entries.items()}


def trained_by(name: str, known: Mapping[str, Task]) -> list[Task]:
    """The tasks that one training serves: what is called `name`, or runs under it."""
    return [task for task in known.values() if name in (task.name, task.run)]


def _task(name: str, published: dict[str, Any], **entry: Any) -> Task:
    entry = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Task(name, published=Published(float(published.pop("value")), **published), **entry)


def runs(task: str, folder: Path = RESULTS) -> list[Run]:
    """The recorded runs of a task, by seed."""
    found = [Run(**json.loads(path.read_text(encoding="utf-8"))) for path in (folder / task).glob("seed_*.json")]
    return sorted(found, key=lambda run: run.seed)
