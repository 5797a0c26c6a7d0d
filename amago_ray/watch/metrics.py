"""What a run writes down about itself: one JSON row per report, and the same row to wandb and TensorBoard when asked.

There is one writer. Workers, shards and learners send numbers in their reports; only the driver makes a `MetricsLog`.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from amago_ray.atomic_files import LineFile, whole_lines
from amago_ray.messages import EpisodeResult
from amago_ray.watch.delivery import Delivery
from amago_ray.watch.sinks import MetricsSink

METRICS_FILE = "metrics.jsonl"
AXES = ("epoch", "total_frames", "gradient_steps", "wall_s")  # of every row
AVERAGE_RETURN = "Average Total Return (Across All Env Names)"


@dataclass
class Progress:
    """How far the run is: the counters that are the x-axes of every curve.

    frames_by_env: environment steps by environment name. wall_s: seconds of running, summed over resumes.
    """

    epoch: int = 0
    gradient_steps: int = 0
    frames_by_env: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def total_frames(self) -> int:
        return sum(self.frames_by_env.values())

    def add_frames(self, frames_by_env: Mapping[str, int]) -> None:
        for name, frames in frames_by_env.items():
            self.frames_by_env[name] = self.frames_by_env.get(name, 0) + frames

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Progress:
        return cls(**{**state, "frames_by_env": dict(state["frames_by_env"])})


class MetricsLog:
    """Append rows to `{run_dir}/metrics.jsonl`: a killed process loses at most the row that it was writing.

    Where the disk is full, rows wait for room, and `settle` says so.

    resume: go on with the rows that are there, less a torn last line; False starts an empty file.
    sinks: other places that each row goes to, once it is in the file. None of them keeps it from there, or from another
        one (see `Delivery`).
    say: told, in a line, of places that take no rows, and of a file that was removed or replaced meanwhile.
    newest: the last value of everything that this log has written, "<section>/<name>" -> value, NaN where it
        was not finite.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        resume: bool,
        sinks: Sequence[MetricsSink] = (),
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self._path = run_dir / METRICS_FILE
        self._sinks, self._say = sinks, say
        self._deliveries = [Delivery(sink, say) for sink in sinks]
        self.newest: dict[str, float] = {}
        self._file = LineFile(self._path, keep=resume, say=say)

    @property
    def to_resume(self) -> dict[str, Any]:
        """What a training state keeps of where the rows go."""
        return {name: value for sink in self._sinks for name, value in sink.to_resume.items()}

    def log(self, section: str, values: Mapping[str, float], progress: Progress) -> OSError | None:
        """Write one row: the section, the x-axes, and each value as "<section>/<name>", null where it is not finite.

        Returns why it waits, where there is no room for it. Raises OSError for other faults of the disk.
        """
        metrics = {f"{section}/{name}": _finite(value) for name, value in values.items()}
        row = {"section": section, **_axes(progress), **metrics}
        self.newest |= {name: math.nan if value is None else value for name, value in metrics.items()}
        return self._file.append(_encode(row), then=lambda: self._to_sinks(row))

    def _to_sinks(self, row: Mapping[str, Any]) -> None:
        for delivery in self._deliveries:
            delivery.log(*_for_sinks(row))

    def settle(self) -> None:
        """See to it that the file is there, and write the rows that wait for room.

        Raises OSError where they have to go on waiting.
        """
        self._file.settle()

    def log_video(self, name: str, path: Path, progress: Progress) -> None:
        """Show an animated GIF wherever rows go beside the file."""
        for delivery in self._deliveries:
            delivery.log_video(name, path, _axes(progress))

    def rewind(self, epoch: int) -> None:
        """Drop the rows of epochs past `epoch`, which a resumed run will write again. All or nothing."""
        self.settle()
        rows = read_metrics(self._path.parent)
        kept = [row for row in rows if row["epoch"] <= epoch]
        dropped = [row for row in rows if row["epoch"] > epoch]
        temporary = self._path.with_suffix(".jsonl.tmp")
        with open(temporary, "wb") as file:
            file.writelines(_encode(row) for row in kept)
            file.flush()
            os.fsync(file.fileno())
        for delivery in self._deliveries:  # before the rows are gone from the file: killed here, a run does this again
            delivery.rewind([_for_sinks(row) for row in kept], [_for_sinks(row) for row in dropped])
        os.replace(temporary, self._path)
        self._file.close()  # the old one
        self._file = LineFile(self._path, say=self._say)

    def close(self) -> None:
        """Close the file and the other places. Nothing can be logged after it; once more does nothing."""
        self._file.close()
        for delivery in self._deliveries:
            delivery.close()


def _axes(progress: Progress) -> dict[str, float]:
    return {
        "epoch": progress.epoch,
        "total_frames": progress.total_frames,
        "gradient_steps": progress.gradient_steps,
        "wall_s": round(progress.wall_s, 3),
        **{f"frames/{env_name}": frames for env_name, frames in progress.frames_by_env.items()},
    }


def _for_sinks(row: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """(section, what is a finite number) of a row of the file."""
    return row["section"], {name: value for name, value in row.items() if name != "section" and value is not None}


def summarize_episodes(episodes: Sequence[EpisodeResult]) -> dict[str, float]:
    """Averages over finished rollouts, by environment name; empty if there are none.

    The bottom quintile is the 20th percentile. "Across All" weighs every environment name alike, however many rollouts
    each of them finished. An info metric is averaged over the rollouts that reported it. An average is as good as the
    choice of its rollouts: those that ended during an epoch of collection are too often short ones.
    """
    if not episodes:
        return {}
    by_env: defaultdict[str, list[EpisodeResult]] = defaultdict(list)
    for episode in episodes:
        by_env[episode.env_name].append(episode)

    summary: dict[str, float] = {"Total Episodes": len(episodes)}
    for env_name, group in sorted(by_env.items()):
        returns = [episode.total_reward for episode in group]
        summary[f"Average Total Return in {env_name}"] = float(np.mean(returns))
        summary[f"Bottom Quintile Total Return in {env_name}"] = float(np.percentile(returns, 20))
        summary[f"Average Episode Length in {env_name}"] = float(np.mean([episode.length for episode in group]))
        for metric in dict.fromkeys(name for episode in group for name in episode.metrics):
            reported = [episode.metrics[metric] for episode in group if metric in episode.metrics]
            summary[f"Average {metric} in {env_name}"] = float(np.mean(reported))
    summary[AVERAGE_RETURN] = float(np.mean([summary[f"Average Total Return in {env_name}"] for env_name in by_env]))
    return summary


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All rows of a run, oldest first, less a torn last line.

    Raises FileNotFoundError if the run has no metrics file, ValueError, naming the line, where one is no row.
    """
    path = run_dir / METRICS_FILE
    return [_decode(line, path, number) for number, line in enumerate(whole_lines(path).splitlines(), start=1)]


def as_number(value: Any) -> float:
    """A value of a row as it is drawn; NaN, which is a gap, for what is no finite number, or none of floats' range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        found = float(value)
    except OverflowError:
        return math.nan
    return found if math.isfinite(found) else math.nan


def _decode(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    numbers = (row.get(axis) for axis in AXES) if isinstance(row, dict) else [None]
    if not all(math.isfinite(as_number(value)) for value in numbers) or not isinstance(row.get("section"), str):
        raise ValueError(
            f"{path}, line {number} is damaged: it is no row of a run; remove the line to go on without it"
        )
    return row


def finite_json(value: Any) -> Any:
    """Plain values with None in place of numbers that are not finite, for which JSON has no word."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite_json(each) for name, each in value.items()}
    return [finite_json(each) for each in value] if isinstance(value, list | tuple) else value


def _encode(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
