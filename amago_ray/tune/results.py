"""What came out of a sweep: kept in a file while it runs, shown as a table and as a picture.

{sweep}/
    sweep.json              every trial: its parameters, how far it is and how good
    sweep.png               the picture
    {trial id}/             the trial's run, a folder like that of any run
    tune/                   Ray Tune's own files
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amago_ray.atomic_files import read_json, write_atomically
from amago_ray.watch.curves import COLOURS, DPI, FAINT, PANEL_SIZE_IN, STYLE
from amago_ray.watch.metrics import AVERAGE_RETURN
from amago_ray.watch.run_log import RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SWEEP_FILE = "sweep.json"
RETURNS = {f"{section}/return": f"{section}/{AVERAGE_RETURN}" for section in ("val", "collect")}
MAX_PANELS = 6  # of parameters
REST = "#b9b9b9"  # trials that are not the best
GAP = 10.0  # ratio of the largest to the smallest value above which an axis is logarithmic


@dataclass
class Trial:
    """One trial. best, last: of the metric, None before there was any. epoch: finished ones. epochs: that it has.

    params: those of now. best_params: those that made the best value, which "pbt" may have changed since; None in files
    of before they were kept.
    """

    params: dict[str, Any]
    status: str = "running"
    epoch: int = 0
    best: float | None = None
    last: float | None = None
    epochs: int | None = None
    best_params: dict[str, Any] | None = None

    @property
    def shown_params(self) -> dict[str, Any]:
        """What stands beside its best value."""
        return self.params if self.best_params is None else self.best_params


@dataclass
class SweepResults:
    """All trials of a sweep, by trial id.

    epochs: of a trial that says nothing else. settings: of the `Sweep`. experiment: what all trials have in common, see
    `resuming.settings_of`. Both are None in files of before they were kept.
    """

    metric: str
    mode: str
    epochs: int
    trials: dict[str, Trial] = field(default_factory=dict)
    settings: dict[str, Any] | None = None
    experiment: dict[str, str] | None = None

    @property
    def ended(self) -> int:
        """How many trials have begun and ended."""
        return sum(trial.status != "running" for trial in self.trials.values())

    @classmethod
    def read(cls, folder: Path) -> SweepResults:
        """Raises ValueError where `folder` holds no sweep."""
        file = folder / SWEEP_FILE
        if not file.is_file():
            raise ValueError(f"{folder} holds no sweep: there is no {SWEEP_FILE}")
        content = read_json(file, "metric", "mode", "epochs", "trials")
        try:
            trials = {name: Trial(**trial) for name, trial in content.pop("trials").items()}
            return cls(**content, trials=trials)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(asdict(self), indent=2, default=_plain)
        write_atomically(folder / SWEEP_FILE, lambda path: path.write_text(content))

    def epochs_of(self, trial: Trial) -> int:
        """How many epochs a trial has, which may be what the sweep varies."""
        return self.epochs if trial.epochs is None else trial.epochs

    def add(self, name: str, params: Mapping[str, Any], epoch: int, value: float) -> Trial:
        """Take a report of a trial."""
        trial = self.trials.setdefault(name, Trial({}))
        trial.params, trial.status, trial.epoch = dict(params), "running", epoch
        if math.isfinite(value):
            trial.last = value
            if trial.best is None or (value > trial.best if self.mode == "max" else value < trial.best):
                trial.best, trial.best_params = value, trial.params
        return trial

    def ranked(self) -> list[tuple[str, Trial]]:
        """Best trial first; those without a value last."""
        sign = -1 if self.mode == "max" else 1
        return sorted(self.trials.items(), key=lambda t: (t[1].best is None, sign * (t[1].best or 0.0), t[0]))

    def table(self) -> str:
        """A line per trial, the best first, each with the parameters that made its best value."""
        names = list(dict.fromkeys(name for trial in self.trials.values() for name in trial.shown_params))
        rows = [["trial", "status", "epoch", f"best {self.metric}", "last", *names]]
        for name, trial in self.ranked():
            values = [show(trial.shown_params.get(n)) for n in names]
            rows.append([name, trial.status, str(trial.epoch), show(trial.best), show(trial.last), *values])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        left = 2  # columns of text
        return "\n".join(
            "  ".join(f"{cell:{w}}" if i < left else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths)))
            for row in rows
        )


def show(value: Any) -> str:
    """A parameter or metric in few characters."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else repr(value)


def plot_sweep(folder: Path, out: Path | None = None, say: Callable[[str], None] = lambda text: None) -> Path:
    """Draw every trial's curve, and the best value against each parameter; returns the PNG, by default sweep.png.

    say: told of lines of trials' logs that are left out because they are no rows.
    Raises ValueError where `folder` holds no sweep, or no trial has a value yet.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    results, out = SweepResults.read(folder), out or folder / "sweep.png"
    ranked = [(name, trial) for name, trial in results.ranked() if trial.best is not None]
    if not ranked:
        raise ValueError(f"{folder}: no trial has a value of {results.metric} yet")
    params = list(dict.fromkeys(name for _, trial in ranked for name in trial.shown_params))[:MAX_PANELS]
    with matplotlib.rc_context(STYLE):
        width, height = PANEL_SIZE_IN
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03)
        figure = Figure(figsize=(width * (1.3 + 0.8 * len(params)), height), dpi=DPI, layout=layout)
        axes = figure.subplots(1, 1 + len(params), width_ratios=[1.3, *[0.8] * len(params)], squeeze=False)[0]
        _draw_curves(axes[0], folder, results, ranked, say)
        for panel, name in zip(axes[1:], params, strict=True):
            _draw_parameter(panel, results, ranked, name)
        figure.suptitle(
            f"{folder.name}: best trial {ranked[0][0]}, {results.metric} {show(ranked[0][1].best)}",
            x=0.01, ha="left", color=FAINT, fontsize=9,
        )  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png", facecolor="white")
    return out


def _draw_curves(
    axes: Axes,
    folder: Path,
    results: SweepResults,
    ranked: Sequence[tuple[str, Trial]],
    say: Callable[[str], None],
) -> None:
    from matplotlib.ticker import EngFormatter

    key = RETURNS.get(results.metric, results.metric)
    for rank, (name, _) in reversed(list(enumerate(ranked))):
        log = RunLog(folder / name)
        log.refresh()
        if log.unread is not None:
            say(log.unread)
        points = [(log.axes["total_frames"][row], value) for row, value in log.finite(key)]
        if points:
            style: dict[str, Any] = {"color": REST, "linewidth": 1}
            if rank == 0:
                style = {"color": COLOURS[0], "linewidth": 2, "zorder": 3}
            axes.plot(*np.array(points).T, marker="o" if len(points) < 30 else None, markersize=3, **style)
    axes.set_title(f"{results.metric}, every trial (best: blue)")
    axes.set_xlabel("environment frames")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.03)


def _draw_parameter(axes: Axes, results: SweepResults, ranked: Sequence[tuple[str, Trial]], name: str) -> None:
    values = [trial.shown_params.get(name) for _, trial in ranked]
    best = np.array([trial.best for _, trial in ranked], float)
    colours = [COLOURS[0], *[REST] * (len(ranked) - 1)]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        numbers = np.array(values, float)
        axes.scatter(numbers, best, c=colours, s=24, zorder=3)
        if numbers.min() > 0 and numbers.max() / numbers.min() > GAP:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")  # STYLE turns formulas off, such as 10^-3
            axes.xaxis.set_minor_formatter("")
        elif len(set(values)) <= 6 and all(isinstance(value, int) for value in values):
            axes.set_xticks(sorted(set(numbers)))
    else:
        kinds = sorted({show(value) for value in values})
        axes.scatter([kinds.index(show(value)) for value in values], best, c=colours, s=24, zorder=3)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.margins(x=0.3)
    axes.set_title(name.rpartition(".")[2])
    axes.set_xlabel(name)
