"""Callbacks: what is done at the places of an epoch, by whoever looks on. `Experiment(callbacks=[...])` takes them."""

from __future__ import annotations

import inspect
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gin

from amago_ray.agent.spec import AgentSpec
from amago_ray.atomic_files import read_json, write_atomically
from amago_ray.config import nearest
from amago_ray.envs.makers import MakeEnv
from amago_ray.messages import Weights
from amago_ray.run_directory import RunDirectory
from amago_ray.watch.metrics import AVERAGE_RETURN, Progress

SHORT_NAMES = {f"{section}/return": f"{section}/{AVERAGE_RETURN}" for section in ("val", "collect")}
PLACES = ("on_", "after_", "before_")  # how the names of methods begin that a run calls, here or in other packages
PROGRESS_FILE = "progress.json"


class RunView(ABC):
    """What a callback sees of a run, and the one thing that it can do to it: `stop`.

    epochs: how many there are to be. directory: where the run keeps what.
    """

    epochs: int
    directory: RunDirectory

    @property
    @abstractmethod
    def progress(self) -> Progress:
        """A copy of the counters: finished epochs, frames, updates, seconds."""

    @property
    def epoch(self) -> int:
        """The newest finished epoch, counted from 0; -1 before the first."""
        return self.progress.epoch

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, float]:
        """The newest value of everything logged since the start, by its name in `metrics.jsonl`; NaN if not finite."""

    @abstractmethod
    def evaluate(self, make_env: MakeEnv, **options: Any) -> dict[str, float]:
        """Results of the policy as it is, in environments of its own. options: those of `Experiment.evaluate_test`."""

    @abstractmethod
    def policy(self) -> tuple[AgentSpec, Weights]:
        """How to build the agent, and the weights that act now: what `rollout.evaluate.evaluate_policy` takes."""

    @abstractmethod
    def save_policy(self, path: Path) -> None:
        """Write the weights as they are, as a `policy.pt` that is there whole or not at all."""

    @abstractmethod
    def record_gif(self, path: Path) -> None:
        """Draw one rollout in a validation environment; the same start each time. Raises ValueError if none renders."""

    @abstractmethod
    def log_video(self, name: str, path: Path) -> None:
        """Show an animated GIF in TensorBoard and wandb, whichever is on."""

    @abstractmethod
    def stop(self, reason: str) -> None:
        """End the run when all callbacks of this place have been called and the epoch is done.

        Policy and training state are saved as at any end, and `--resume` would go on from there.
        """

    @property
    @abstractmethod
    def stop_reason(self) -> str | None:
        """What was said to `stop`, the first time; None for a run that goes on or ends by itself."""


class Callback:
    """Something that looks on. Override what is needed; a method is called with the run's view, in this order:

        on_start                                        processes are up; a resumed run is where it was saved
            after_collection                            of an epoch that collected
            after_learning                              of an epoch that learned
            after_validation                            of an epoch that ends with a validation
            on_checkpoint                               another training state is complete
            after_epoch                                 all of the epoch is done
        on_end                                          the last epoch is done, or the run was stopped

    Every schedule collects and learns within one step of the driver, at the same time or one after the other. So
    `after_collection` and `after_learning` are called one after the other when both are done, counted and logged.
    Under "overlap" and "continuous" data of the next epoch are on their way by then.

    Training states are written while the run goes on: `on_checkpoint` comes with the epoch in which one is complete,
    not always the one that it is of, which is `view.directory.saved_epochs()[-1]`; all have come before `on_end`.

    Callbacks run in the driver's process, in the order of the list, and the run waits for them. An exception ends the
    run. `on_start` is called again when another experiment is given the same object.
    """

    def check(self, make_val_env: MakeEnv) -> None:
        """Called before any process starts. Raises ValueError for what cannot work in these environments."""

    def on_start(self, view: RunView) -> None: ...

    def after_collection(self, view: RunView) -> None: ...

    def after_learning(self, view: RunView) -> None: ...

    def after_validation(self, view: RunView) -> None: ...

    def on_checkpoint(self, view: RunView) -> None: ...

    def after_epoch(self, view: RunView) -> None: ...

    def on_end(self, view: RunView) -> None: ...


def check_hooks(callback: Callback) -> None:
    """Raises ValueError for a method that looks like one that is called with the view, and is none of them.

    Likewise for one that is, and does not take what it is called with.
    """
    hooks = [name for name in vars(Callback) if name.startswith(PLACES)]
    for name, argument in {"check": "make_val_env", **dict.fromkeys(hooks, "view")}.items():
        if not _takes_one(getattr(callback, name)):
            raise ValueError(f"its method {name!r} must take one argument: def {name}(self, {argument})")
    for name in dir(type(callback)):
        if name.startswith(PLACES) and name not in hooks and callable(getattr(type(callback), name)):
            raise ValueError(f"its method {name!r} would never be called{nearest(name, hooks)}")


def _takes_one(method: Any) -> bool:
    """Whether it can be called with one argument by its place, as far as Python can tell."""
    try:
        inspect.signature(method).bind(None)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return callable(method)
    return True


def newest(metrics: Mapping[str, float], metric: str) -> float | None:
    """The newest finite value of a metric by its name, or by "val/return" or "collect/return"; None for none yet.

    Raises ValueError, with the nearest name, where its section has reported and will never report it.
    """
    name = SHORT_NAMES.get(metric, metric)
    if name in metrics:
        return metrics[name] if math.isfinite(metrics[name]) else None
    section = name.partition("/")[0]
    known = [other for other in metrics if other.startswith(f"{section}/")]
    # What belongs to an environment comes when that one has finished a rollout, and so do all returns.
    late = " in " in name or name == f"{section}/{AVERAGE_RETURN}"
    if known and not late and (f"{section}/{AVERAGE_RETURN}" in known or section not in ("val", "collect")):
        known += [short for short in SHORT_NAMES if short.startswith(f"{section}/")]
        raise ValueError(f"metric={metric!r}: nothing of this name is logged{nearest(metric, known)}")
    return None


@gin.configurable
@dataclass
class StopAtReturn(Callback):
    """Stops the run when a metric is at `threshold` or above.

    metric: a name in `metrics.jsonl`; "val/return" and "collect/return" are the average returns over all environments.
    """

    threshold: float
    metric: str = "val/return"

    def after_collection(self, view: RunView) -> None:
        self._look(view)

    def after_learning(self, view: RunView) -> None:
        self._look(view)

    def after_validation(self, view: RunView) -> None:
        self._look(view)

    def _look(self, view: RunView) -> None:
        value = newest(view.metrics, self.metric)
        if value is not None and value >= self.threshold:
            view.stop(f"{self.metric} = {value:g} has reached {self.threshold:g}")


@gin.configurable
@dataclass
class KeepBestPolicy(Callback):
    """Keeps the weights with the highest value of a metric so far in `ckpts/best/policy.pt`, looked at when validated.

    `policy.json` beside it says which epoch's they are, and the value. A resumed run goes on from what is there.
    """

    metric: str = "val/return"
    best: float = field(default=-math.inf, init=False, repr=False)

    def on_start(self, view: RunView) -> None:
        about = view.directory.best_policy.with_suffix(".json")
        kept = read_json(about, "metric", "value") if about.is_file() else {}
        self.best = kept["value"] if kept.get("metric") == self.metric else -math.inf

    def after_validation(self, view: RunView) -> None:
        value = newest(view.metrics, self.metric)
        if value is None or value <= self.best:
            return
        path, self.best = view.directory.best_policy, value
        view.save_policy(path)
        about = json.dumps({"epoch": view.epoch, "metric": self.metric, "value": value})
        write_atomically(path.with_suffix(".json"), lambda file: file.write_text(about + "\n"))


@gin.configurable
@dataclass
class ValidationVideo(Callback):
    """Draws a rollout with the first validation of every `every` epochs: `videos/epoch_{n}.gif`, TensorBoard, wandb."""

    every: int = 20
    _last: int = field(default=-1, init=False, repr=False)  # epoch that was looked at last

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"ValidationVideo.every={self.every}: it must be 1 or more epochs")

    def check(self, make_val_env: MakeEnv) -> None:
        from amago_ray.rollout.evaluate import check_renderable

        check_renderable(make_val_env)

    def on_start(self, view: RunView) -> None:
        self._last = view.epoch

    def after_validation(self, view: RunView) -> None:
        due = view.epoch // self.every > self._last // self.every
        self._last = view.epoch
        if due:
            path = view.directory.root / "videos" / f"epoch_{view.epoch}.gif"
            view.record_gif(path)
            view.log_video("videos/validation", path)


@gin.configurable
@dataclass
class JobProgress(Callback):
    """How far the run is, for job schedulers: `progress.json` in the run's folder, whole at any time.

    One JSON object: "run", "state" ("running", "finished" or "stopped"), "reason" of a stop, "epoch" (finished ones),
    "epochs", "frames", "updates", "wall_s", "collect_return" and "val_return" (null while there is none), and "time"
    (seconds since 1970). A run that is killed leaves it at "running".
    stdout: print it as a line, too.
    """

    stdout: bool = False

    def on_start(self, view: RunView) -> None:
        self._write(view, "running")

    def after_epoch(self, view: RunView) -> None:
        self._write(view, "running")

    def on_end(self, view: RunView) -> None:
        self._write(view, "finished" if view.stop_reason is None else "stopped")

    def _write(self, view: RunView, state: str) -> None:
        progress = view.progress
        row = {
            "run": view.directory.run_name,
            "state": state,
            "reason": view.stop_reason if state == "stopped" else None,
            "epoch": progress.epoch + 1,
            "epochs": view.epochs,
            "frames": progress.total_frames,
            "updates": progress.gradient_steps,
            "wall_s": round(progress.wall_s, 3),
            "collect_return": newest(view.metrics, "collect/return"),
            "val_return": newest(view.metrics, "val/return"),
            "time": round(time.time(), 3),
        }
        line = json.dumps(row)
        write_atomically(view.directory.root / PROGRESS_FILE, lambda path: path.write_text(line + "\n"))
        if self.stdout:
            print(line, flush=True)
