"""Time and frames to a named return: ours beside sb3-contrib's RecurrentPPO and RLlib's PPO with an LSTM, in turn.

Four tasks, three seeds. The peers come from the package index, into an environment of their own (build/peers). All get
16 of the same environments, networks of our configurations' widths, and, as ours, the last action and reward beside the
observation; what else they are, is their packages' defaults. A run counts as there when the mean return of its latest
training rollouts, exploration included, reaches the task's; its clock starts when everything is ready.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median

import measure
from measure import ROOT, Column, Row, Table

TARGETS = {"lake": 3.5, "tmaze": 0.9, "cartpole": 400.0, "pendulum": -300.0}  # returns
SYSTEMS = ("ours", "RecurrentPPO", "RLlib PPO-LSTM")
ENVIRONMENT = ROOT / "build" / "peers"
PACKAGES = ("ray[rllib]==2.60.0", "sb3-contrib==2.9.2", "gin-config", "gymnasium[classic-control]")
TORCH = "torch==2.13.0"
TICK_S = 0.5  # between two looks at a run's processes
START_S = 600.0  # to be ready

TABLES = (
    Table(
        "To the named return: medians over seeds, with the range",
        (
            Column("task", "task"),
            Column("target", "return"),
            Column("system", "system"),
            Column("reached", "reached"),
            Column("frames", "frames", ",.0f"),
            Column("wall_s", "seconds", ",.0f"),
            Column("cpu_s", "core seconds", ",.0f"),
            Column("frames_per_cpu_s", "frames per core second", ",.0f"),
            Column("best", "best return", ".2f"),
        ),
    ),
)


def peers_python() -> Path:
    """The interpreter of the peers' environment, which is made where it is not there yet."""
    python = ENVIRONMENT / "bin" / "python"
    installed = ENVIRONMENT / ".installed"
    wanted = "\n".join((TORCH, *PACKAGES))
    if not (installed.is_file() and installed.read_text(encoding="utf-8") == wanted):
        measure.say(f"making {ENVIRONMENT}")
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        # PyTorch first and by itself: what is picked along with others can be another build.
        for packages in ((TORCH,), (TORCH, *PACKAGES)):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        installed.write_text(wanted, encoding="utf-8")
    return python


class ProcessTree:
    """Processor time of a process and all that descend from it, those that have ended included."""

    def __init__(self, root: int):
        self._root = root
        self._ticks: dict[tuple[int, int], int] = {}  # (pid, when it started) -> the most that was seen

    def cpu_s(self) -> float:
        processes = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            processes[int(stat.parent.name)] = int(fields[1]), int(fields[19]), int(fields[11]) + int(fields[12])
        for pid, (_, started, ticks) in processes.items():
            ancestor = pid
            while ancestor in processes and ancestor != self._root:
                ancestor = processes[ancestor][0]
            if ancestor == self._root:
                self._ticks[pid, started] = ticks
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")


def run_one(system: str, task: str, seed: int, budget_s: float) -> Row:
    """Train until the return is there or `budget_s` core seconds are used, and end it.

    points: [seconds, core seconds, frames, return] of each epoch.
    """
    python = Path(sys.executable) if system == "ours" else peers_python()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [python, ROOT / "benchmarks" / "peer_run.py", system, task, str(seed)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        return watch(process, TARGETS[task], budget_s)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def watch(process: subprocess.Popen[str], target: float, budget_s: float) -> Row:
    """Follow a run until it is there or has used its time. Raises SystemExit if it ends by itself."""
    tree, points = ProcessTree(process.pid), []
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    began, ready = time.perf_counter(), None
    while ready is None or tree.cpu_s() - ready[1] <= budget_s:
        try:
            line = lines.get(timeout=TICK_S)
        except queue.Empty:
            line = ""
        now, cpu_s = time.perf_counter(), tree.cpu_s()
        if line is None or (ready is None and now - began > START_S):
            raise SystemExit(f"{process.args} has ended by itself, or is not ready: run it by hand to see why")
        if not line.startswith("{"):
            continue
        facts = json.loads(line)
        if "ready" in facts:
            ready = now, cpu_s
            continue
        assert ready is not None
        points.append([now - ready[0], cpu_s - ready[1], facts["frames"], facts["return"]])
        if facts["return"] >= target:
            break
    return {"points": points, "reached": bool(points) and points[-1][3] >= target}


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    """Every line that a process prints, and None at its end."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def summary(task: str, system: str, runs: Sequence[Row]) -> Row:
    """Of runs that got there: what it took. Of all: how many did, and the best return."""
    there = [run["points"][-1] for run in runs if run["reached"]]
    used = [run["points"][-1] for run in runs if run["points"]]

    def spread(values: Sequence[float]) -> dict[str, float] | None:
        return {"median": median(values), "min": min(values), "max": max(values)} if values else None

    return {
        "task": task,
        "target": TARGETS[task],
        "system": system,
        "reached": f"{len(there)} of {len(runs)}",
        "wall_s": spread([point[0] for point in there]),
        "cpu_s": spread([point[1] for point in there]),
        "frames": spread([point[2] for point in there]),
        "frames_per_cpu_s": spread([point[2] / max(point[1], 1e-9) for point in used]),
        "best": spread([max(point[3] for point in run["points"]) for run in runs if run["points"]]),
        "runs": [run["points"] for run in runs],
    }


def draw(rows: Sequence[Row], path: Path) -> None:
    """Returns over core seconds, a panel for each task, a line for each run."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(3.6 * len(tasks), 3.2), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for row in (row for row in rows if row["task"] == task):
            color = f"C{SYSTEMS.index(row['system'])}"
            for number, points in enumerate(row["runs"]):
                cpu_s, returns = [point[1] for point in points], [point[3] for point in points]
                axes.plot(cpu_s, returns, color=color, lw=1.2, label=None if number else row["system"])
        axes.axhline(TARGETS[task], color="0.6", lw=0.8, ls="--")
        axes.set(title=task, xlabel="core seconds")
    figure.axes[0].set_ylabel("return of training rollouts")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    tasks = [task for task in TARGETS if options.only in task]
    found: dict[tuple[str, str], list[Row]] = {}
    for seed, task, system in product(range(options.seeds), tasks, options.systems):  # in turn
        measure.say(f"{task}, seed {seed}: {system}")
        found.setdefault((task, system), []).append(run_one(system, task, seed, options.seconds))
    rows = [summary(task, system, found[task, system]) for task, system in product(tasks, options.systems)]
    options.out.mkdir(parents=True, exist_ok=True)
    draw(rows, options.figure)
    return {"budget_core_s": options.seconds, "seeds": options.seeds}, rows


if __name__ == "__main__":
    arguments = measure.parser("peers", __doc__, seconds=300.0)
    arguments.add_argument("--seeds", type=int, default=3, help="runs of each (%(default)s)")
    arguments.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    arguments.add_argument("--figure", type=Path, default=ROOT / "docs" / "peers.png")
    parsed = arguments.parse_args()
    if parsed.quick:
        parsed.seconds, parsed.seeds = min(parsed.seconds, 5.0), 1
    measure.main(parsed, TABLES, run)
