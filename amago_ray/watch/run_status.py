"""How a run is doing, out of its files alone: while it trains, after it, and from any process that sees its folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amago_ray.atomic_files import read_json
from amago_ray.config.value_checks import whole_number
from amago_ray.replay.inspection import Contents, find_stored_data, run_settings
from amago_ray.replay.storage.records import Corrupt
from amago_ray.replay.storage.segments import StorageError
from amago_ray.run_directory import RunDirectory
from amago_ray.watch.curves import CONFIG_FILE
from amago_ray.watch.metrics import AVERAGE_RETURN, AXES
from amago_ray.watch.run_log import RunLog

RECENT_EPOCHS = 10  # that rates are taken over
PATIENCE_EPOCHS, PATIENCE_S = 3, 60.0  # a run is silent when this many of its longest epochs, and this, have passed


@dataclass(frozen=True)
class Return:
    """An average return, and the epoch (from 1) that it is of."""

    value: float
    epoch: int


@dataclass(frozen=True)
class RunStatus:
    """What the files of a run say of it at one moment.

    state: "starting", "running", "silent", "stopped" (by a callback, Ctrl-C or SIGTERM: `reason`), "failed" (with the
    error `reason`) or "finished".
    age_s: since the newest row, or since the start where there is none yet. epoch: how many are finished.
    frames_per_s, updates_per_s: over the last RECENT_EPOCHS epochs, validations included; None before the first.
    saved: epochs (from 1) of complete training states. replay: what is stored, None where nothing is.
    replay_error: "cannot be read: ...", or "is damaged: ..." where some of it can.
    broken: lines of metrics.jsonl that are no rows, and were left out.
    killed: whether it is silent because its process is gone.
    """

    name: str
    state: str
    reason: str | None
    age_s: float
    epoch: int
    epochs: int
    frames: int
    updates: int
    wall_s: float
    frames_per_s: float | None
    updates_per_s: float | None
    collect_return: Return | None
    val_return: Return | None
    best_return: Return | None
    saved: tuple[int, ...]
    replay: Contents | None
    replay_error: str | None
    broken: int = 0
    killed: bool = False


def run_status(
    run_dir: Path, now: float | None = None, log: RunLog | None = None, look_into_replay: bool = True
) -> RunStatus:
    """Read the files of a run.

    now: in seconds since 1970, by default this moment. log: of this run, refreshed; None to read it now.
    look_into_replay: False leaves out what takes as long as much is stored.
    Raises ValueError, naming the folder, for one that is no run, or whose config.txt is damaged.
    """
    root = run_dir.resolve()
    directory = RunDirectory(root.parent, root.name)
    now = time.time() if now is None else now
    epochs, started = _epochs(config_of(run_dir)), directory.config.stat().st_mtime
    if log is None:
        log = RunLog(root)
        log.refresh()
    epoch, frames, updates, wall_s = (log.axes[name][-1] for name in AXES) if len(log) else (-1, 0, 0, 0.0)
    written = started if log.written_at is None else log.written_at
    age_s = max(now - max(written, started), 0.0)
    done = int(epoch) + 1
    stopped = read_json(directory.stopped, "reason") if directory.stopped.is_file() else {}
    frames_per_s, updates_per_s = _rates(log)
    replay, replay_error = stored_replay(root) if look_into_replay else (None, None)
    collected, vals = _returns(log, "collect"), _returns(log, "val")
    state = _state(log, done, epochs, stopped, age_s, just_started=started > written or not len(log))
    killed = state in ("starting", "running", "silent") and directory.was_killed()
    return RunStatus(
        name=root.name,
        state="silent" if killed else state,
        reason=stopped.get("reason"),
        age_s=age_s,
        epoch=done,
        epochs=epochs,
        frames=int(frames),
        updates=int(updates),
        wall_s=wall_s,
        frames_per_s=frames_per_s,
        updates_per_s=updates_per_s,
        collect_return=collected[-1] if collected else None,
        val_return=vals[-1] if vals else None,
        best_return=max(vals, key=lambda each: each.value, default=None),
        saved=tuple(saved + 1 for saved in directory.saved_epochs()),
        replay=replay,
        replay_error=replay_error,
        broken=log.broken,
        killed=killed,
    )


def config_of(run_dir: Path) -> Path:
    """A run's config.txt. Raises ValueError, naming the folder, for one that is no run, and a run below it."""
    config = run_dir / CONFIG_FILE
    if not config.is_file():
        below = min(run_dir.glob(f"*/{CONFIG_FILE}"), default=None)  # as a sweep's trials are
        advice = "" if below is None else f" {below.parent} is one"
        raise ValueError(f"{run_dir} has no config.txt; is it the folder of a run?{advice}")
    return config


def _epochs(config: Path) -> int:
    """How many epochs a run has. Raises ValueError, naming the file, where it does not say so."""
    settings = run_settings(config)
    if "epochs" not in settings:
        raise ValueError(f"{config} is damaged: it lacks Experiment.epochs")
    if wrong := whole_number(0)(settings["epochs"]):
        raise ValueError(f"{config} is damaged: Experiment.epochs={settings['epochs']!r}: {wrong}")
    return settings["epochs"]


def _state(log: RunLog, done: int, epochs: int, stopped: dict[str, Any], age_s: float, just_started: bool) -> str:
    """stopped: what the folder says of an end before the last epoch, empty where there was none."""
    if stopped:
        return "failed" if stopped.get("failed") else "stopped"
    if done >= epochs and len(log):
        return "finished"
    ends = [log.axes["wall_s"][row] for row in log.ends.values()]
    longest = max((after - before for before, after in zip([0.0, *ends], ends)), default=0.0)
    if age_s > PATIENCE_S + PATIENCE_EPOCHS * longest:
        return "silent"
    return "starting" if just_started else "running"


def _rates(log: RunLog) -> tuple[float | None, float | None]:
    """Frames and updates per second."""
    rows = list(log.ends.values())[-RECENT_EPOCHS - 1 :]
    if not rows:
        return None, None
    first = {name: 0.0 if len(rows) <= RECENT_EPOCHS else log.axes[name][rows[0]] for name in AXES}  # or all of the run
    took_s = max(log.axes["wall_s"][rows[-1]] - first["wall_s"], 1e-9)
    frames, updates = ((log.axes[n][rows[-1]] - first[n]) / took_s for n in ("total_frames", "gradient_steps"))
    return frames, updates


def _returns(log: RunLog, section: str) -> list[Return]:
    epochs = log.axes["epoch"]
    return [Return(value, int(epochs[row]) + 1) for row, value in log.finite(f"{section}/{AVERAGE_RETURN}")]


def stored_replay(root: Path) -> tuple[Contents | None, str | None]:
    """What is stored, and what is wrong with that, as a clause: that it cannot be read, or is damaged in part."""
    try:
        shards = find_stored_data(root).open()
    except ValueError:  # nothing is, or not in files
        return None, None
    except StorageError as error:
        return None, f"cannot be read: {error}"
    damage = [what for shard in shards for what in shard.damage]
    more = f" (and {len(damage) - 1:,} more)" if len(damage) > 1 else ""
    try:
        return Contents.of(shards), f"is damaged: {damage[0]}{more}" if damage else None
    except Corrupt as error:
        return None, f"cannot be read: {error}"
    finally:
        for shard in shards:
            shard.close()
