"""Write docs/results.md, its pictures and the README's table from what is recorded in results/.

python -m results.report            write them
python -m results.report --check    say whether docs/results.md and README.md are what the data say
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy import stats

from amago_ray.watch.curves import COLOURS, DPI, FAINT, INK, STYLE
from results.table import RESULTS, ROOT, Run, Task, runs, tasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = ROOT / "docs" / "results.md"
PICTURE = ROOT / "docs" / "results.png"
README = ROOT / "README.md"
MARKS = ("<!-- written by results.report -->\n", "<!-- up to here -->\n")  # around the README's table
RESAMPLES = 9999
PANELS_PER_ROW = 4  # panels in a row of the picture
PANEL_IN = (3.4, 2.5)

HEAD = """\
# Results next to published ones

![Learning curves of every task, with the published number](results.png)

Of every run the *last* policy plays the rollouts of a test, without exploration; a seed's score is its mean return,
or rate of success where that is what is published.
**Ours** is the mean of the seeds' scores, and beside it the interquartile mean of the same (of fewer than four seeds
nothing is trimmed) and the 95 % interval of the mean (percentile bootstrap over seeds, `scipy.stats.bootstrap`). **At
or above** says whether the mean reaches the published number to the digits that it is given to, one decimal at least;
**better** is who is by more than our interval: where that contains the published number, nobody is. Settings were
chosen with other seeds than those shown. A game's maximum is what any published number is at most,
shortest paths what a policy can have at most where nobody publishes a number.

"""

FOOT = """\

This page, its picture and those in `results/` are made by `python -m results.report` from
`results/<task>/seed_<n>.json`: returns of the test, curves, commands, revision, machine. `results/tasks.toml` says what
each task is; `make results TASK=<task>` runs one again. Runs are of one process (`results/in_process.py`), so that
several seeds share a small machine; `amago-ray` takes the same arguments and does the same on Ray.
"""

COLUMNS_OF_PAGE = (
    "task",
    "ours",
    "interquartile mean",
    "95 % interval",
    "seeds",
    "frames",
    "published",
    "at frames",
    "at or above",
    "better",
)


@dataclass(frozen=True)
class Summary:
    """Of the seeds of one task: scores (S,), their mean, interquartile mean and the 95 % interval of the mean."""

    scores: tuple[float, ...]
    mean: float
    iqm: float
    low: float
    high: float


def summarize(recorded: Sequence[Run]) -> Summary:
    scores = np.array([run.score for run in recorded])
    low = high = float(scores.mean())
    if len(scores) > 1 and np.ptp(scores) > 0:
        interval = stats.bootstrap(
            (scores,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Summary(tuple(scores.tolist()), float(scores.mean()), float(stats.trim_mean(scores, 0.25)), low, high)


def at_or_above(task: Task, ours: Summary) -> bool:
    """Whether our mean reaches the published number to the digits that it is given to."""
    return round(ours.mean, task.published.digits) >= task.published.value


def better(task: Task, ours: Summary) -> str:
    """Who is better by more than our interval: "ours", "published" or "-"."""
    rounded = (round(bound, task.published.digits) for bound in (ours.low, ours.high))
    low, high = rounded
    if low <= task.published.value <= high:
        return "-"
    return "ours" if low > task.published.value else "published"


def page(known: Mapping[str, Task], folder: Path = RESULTS) -> str:
    """The text of docs/results.md. Tasks without runs have a line at its end."""
    lines = [f"| {' | '.join(COLUMNS_OF_PAGE)} |", "|---|--:|--:|--:|--:|--:|--:|--:|:-:|:-:|"]
    details, missing, reached = [], [], 0
    for task in known.values():
        recorded = runs(task.name, folder)
        if not recorded:
            missing.append(task.title)
            continue
        ours = summarize(recorded)
        reached += at_or_above(task, ours)
        lines.append(_row(task, ours, recorded))
        details += _details(task, ours, recorded)
    shown = len(known) - len(missing)
    text = HEAD + "\n".join(lines) + f"\n\n{reached} of {shown} tasks are at or above the published number.\n"
    if missing:
        text += f"\nNot run: {'; '.join(missing)}.\n"
    return text + "\n## Each task\n" + "".join(details) + FOOT


def _row(task: Task, ours: Summary, recorded: Sequence[Run]) -> str:
    number, digits = task.published, task.published.digits
    cells = [
        task.title,
        f"**{ours.mean:.{digits + 1}f}**",
        f"{ours.iqm:.{digits + 1}f}",
        f"{ours.low:.{digits + 1}f} ... {ours.high:.{digits + 1}f}",
        str(len(recorded)),
        f"{max(run.frames for run in recorded):,}",
        f"[{number.by} {number.value:g}]({number.url})",
        number.frames,
        "yes" if at_or_above(task, ours) else "no",
        better(task, ours),
    ]
    return "| " + " | ".join(cells) + " |"


def readme(known: Mapping[str, Task], text: str, folder: Path = RESULTS) -> str:
    """The README, whose text is `text`, with the table that the data give between its two marks.

    Neighbours that are measured by the same number share a row.
    """
    lines = ["| task | ours | published | frames, ours and theirs |", "|---|--:|--:|--:|"]
    recorded = {task.name: found for task in known.values() if (found := runs(task.name, folder))}
    shown = [task for task in known.values() if task.name in recorded]
    for _, group in groupby(shown, key=lambda task: (task.published.value, task.published.by, task.published.url)):
        together = list(group)
        number, means, frames = together[0].published, [], []
        for task in together:
            ours = summarize(recorded[task.name])
            mean = f"{ours.mean:.{number.digits + 1}f}"
            means.append(f"**{mean}**" if at_or_above(task, ours) else mean)
            three_digits = float(f"{max(run.frames for run in recorded[task.name]):.3g}")
            frames.append(f"{EngFormatter(sep='')(three_digits)}, {task.published.frames}")
        lines.append(
            f"| {_together([task.title for task in together])} | {'; '.join(means)} | "
            f"{number.by} [{number.value:g}]({number.url}) | {'; '.join(frames)} |"
        )
    reached = sum(at_or_above(task, summarize(recorded[task.name])) for task in shown)
    seeds = min(len(found) for found in recorded.values())
    before, _, rest = text.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    told = f"{reached} of {len(shown)} tasks are at or above the published number (bold); seeds of each: {seeds}."
    return before + MARKS[0] + "\n".join(lines) + f"\n\n{told}\n" + MARKS[1] + after


def _together(titles: Sequence[str]) -> str:
    """Titles in one line, the words that all of them begin with once."""
    words = [title.split() for title in titles]
    common = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))))
    return "; ".join(" ".join(title[common if place else 0 :]) for place, title in enumerate(words))


def _details(task: Task, ours: Summary, recorded: Sequence[Run]) -> list[str]:
    digits = task.published.digits + 1
    first = recorded[0]
    scores = ", ".join(f"{run.score:.{digits}f} (seed {run.seed})" for run in recorded)
    minutes = ", ".join(f"{run.wall_s / 60:.1f}" for run in recorded)
    machine = first.machine
    lines = [
        f"\n### {task.title}\n",
        f"![Learning curves](../results/{task.name}/curves.png)\n",
        *([f"{task.note}\n"] if task.note else []),
        f"{scores}; {len(first.returns)} rollouts each{', the policy taking its mode' if task.greedy else ''}. "
        f"{first.frames:,} frames and {first.updates:,} updates, {minutes} minutes of training. "
        f"Revision {first.revision}, {first.date[:10]}, {machine['cores']} cores of {machine['cpu']}, "
        f"torch {machine['torch']}.\n",
        f"    {first.command}\n    {first.evaluation}\n",
    ]
    return ["\n".join(lines)]


def write(known: Mapping[str, Task] | None = None) -> None:
    """Write the page, its picture, the picture of every task that has runs, and the README's table."""
    known = tasks() if known is None else known
    PAGE.write_text(page(known), encoding="utf-8")
    README.write_text(readme(known, README.read_text(encoding="utf-8")), encoding="utf-8")
    shown = [(task, recorded) for task in known.values() if (recorded := runs(task.name))]
    for task, recorded in shown:
        _draw([(task, recorded)], RESULTS / task.name / "curves.png")
    if shown:
        _draw(shown, PICTURE)


def _draw(shown: Sequence[tuple[Task, Sequence[Run]]], out: Path) -> None:
    """Every task's validation returns against frames, a line per seed, the published number dashed; a lone task's
    also against time."""
    alone = len(shown) == 1
    panels: list[tuple[Task, Sequence[Run], str]] = [(*pair, "frames") for pair in shown]
    panels += [(*pair, "wall_s") for pair in shown] if alone else []
    columns = min(PANELS_PER_ROW, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PANEL_IN[0] * columns, PANEL_IN[1] * rows), dpi=DPI, layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, panel in zip(axes, panels):
            _panel(axis, *panel)
        for axis in axes[len(panels) :]:
            axis.remove()
        figure.savefig(out, format="png", facecolor="white")


def _panel(axes: Axes, task: Task, recorded: Sequence[Run], against: str) -> None:
    for run, colour in zip(recorded, COLOURS):
        x: Any = np.array(run.curve[against]) / (60 if against == "wall_s" else 1)
        axes.plot(x, run.curve["return"], color=colour, linewidth=1.4, label=f"seed {run.seed}")
        axes.plot(x[-1:], [run.score], color=colour, marker="D", markersize=5, markeredgecolor="white", zorder=4)
    axes.axhline(task.published.value, color=INK, linewidth=1, linestyle="--")
    axes.text(
        0.98,
        0.04,
        f"dashed: {task.published.by} {task.published.value:g}",
        transform=axes.transAxes,
        ha="right",
        fontsize=7.5,
        color=INK,
    )
    axes.set_title(task.title)
    axes.set_xlabel("environment frames" if against == "frames" else "minutes", color=FAINT)
    if against == "frames":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def main() -> None:
    """Write the page and the pictures, or compare the page."""
    parser = argparse.ArgumentParser(
        prog="python -m results.report",
        description="write docs/results.md, its pictures and the README's table from results/",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page differs")
    if parser.parse_args().check:
        text = README.read_text(encoding="utf-8")
        for path, expected in ((PAGE, page(tasks())), (README, readme(tasks(), text))):
            if path.read_text(encoding="utf-8") != expected:
                raise SystemExit(f"{path.relative_to(ROOT)} is not what the data say: python -m results.report")
        return
    write()


if __name__ == "__main__":
    main()
