"""A metric as a curve that a page can draw: of all that was logged, no more points than there are pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from amago_ray.watch.run_log import AXES, RunLog

DIGITS = 7  # that matter on a screen


def curve(log: RunLog, name: str, axis: str, points: int) -> dict[str, list[Any]]:
    """{"x", "y"} of a metric against one of AXES, at most `points` of them; None where it was not finite.

    Epochs count from 1. Where there is more, each span shows its lowest and its highest value: no spike is lost, and
    the first and the last point are always there. Raises ValueError for another axis.
    """
    if axis not in AXES:
        raise ValueError(f"axis={axis!r}: it must be one of {', '.join(AXES)}")
    series = log.series.get(name)
    if series is None:
        return {"x": [], "y": []}
    rows, values = np.array(series.rows), np.array(series.values)
    x = np.array(log.axes[axis])[rows] + (axis == "epoch")
    kept = thinned(values, points)
    y = [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values[kept].tolist()]
    return {"x": x[kept].tolist(), "y": y}


def thinned(values: np.ndarray, points: int) -> np.ndarray:
    """Which of `values` (N,) to draw, rising, at most `points`, which must be 4 or more."""
    if len(values) <= points:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for span in np.array_split(np.arange(1, len(values) - 1), (points - 2) // 2):
        part = values[span]
        finite = np.isfinite(part)
        if finite.any():
            kept |= {int(span[np.where(finite, part, np.inf).argmin()])}
            kept |= {int(span[np.where(finite, part, -np.inf).argmax()])}
        else:
            kept.add(int(span[0]))  # a gap stays one
    return np.array(sorted(kept))
