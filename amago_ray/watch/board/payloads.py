"""What the page is told of runs, as plain values for JSON."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from amago_ray.replay.inspection import Contents
from amago_ray.watch.board.library import MEDIA, Library, Run
from amago_ray.watch.bounds import PARTS, EpochTimes
from amago_ray.watch.replay_histograms import UNITS_S, bin_edges, env_groups
from amago_ray.watch.run_status import stored_replay

SPANS = 120  # that the time of a run is cut into
BESIDE = re.compile(r"\s*#|import |from ")  # lines that belong to no value
STATEMENT = re.compile(r"^([\w./]+) = ?", re.MULTILINE)


def run_row(run: Run) -> dict[str, Any]:
    """A line of the list of runs. A run that cannot be read has an "error" instead."""
    if run.unread is not None:
        return {"id": run.id, "error": run.unread}
    try:
        status = run.status(time.time())
    except (OSError, ValueError) as error:
        return {"id": run.id, "error": str(error)}
    row = asdict(status) | {"id": run.id, "version": run.log.version}
    for name in ("replay", "replay_error", "name"):
        del row[name]
    bound = run.bound()
    return row | {"bound": None if bound is None else asdict(bound)}


def list_of_runs(library: Library, complete: bool) -> dict[str, Any]:
    """complete: whether all logs were read to their ends."""
    return {
        "folders": [str(folder) for folder in library.folders],
        "runs": [run_row(run) for run in library.runs.values()],
        "complete": complete,
        "time": time.time(),
    }


def names_of_metrics(runs: Sequence[Run]) -> list[str]:
    """What is logged by any of the runs, in the order in which it came."""
    return list(dict.fromkeys(name for run in runs for name in run.log.series))


def run_details(run: Run) -> dict[str, Any]:
    """What bounds a run, its processes, what became of them, its pictures and its policies."""
    epochs, shares = EpochTimes.of(run.log).shares(SPANS)
    bound = run.bound()
    return {
        "id": run.id,
        "bound": None if bound is None else asdict(bound),
        "epochs": epochs.tolist(),
        "parts": dict(zip(PARTS, shares.T.round(4).tolist())),
        "counts": {
            what: int(sum(value for _, value in run.log.finite(f"collect/{what}")))
            for what in ("Worker Deaths", "Environment Failures")
        },
        "events": run.events(),
        "media": [
            {"file": name, "type": MEDIA[media.path.suffix.lower()], "time": media.time_s}
            for name, media in run.media().items()
        ],
        "policies": run.directory.policy_epochs(),
    }


def stored(run: Run) -> dict[str, Any]:
    """Histograms of what is stored in files."""
    contents, error = stored_replay(run.root)
    if contents is None or not len(contents):
        return {"error": error, "trajectories": 0, "histograms": []}
    groups = env_groups(contents)
    unit, seconds = next((u for u in UNITS_S if contents.age_s.max() >= 2 * u[1]), UNITS_S[-1])
    everything = [("", np.ones(len(contents), bool))]
    histograms = [
        _histogram("Length", "timesteps", contents.lengths, groups),
        _histogram("Return", "sum of rewards", contents.returns, groups),
        _histogram("Age", f"{unit} since it was stored", contents.age_s / seconds, everything),
    ]
    if len(contents.priorities):
        ones = [("", np.ones(len(contents.priorities), bool))]
        histograms.append(_histogram("Priority", "error the learner last saw", contents.priorities, ones, True))
    return {
        "error": error,
        "trajectories": len(contents),
        "timesteps": int(contents.lengths.sum()),
        "environments": _by_environment(contents),
        "histograms": histograms,
    }


def _histogram(
    title: str, unit: str, values: np.ndarray, groups: Sequence[tuple[str, np.ndarray]], logarithmic: bool = False
) -> dict[str, Any]:
    edges = bin_edges(np.asarray(values, np.float64), logarithmic)
    counts = [{"name": name, "counts": np.histogram(values[mask], edges)[0].tolist()} for name, mask in groups]
    return {"title": title, "unit": unit, "edges": edges.tolist(), "groups": counts, "logarithmic": logarithmic}


def _by_environment(contents: Contents) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "trajectories": int(mask.sum()),
            "mean_return": float(contents.returns[mask].mean()),
            "mean_length": float(contents.lengths[mask].mean()),
        }
        for name, mask in env_groups(contents)
    ]


def settings_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every setting of any of the runs: its name, its text in each, and whether they differ. Raises OSError."""
    texts = [bindings(run.directory.config.read_text(encoding="utf-8")) for run in runs]
    names = sorted({name for text in texts for name in text})
    rows = [(name, [text.get(name) for text in texts]) for name in names]
    return [{"name": name, "values": values, "differs": len(set(values)) > 1} for name, values in rows]


def bindings(text: str) -> dict[str, str]:
    """What a configuration binds, as text; later lines win, and the modules of names are left out."""
    found = {}
    starts = list(STATEMENT.finditer(text))
    for this, following in zip(starts, [*starts[1:], None]):
        value = text[this.end() : None if following is None else following.start()]
        lines = [line.rstrip().removesuffix("\\") for line in value.splitlines() if not BESIDE.match(line)]
        scope, _, name = this.group(1).rpartition("/")
        short = ".".join(name.split(".")[-2:])
        found[f"{scope}/{short}" if scope else short] = " ".join(" ".join(lines).split())
    return found
