"""Learning curves as a picture: return against frames and against time, and success by attempt for meta-RL."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amago_ray.watch.metrics import AVERAGE_RETURN, METRICS_FILE
from amago_ray.watch.run_log import RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIG_FILE = "config.txt"
TRAIN_SECTIONS, VAL_SECTION = ("collect", "train"), "val"
ATTEMPT_SUCCESS = re.compile(r"Attempt (\d+) Success")
MOMENTS = 5  # of training, in the panel of attempts; of one run alone, else the first and the last of them
PANEL_SIZE_IN, DPI = (3.5, 2.9), 200
INK, FAINT = "#333333", "#8a8a8a"
# Okabe and Ito's colours, told apart by colour-blind readers too; those that are legible on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#cccccc",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#ececec",
    "text.parse_math": False,  # a run may have a dollar in its name
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}

Label = tuple[str, str, float]  # text, colour, and the height (in data units) of the line's end


@dataclass(frozen=True)
class Curve:
    """One line of the return panels. frames, minutes, returns: (N,)."""

    frames: np.ndarray
    minutes: np.ndarray
    returns: np.ndarray


@dataclass(frozen=True)
class Attempts:
    """Success by attempt number at one moment of training, the mean of the rows around it. numbers, success: (K,)."""

    frames: int
    numbers: np.ndarray
    success: np.ndarray


@dataclass(frozen=True)
class RunCurves:
    """What one run has to show. train or val is None where nothing was logged; attempts are oldest first.

    log: what all of it is out of.
    """

    name: str
    log: RunLog
    train: Curve | None
    val: Curve | None
    attempts: list[Attempts]

    @property
    def has_returns(self) -> bool:
        return self.train is not None or self.val is not None


def plot_runs(run_dirs: Sequence[Path], out: Path) -> Path:
    """Draw the learning curves of one or several runs into the PNG `out`, and return its path: see `draw_runs`.

    Runs without returns yet are left out. Raises ValueError as `read_run` and `draw_runs` do.
    """
    if not run_dirs:
        raise ValueError("plot: name at least one run directory")
    runs = [read_run(path) for path in run_dirs]
    check_returns(run_dirs, runs)
    return draw_runs([run for run in runs if run.has_returns], out)


def check_returns(run_dirs: Sequence[Path], runs: Sequence[RunCurves]) -> None:
    """Raises ValueError, naming the folders, where none of the runs has returns."""
    if not any(run.has_returns for run in runs):
        raise ValueError(f"plot: {', '.join(map(str, run_dirs))}: no returns yet; wait for the first epochs")


def draw_runs(runs: Sequence[RunCurves], out: Path) -> Path:
    """Draw the learning curves of runs that have returns into the PNG `out`, and return its path.

    Return against frames, return against minutes and, where runs log "Attempt <i> Success", success by attempt number,
    early in training (light) to late (dark). Validation is the line with markers, training the thin one. Each run has
    its own colour; seeds are runs like any others.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot there is no global state, and the backend is Agg
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    num_panels = 3 if any(run.attempts for run in runs) else 2
    with matplotlib.rc_context(STYLE):
        width, height = PANEL_SIZE_IN
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03)  # inches; the last is a fraction
        figure = Figure(figsize=(width * num_panels, height), dpi=DPI, layout=layout)
        axes = figure.subplots(1, num_panels)
        _draw_returns(axes[0], runs, "frames")
        _draw_returns(axes[1], runs, "minutes")
        if num_panels == 3:
            _draw_attempts(axes[2], runs)
        if len(runs) == 1:
            figure.suptitle(runs[0].name, x=0.01, ha="left", color=FAINT, fontsize=9)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png", facecolor="white")
    return out


def read_run(run_dir: Path) -> RunCurves:
    """Read a run's log, once; lines that are no rows are left out, which `log.unread` says.

    Raises ValueError, naming the folder, for one that is no run, OSError for a log that cannot be read.
    """
    log = RunLog(run_dir)
    log.refresh()
    if not any((run_dir / name).is_file() for name in (METRICS_FILE, CONFIG_FILE)):  # of one that starts, the latter
        raise ValueError(f"plot: {run_dir} has no metrics.jsonl; is it the directory of a run?")
    attempts = _attempts(log, (VAL_SECTION,)) or _attempts(log, TRAIN_SECTIONS)
    curves = _curve(log, TRAIN_SECTIONS), _curve(log, (VAL_SECTION,))
    return RunCurves(run_dir.resolve().name, log, *curves, attempts)


def _curve(log: RunLog, sections: Sequence[str]) -> Curve | None:
    """The rows that have a return, which is null or absent while no rollout has finished."""
    found = sorted(each for section in sections for each in log.finite(f"{section}/{AVERAGE_RETURN}"))
    frames, wall_s = log.axes["total_frames"], log.axes["wall_s"]
    points = [(frames[row], wall_s[row] / 60, value) for row, value in found]
    return Curve(*np.array(points).T) if points else None


def _attempts(log: RunLog, sections: Sequence[str]) -> list[Attempts]:
    """Up to MOMENTS moments: the rows that log attempts cut into equal spans of training, and each span's mean."""
    by_row: defaultdict[int, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name in log.series:
        match = ATTEMPT_SUCCESS.search(name)
        if match and name.startswith(tuple(f"{section}/" for section in sections)):
            for row, value in log.finite(name):  # one for each environment name
                by_row[row][int(match[1])].append(value)
    logged = [
        (int(log.axes["total_frames"][row]), {number: np.mean(values) for number, values in by_row[row].items()})
        for row in sorted(by_row)
    ]
    moments = []
    for span in np.array_split(np.arange(len(logged)), min(MOMENTS, len(logged)) or 1):
        successes = [logged[i][1] for i in span]
        numbers = sorted({number for success in successes for number in success})
        means = [np.mean([success[number] for success in successes if number in success]) for number in numbers]
        if numbers:
            moments.append(Attempts(logged[span[-1]][0], np.array(numbers), np.array(means)))
    return moments


def _draw_returns(axes: Axes, runs: Sequence[RunCurves], against: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    labels: list[Label] = []
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        ends: list[Label] = []
        if run.train is not None:
            x, y = getattr(run.train, against), run.train.returns
            mark = "o" if len(x) == 1 else None  # a line of one point is none
            axes.plot(x, y, color=_tint(colour, 0.5), linewidth=1, marker=mark, markersize=4)
            ends.append(("training", _tint(colour, 0.6), y[-1]))
        if run.val is not None:
            x, y = getattr(run.val, against), run.val.returns
            axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=4, markeredgecolor="white", zorder=3)
            ends.append(("validation", colour, y[-1]))
        labels += ends if len(runs) == 1 else [(run.name, colour, ends[-1][2])]
    axes.margins(x=0.02)
    if against == "frames":
        axes.set_title("Return by experience")
        axes.set_xlabel("environment frames")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axes.set_title("Return by time")
        axes.set_xlabel("wall time (minutes)")
        axes.xaxis.set_major_locator(MaxNLocator(5))  # those of a run of seconds have three decimals
    _label_ends(axes, labels)


def _draw_attempts(axes: Axes, runs: Sequence[RunCurves]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    frames_text = EngFormatter(places=0, sep="")
    labels: list[Label] = []
    for run, colour in zip(runs, _colours(len(runs)), strict=True):
        moments = run.attempts if len(runs) == 1 else run.attempts[:1] + run.attempts[1:][-1:]
        strengths = np.linspace(1.0, 0.4, len(moments))[::-1]  # the last is the run's own colour
        ends: list[Label] = []
        for moment, strength in zip(moments, strengths, strict=True):
            shade = _tint(colour, strength)
            axes.plot(moment.numbers, moment.success, color=shade, linewidth=1.8, marker="o", markersize=4)
            ends.append((f"{frames_text(moment.frames)} frames", shade, moment.success[-1]))
        labels += ends if len(runs) == 1 else [(run.name, colour, end) for _, _, end in ends[-1:]]
    axes.set_title("Success by attempt")
    axes.set_xlabel("attempt at the same task" if len(runs) == 1 else "attempt (light: early, dark: late)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(-0.03, 1.03)
    _label_ends(axes, labels)


def _label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Name every line to the right of its end; names that would touch are moved apart."""
    low, high = axes.get_ylim()
    ordered = sorted(labels, key=lambda label: label[2])
    heights = np.array([(end - low) / (high - low) for _, _, end in ordered])
    gap = 0.075  # of the axes' height: one line of text
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    ceiling = 0.98
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - gap
    for (text, colour, _), height in zip(ordered, heights, strict=True):
        axes.text(1.015, height, text, color=colour, va="center", fontsize=8, transform=axes.transAxes)


def _tint(colour: str, strength: float) -> str:
    """`colour` thinned with white: 1 is the colour itself, 0 is white."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = (1 - strength * (1 - channel) for channel in to_rgb(colour))
    return to_hex((red, green, blue))


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
