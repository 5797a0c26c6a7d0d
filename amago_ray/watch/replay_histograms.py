"""What is stored, as a picture: histograms of lengths, returns, ages and priorities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amago_ray.replay.inspection import Contents
from amago_ray.watch.curves import COLOURS, DPI, FAINT, PANEL_SIZE_IN, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BINS = 40
MAX_NAMES = 5  # environments told apart; the others are one group
UNITS_S = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def plot_contents(contents: Contents, title: str, out: Path) -> Path:
    """Draw histograms of the stored trajectories into the PNG `out`, and return its path.

    Lengths and returns by environment name, ages, and priorities where some are kept. There must be a trajectory.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot there is no global state, and the backend is Agg
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    num_panels = 3 + bool(len(contents.priorities))
    groups = env_groups(contents)
    with matplotlib.rc_context(STYLE):
        width, height = PANEL_SIZE_IN
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03)  # inches; the last is a fraction
        figure = Figure(figsize=(width * num_panels, height), dpi=DPI, layout=layout)
        axes = figure.subplots(1, num_panels)
        lengths = [(name, contents.lengths[mask]) for name, mask in groups]
        _draw(axes[0], lengths, "Length", "timesteps")
        axes[0].set_ylabel("trajectories")
        _draw(axes[1], [(name, contents.returns[mask]) for name, mask in groups], "Return", "sum of rewards")
        if len(groups) > 1:
            axes[1].legend(frameon=False, fontsize=7.5)
        unit, seconds = next((u for u in UNITS_S if contents.age_s.max() >= 2 * u[1]), UNITS_S[-1])
        _draw(axes[2], [("", contents.age_s / seconds)], "Age", f"{unit} since it was stored")
        if len(contents.priorities):
            _draw(axes[3], [("", contents.priorities)], "Priority", "error that the learner last saw", logarithmic=True)
        timesteps = int(contents.lengths.sum())
        text = f"{title}: {len(contents):,} trajectories, {timesteps:,} timesteps"
        figure.suptitle(text, x=0.01, ha="left", color=FAINT, fontsize=9)
        figure.savefig(out, format="png", facecolor="white")
    return out


def env_groups(contents: Contents) -> list[tuple[str, np.ndarray]]:
    """(name, (n,) bool) of the environments with most trajectories, and of all others together."""
    counts = np.bincount(contents.env, minlength=len(contents.env_names))
    order = np.argsort(-counts, kind="stable")
    shown = order if len(order) <= MAX_NAMES + 1 else order[:MAX_NAMES]
    groups = [(contents.env_names[i], contents.env == i) for i in shown]
    if len(shown) < len(order):
        groups.append((f"{len(order) - len(shown)} others", ~np.isin(contents.env, shown)))
    return groups


def _draw(axes: Axes, groups: list[tuple[str, np.ndarray]], title: str, unit: str, logarithmic: bool = False) -> None:
    """One histogram, the groups stacked."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    values = [np.asarray(v, dtype=np.float64) for _, v in groups]
    edges = bin_edges(np.concatenate(values), logarithmic)
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(groups))]
    axes.hist(values, bins=edges.tolist(), stacked=True, color=colours, label=[name for name, _ in groups], zorder=2)
    if logarithmic:
        axes.set_xscale("log")
        ticks = np.geomspace(edges[0], edges[-1], 4)
        axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.02)


def bin_edges(values: np.ndarray, logarithmic: bool = False) -> np.ndarray:
    """(at most MAX_BINS + 1,) edges that hold all of `values` (n,).

    Where all are whole numbers, each bin holds equally many of these. logarithmic: bins are even in the logarithm.
    """
    low, high = float(values.min()), float(values.max())
    if logarithmic and low < high:
        edges = np.geomspace(low, high, MAX_BINS + 1)
    elif (values == np.rint(values)).all():
        step = -(-int(high - low + 1) // MAX_BINS)
        return np.arange(low, high + 1 + step, step) - 0.5
    elif low == high:
        return low + max(abs(low), 1e-6) * np.array([-0.5, -0.1, 0.1, 0.5])
    else:
        edges = np.linspace(low, high, MAX_BINS + 1)
    edges[0], edges[-1] = low, high  # whatever rounding made of them
    return edges
