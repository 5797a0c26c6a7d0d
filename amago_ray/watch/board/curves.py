"""A metric as a curve that a page can draw: of all that was logged, no more points than there are pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from amago_ray.watch.metrics import AXES
from amago_ray.watch.run_log import RunLog

DIGITS = 7  # that matter on a screen
MIN_POINTS = 8


def curve(log: RunLog, name: str, axis: str, points: int, smooth: float = 0.0) -> dict[str, list[Any]]:
    """{"x", "y"} of a metric against one of AXES, at most `points` of them; None where it was not finite.

    Epochs count from 1. smooth: from 0 up to below 1, the weight of the past in an exponential average, which is
    "smooth" then; it is taken over all that was logged, so that it is the same however few points are drawn.
    Raises ValueError for another axis, for less than MIN_POINTS and for another weight.
    """
    if axis not in AXES:
        raise ValueError(f"axis={axis!r}: it must be one of {', '.join(AXES)}")
    if points < MIN_POINTS or not 0.0 <= smooth < 1.0:
        raise ValueError(f"points={points}, smooth={smooth}: {MIN_POINTS} or more, and from 0 up to below 1")
    series = log.series.get(name)
    if series is None:
        return {"x": [], "y": []}
    rows, values = np.array(series.rows), np.array(series.values)
    x = np.array(log.axes[axis])[rows] + (axis == "epoch")
    kept = thinned(values, points)
    found = {"x": x[kept].tolist(), "y": _shown(values[kept])}
    return found if smooth == 0.0 else found | {"smooth": _shown(averaged(values, smooth)[kept])}


def thinned(values: np.ndarray, points: int) -> np.ndarray:
    """Which of `values` (N,) to draw, rising, at most `points`.

    Of spans of equal length the lowest and the highest, so that no spike is lost; beside them the first and the last,
    and one of a span without finite values, so that a gap stays one. A span is a power of two long and begins at a
    multiple of that: a curve that grows is not drawn otherwise with every value.
    """
    if len(values) <= points:
        return np.arange(len(values))
    length = 2 ** math.ceil(math.log2(2 * len(values) / (points - 4)))
    spans = np.arange(-(-len(values) // length)) * length
    padded = np.concatenate((values, np.full(len(spans) * length - len(values), np.nan))).reshape(len(spans), length)
    finite = np.isfinite(padded)
    low, high = np.where(finite, padded, np.inf).argmin(axis=1), np.where(finite, padded, -np.inf).argmax(axis=1)
    return np.unique(np.concatenate((spans + low, spans + high, [0, len(values) - 1])))


def averaged(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential average (N,) that begins without bias (as in Adam); what is not finite is left out and stays so."""
    found = np.full(len(values), np.nan)
    total = share = 0.0
    for i, value in enumerate(values.tolist()):
        if math.isfinite(value):
            total = weight * total + (1.0 - weight) * value
            share = weight * share + (1.0 - weight)
            found[i] = total / share
    return found


def _shown(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in values.tolist()]
