"""Returns of several policies of one run: a table, and a picture of return over epoch with its spread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from amago_ray.messages import EpisodeResult
from amago_ray.watch.curves import COLOURS, DPI, FAINT, PANEL_SIZE_IN, STYLE

HEADER = ("epoch", "environment", "rollouts", "mean return", "std error", "std", "lowest", "highest")


def returns_by_env(episodes: Sequence[EpisodeResult]) -> dict[str, np.ndarray]:
    """Environment name -> returns of its rollouts, by name."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        found[episode.env_name].append(episode.total_reward)
    return {name: np.array(found[name]) for name in sorted(found)}


def standard_deviation(returns: np.ndarray) -> float:
    """Of rollouts, as they would be without end; NaN of one."""
    return float(returns.std(ddof=1)) if len(returns) > 1 else float("nan")


def standard_error(returns: np.ndarray) -> float:
    """Of the mean of independent rollouts; NaN of one."""
    return standard_deviation(returns) / float(np.sqrt(len(returns)))


def table(evaluated: Mapping[int, Sequence[EpisodeResult]]) -> str:
    """A line per epoch and environment. evaluated: epoch -> finished rollouts."""
    rows = [HEADER, *_rows(evaluated)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(f"{cell:<{w}}" if i == 1 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    )


def _rows(evaluated: Mapping[int, Sequence[EpisodeResult]]) -> Iterator[tuple[str, ...]]:
    for epoch, episodes in sorted(evaluated.items()):
        for name, returns in returns_by_env(episodes).items():
            spread = standard_deviation(returns)
            numbers = (returns.mean(), standard_error(returns), spread, returns.min(), returns.max())
            yield (str(epoch), name, str(len(returns)), *(f"{number:.3f}" for number in numbers))


def plot_checkpoints(evaluated: Mapping[int, Sequence[EpisodeResult]], title: str, out: Path) -> Path:
    """Draw mean return over epoch into the PNG `out`, and return its path.

    Bars: the mean's standard error. Band: one standard deviation of the rollouts to either side. Each environment has a
    colour of its own.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = np.array(sorted(evaluated))
    returns = {epoch: returns_by_env(evaluated[epoch]) for epoch in epochs.tolist()}
    names = sorted({name for by_env in returns.values() for name in by_env})
    with matplotlib.rc_context(STYLE):
        width, height = PANEL_SIZE_IN
        figure = Figure(figsize=(1.6 * width, 1.2 * height), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        for i, name in enumerate(names):
            there = np.array([name in returns[epoch] for epoch in epochs.tolist()])
            groups = [returns[epoch][name] for epoch in epochs[there].tolist()]
            mean = np.array([group.mean() for group in groups])
            spread, error = (
                np.nan_to_num([of(group) for group in groups]) for of in (standard_deviation, standard_error)
            )
            colour = COLOURS[i % len(COLOURS)]
            axes.fill_between(epochs[there], mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
            axes.errorbar(
                epochs[there], mean, error, color=colour, linewidth=1.8, marker="o", markersize=4, capsize=2, label=name
            )
        axes.set_title("Return by epoch")
        axes.set_xlabel("epoch (bars: standard error; band: standard deviation of rollouts)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.03)
        axes.legend(frameon=False, fontsize=8)
        figure.suptitle(title, x=0.01, ha="left", color=FAINT, fontsize=9)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png", facecolor="white")
    return out
