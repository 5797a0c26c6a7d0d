"""Who looks on while a run trains: `metrics.jsonl`, where its rows go beside it, and callbacks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from amago_ray.agent import AgentSpec
from amago_ray.atomic_files import is_full, write_atomically
from amago_ray.config import without_gin_calls
from amago_ray.driver.plan import TEST_SEEDS
from amago_ray.driver.ray_metrics import RayMetricsSink
from amago_ray.driver.ring import Ring
from amago_ray.driver.schedule import EpochResult
from amago_ray.envs.makers import MakeEnv
from amago_ray.messages import Weights
from amago_ray.replay.datasets.dataset import mixture_of
from amago_ray.rollout.evaluate import record_gif
from amago_ray.run_directory import RunDirectory
from amago_ray.settings import ExperimentSettings
from amago_ray.watch.callbacks import Callback, RunView, check_hooks
from amago_ray.watch.metrics import AVERAGE_RETURN, MetricsLog, Progress
from amago_ray.watch.sinks import MetricsSink, TensorboardSink, WandbOptions, WandbSink, check_tensorboard


def make_callbacks(settings: ExperimentSettings) -> list[Callback]:
    """The run's callbacks. Raises ValueError or ImportError, before any process starts, for what cannot work."""
    if settings.log_to_tensorboard:
        check_tensorboard()
    callbacks = [_made(each) if isinstance(each, type) else each for each in settings.callbacks]
    for callback in callbacks:
        assert settings.make_val_env is not None, "an experiment fills it in"
        try:
            check_hooks(callback)
            callback.check(settings.make_val_env)
        except ValueError as error:
            raise ValueError(f"Experiment.callbacks: {callback!r}: {error}") from error
    return callbacks


def _made(kind: type[Callback]) -> Callback:
    try:
        return kind()
    except TypeError as error:  # it lacks arguments, most often
        raise ValueError(f"Experiment.callbacks: {kind.__name__}: {without_gin_calls(str(error))}") from error


def sinks(settings: ExperimentSettings, run_dir: Path, state: Mapping[str, Any]) -> list[MetricsSink]:
    """Where rows go beside `metrics.jsonl`. state: of the run that this one continues, or empty."""
    found: list[MetricsSink] = []
    if settings.log_to_wandb:
        found.append(WandbSink(wandb_options(settings, state.get("wandb_run_id")), run_dir))
    if settings.log_to_tensorboard:
        collects = settings.train_timesteps_per_epoch > 0 and mixture_of(settings.dataset).learns_from_replay
        found.append(TensorboardSink(run_dir, "total_frames" if collects else "gradient_steps"))
    if settings.log_to_ray:
        found.append(RayMetricsSink(settings.run_name, run_dir))
    return found


def wandb_options(settings: ExperimentSettings, run_id: str | None) -> WandbOptions:
    """Where a run is logged on wandb. run_id: of the run that it continues."""
    return WandbOptions(
        project=settings.wandb_project or os.environ.get("AMAGO_WANDB_PROJECT", "amago_ray"),
        entity=settings.wandb_entity or os.environ.get("AMAGO_WANDB_ENTITY"),
        group=settings.wandb_group_name,
        name=settings.run_name,
        mode=settings.wandb_mode,
        run_id=run_id,
    )


class LiveView(RunView):
    """The view of a run that is going on. evaluate: `Experiment.evaluate_test`."""

    def __init__(
        self,
        settings: ExperimentSettings,
        directory: RunDirectory,
        agent_spec: AgentSpec,
        ring: Ring,
        metrics: MetricsLog,
        evaluate: Callable[..., dict[str, float]],
    ):
        self.directory = directory
        self._settings, self._agent_spec, self._ring = settings, agent_spec, ring
        self._metrics, self._evaluate = metrics, evaluate
        self._stop_reason: str | None = None
        self.count_epochs()

    def count_epochs(self) -> None:
        """Say how many there are to be, which may be others by now."""
        self.epochs = self._settings.epochs

    @property
    def progress(self) -> Progress:
        return replace(self._ring.progress, frames_by_env=dict(self._ring.progress.frames_by_env))

    @property
    def metrics(self) -> Mapping[str, float]:
        return dict(self._metrics.newest)

    def evaluate(self, make_env: MakeEnv, **options: Any) -> dict[str, float]:
        return self._evaluate(make_env, **options)

    def policy(self) -> tuple[AgentSpec, Weights]:
        return self._agent_spec, self._ring.weights.result(self._settings.call_timeout_s)

    def save_policy(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, self._ring.learners.save_policy)

    def record_gif(self, path: Path) -> None:
        x = self._settings
        assert x.make_val_env is not None, "an experiment fills it in"
        record_gif(*self.policy(), x.make_val_env, path, x.seed + TEST_SEEDS, x.sample_actions_val)

    def log_video(self, name: str, path: Path) -> None:
        self._metrics.log_video(name, path, self._ring.progress)

    def stop(self, reason: str) -> None:
        self._stop_reason = self._stop_reason or reason

    @property
    def stop_reason(self) -> str | None:
        return self._stop_reason

    def go_on(self) -> None:
        """Forget that the run was stopped."""
        self._stop_reason = None


class Watching:
    """Writes down what an epoch did and calls back: what `Experiment.learn` tells of each epoch."""

    def __init__(
        self,
        metrics: MetricsLog,
        view: LiveView,
        callbacks: Sequence[Callback],
        progress: Progress,
        say: Callable[[str], None],
    ):
        self._metrics, self._view, self._callbacks, self._progress = metrics, view, callbacks, progress
        self._say = say
        self._begun = self._rows_wait = False

    @property
    def newest(self) -> dict[str, float]:
        """The last value of everything that was logged since the start."""
        return dict(self._metrics.newest)

    @property
    def to_resume(self) -> dict[str, Any]:
        """What a training state keeps of where the rows go."""
        return self._metrics.to_resume

    @property
    def stop_reason(self) -> str | None:
        """Why a callback ends the run, None where none does."""
        return self._view.stop_reason

    def begin(self) -> None:
        """Training begins, or goes on where it was not ended."""
        self._view.count_epochs()
        if not self._begun:
            self._begun = True
            self._view.go_on()
            self.call("on_start")

    def epoch(self, result: EpochResult) -> dict[str, float]:
        """Count, log and tell what the epoch did; returns what the display shows of it."""
        metrics, progress = result.metrics(), self._progress
        for section, values in metrics.items():
            if section == "collect" and result.collected is not None:
                progress.add_frames(result.collected.frames_by_env)
            if section == "train" and result.learned is not None:
                progress.gradient_steps = result.learned.total_updates
            self._log(section, values)
        if result.collected is not None:
            self.call("after_collection")
        if result.learned is not None:
            self.call("after_learning")
        return {
            "return": metrics.get("collect", {}).get(AVERAGE_RETURN, float("nan")),
            "loss": metrics.get("train", {}).get("Total Loss", float("nan")),
            "frames": progress.total_frames,
            "updates": progress.gradient_steps,
        }

    def validation(self, summary: Mapping[str, float]) -> dict[str, float]:
        """Log and tell what a validation gave; returns what the display shows of it."""
        self._log("val", summary)
        self.call("after_validation")
        return {"val_return": summary.get(AVERAGE_RETURN, float("nan"))}

    def _log(self, section: str, values: Mapping[str, float]) -> None:
        waits = self._metrics.log(section, values, self._progress)
        if waits is not None and not self._rows_wait:
            self._say(f"what an epoch has come to is written when there is room: {waits}")
        self._rows_wait = waits is not None

    def settle(self) -> None:
        """Write what waits for room on the disk. Raises OSError where there is none: nothing of that may be lost."""
        self._metrics.settle()

    def end(self) -> None:
        """All epochs are done, or the run was stopped, which its folder says then."""
        if self.stop_reason is not None:
            self._view.directory.record_stop(self._progress.epoch, self.stop_reason)
        self.call("on_end")
        self._begun = False

    def call(self, place: str) -> None:
        """Call all callbacks at a place of the epoch, in their order. An exception of one says whose it is."""
        for callback in self._callbacks:
            try:
                with _named(callback, place, self._progress.epoch):
                    getattr(callback, place)(self._view)
            except OSError as error:
                if not is_full(error):
                    raise
                self._say(f"the callback {callback!r} has no room for what it writes in {place}: {error}")

    def rewind(self, epoch: int) -> None:
        """Drop what was logged of later epochs."""
        self._metrics.rewind(epoch)

    def close(self) -> None:
        """Close the log and where it goes."""
        self._metrics.close()


@contextmanager
def _named(callback: Callback, place: str, epoch: int) -> Iterator[None]:
    """Exceptions within say, below their traceback, which callback raised them, and when."""
    try:
        yield
    except Exception as error:
        when = f"after epoch {epoch + 1}" if epoch >= 0 else "before the first epoch"
        error.add_note(f"raised by the callback {callback!r} in {place}, {when}")
        raise


def watch(
    settings: ExperimentSettings,
    directory: RunDirectory,
    agent_spec: AgentSpec,
    ring: Ring,
    callbacks: Sequence[Callback],
    evaluate: Callable[..., dict[str, float]],
    state: Mapping[str, Any],
) -> Watching:
    """Open the log of a run, and everything else that looks on.

    evaluate: `Experiment.evaluate_test`. state: of the run that this one continues, whose rows of later epochs are
    dropped; empty where it begins. Raises ValueError where wandb cannot start.
    """
    opened = sinks(settings, directory.root, state)
    metrics = MetricsLog(directory.root, resume=bool(state), sinks=opened, say=ring.say)
    if state:
        metrics.rewind(ring.progress.epoch)
    view = LiveView(settings, directory, agent_spec, ring, metrics, evaluate)
    return Watching(metrics, view, callbacks, ring.progress, ring.say)
