"""Where the rows of `metrics.jsonl` go beside it: wandb, TensorBoard. One small interface for both."""

from __future__ import annotations

import errno
import importlib.util
import io
import itertools
import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from wandb import Run

Row = Mapping[str, float]
TENSORBOARD_FOLDER = "tensorboard"
FIRST_AXES = ("epoch", "total_frames", "gradient_steps", "wall_s", "frames/*")


class MetricsSink(ABC):
    """A second place for what `MetricsLog` writes down, under the same names.

    A row is flat: the axes ("epoch", "total_frames", "gradient_steps", "wall_s", "frames/<env>") and what is measured
    ("<section>/<name>"), finite numbers all of them. A row that `log` has raised for comes again: see `Delivery`.
    """

    name = "a metrics sink"  # what the user is told of it by

    @abstractmethod
    def log(self, section: str, row: Row) -> None:
        """Take one row."""

    @abstractmethod
    def log_video(self, name: str, path: Path, row: Row) -> None:
        """Take an animated GIF. row: the axes at this moment."""

    @abstractmethod
    def rewind(self, kept: Sequence[tuple[str, Row]], dropped: Sequence[tuple[str, Row]]) -> None:
        """A run that goes back goes on after the rows that are kept, and will write those again that are dropped.

        Rows come as (section, row).
        """

    @property
    def to_resume(self) -> dict[str, Any]:
        """What a training state keeps, so that a resumed run goes on in the same place."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Write out what is left. Nothing is logged after it."""


@dataclass(frozen=True)
class WandbOptions:
    """Where a run is logged on wandb.

    dir: local folder, by default `{run_dir}/wandb_logs`. mode: "offline" never opens a connection; None is what the
    environment variable WANDB_MODE says, or online. run_id: of the run to continue; None starts a new one.
    """

    project: str
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    dir: Path | None = None
    mode: Literal["online", "offline"] | None = None
    run_id: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("online", "offline", None):
            raise ValueError(f"wandb mode={self.mode!r}: it is 'online', 'offline' or None")


class WandbSink(MetricsSink):
    """Rows to wandb.

    Raises ImportError if wandb is not installed, and ValueError if it cannot start as asked.
    """

    name = "wandb"

    def __init__(self, options: WandbOptions, run_dir: Path):
        self._run = _start_wandb(options, run_dir)
        self._sections: set[str] = set()

    def log(self, section: str, row: Row) -> None:
        if section not in self._sections:  # every row carries every axis; this is the one that charts open with
            self._run.define_metric(f"{section}/*", step_metric="total_frames")
            self._sections.add(section)
        self._run.log(dict(row))

    def log_video(self, name: str, path: Path, row: Row) -> None:
        import wandb

        self._run.log({**row, name: wandb.Video(str(path), format="gif")})

    def rewind(self, kept: Sequence[tuple[str, Row]], dropped: Sequence[tuple[str, Row]]) -> None:
        """What was sent stays there: the rows that are written again come after it."""

    @property
    def to_resume(self) -> dict[str, Any]:
        return {"wandb_run_id": self._run.id}

    def close(self) -> None:
        self._run.finish()


def _start_wandb(options: WandbOptions, run_dir: Path) -> Run:
    try:
        import wandb
    except ImportError as error:
        raise ImportError("log_to_wandb=True needs wandb: pip install 'amago_ray[wandb]'") from error
    folder = options.dir or run_dir / "wandb_logs"
    folder.mkdir(parents=True, exist_ok=True)  # wandb turns to a temporary folder if this one is missing
    try:
        run = wandb.init(
            project=options.project,
            entity=options.entity,
            group=options.group,
            name=options.name,
            dir=folder,
            mode=options.mode,
            id=options.run_id,
            resume="allow" if options.run_id else None,
            settings=wandb.Settings(console="off"),  # the live display is not a log
        )
    except (wandb.Error, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"wandb cannot start with project={options.project!r}, entity={options.entity!r}, mode={options.mode!r}, "
            f"run_id={options.run_id!r}: {reason}. Correct that setting, or use mode='offline' or log_to_wandb=False."
        ) from error
    for axis in FIRST_AXES:
        run.define_metric(axis)
    return run


class TensorboardSink(MetricsSink):
    """Rows as TensorBoard's scalars, in `{run_dir}/tensorboard`.

    axis: what counts as TensorBoard's step: "total_frames", or "gradient_steps" in a run that collects nothing.
    Every row is in the file when `log` returns. Axes are written when they have changed, all else with every row.
    """

    name = "TensorBoard"

    def __init__(self, run_dir: Path, axis: Literal["total_frames", "gradient_steps"] = "total_frames"):
        check_tensorboard()
        self._folder, self._axis = run_dir / TENSORBOARD_FOLDER, axis
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lacks_all = not self._has_files()  # of an earlier process, if there was one
        self._file = self._new_file() if self._lacks_all else None
        self._axes: dict[str, float] = {}

    def log(self, section: str, row: Row) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        axes = {name: value for name, value in row.items() if not name.startswith(f"{section}/")}
        shown = {n: v for n, v in row.items() if n != self._axis and (n not in axes or self._axes.get(n) != v)}
        self._write([Summary.Value(tag=name, simple_value=float(value)) for name, value in shown.items()], row)
        self._axes |= axes
        self._lacks_all = False

    def log_video(self, name: str, path: Path, row: Row) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # The page shows a GIF as it is; the writer's own add_video would draw it anew, by a package that it asks for.
        image = Summary.Image(encoded_image_string=path.read_bytes())
        self._write([Summary.Value(tag=name, image=image)], row)

    def rewind(self, kept: Sequence[tuple[str, Row]], dropped: Sequence[tuple[str, Row]]) -> None:
        """Readers leave out what was written for steps from the first dropped one on.

        Rows that are kept have that step too where an epoch collected nothing: they are written again. So are all of
        them where the run was not logged here before.
        """
        purge_step = min((self._step(row) for _, row in dropped), default=None)
        lacks_all = self._lacks_all
        if purge_step is not None and not lacks_all:  # at once: the rows are gone from metrics.jsonl when this returns
            self._file, self._axes = EventFile(self._folder, purge_step), {}
        for section, row in kept:
            if lacks_all or (purge_step is not None and self._step(row) >= purge_step):
                self.log(section, row)

    def close(self) -> None:
        """Nothing is left: every row is in the file."""

    def _step(self, row: Row) -> int:
        return int(row[self._axis])

    def _write(self, values: Sequence[Any], row: Row) -> None:
        """Write values at the row's step. A file that refuses is begun anew where it is no longer there."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._file is None:  # late: a resumed run may have something to drop
            self._file = self._new_file()
        step = self._step(row)
        try:
            self._file.append(*(Event(step=step, summary=Summary(value=[value])) for value in values))
        except FileNotFoundError:
            self._file, self._axes = None, {}
            raise

    def _new_file(self) -> EventFile:
        return EventFile(self._folder, None if self._has_files() else 0)

    def _has_files(self) -> bool:
        return any(self._folder.glob("events.out.tfevents.*"))


class EventFile:
    """A new file of TensorBoard's events, of which those that are written at once are there all, or none of them.

    PyTorch's SummaryWriter has a thread for that, which a fault of the disk ends for good, with what it still held.
    purge_step: readers leave out what older files of the folder have from this step on. A folder's first file has it,
        too, and of step 0: TensorBoard takes the first that it sees for the beginning, and purges nothing for it.
    Raises OSError where it cannot be made, and FileNotFoundError where the folder that its own lies in is gone.
    """

    _numbers = itertools.count()

    def __init__(self, folder: Path, purge_step: int | None):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(exist_ok=True)
        # Readers take the files of a folder in the order of their names.
        number = next(self._numbers)
        name = f"events.out.tfevents.{int(time.time()):010d}.{number:06d}.{platform.node()}.{os.getpid()}"
        self._path = folder / name
        self._path.open("xb").close()
        head = [Event(file_version="brain.Event:2")]
        if purge_step is not None:
            head.append(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        try:
            self.append(*head)
        except OSError:
            self._path.unlink(missing_ok=True)
            raise

    def append(self, *events: Any) -> None:
        """Write events. Raises OSError, and FileNotFoundError where the file is no longer there."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        buffer = io.BytesIO()
        records = RecordWriter(buffer)
        for event in events:
            event.wall_time = time.time()
            records.write(event.SerializeToString())
        with open(self._path, "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                written = file.write(buffer.getbuffer())
                if written < len(buffer.getbuffer()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            except OSError:
                file.truncate(size)
                raise


def check_tensorboard() -> None:
    """Raises ImportError, saying what to install, where there is no TensorBoard."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError("log_to_tensorboard=True needs tensorboard: pip install 'amago_ray[tensorboard]'")
