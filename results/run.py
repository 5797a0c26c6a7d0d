"""Run a task of tasks.toml with several seeds, test every policy, and record all of it: `make results TASK=NAME`.

Each seed is trained in this process, on one core (see in_process.py); the command that does it alone is recorded with
what came of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amago_ray.commands.command_line import WITHOUT_DATA, latest_weights, load_experiment
from amago_ray.driver.plan import TEST_SEEDS
from amago_ray.driver.probe import probe
from amago_ray.rollout.evaluate import evaluate_policy, load_policy_weights
from amago_ray.watch.metrics import AVERAGE_RETURN, read_metrics
from results import in_process, report
from results.table import ROOT, Run, Task, tasks, trained_by

RUNS = ROOT / "runs"


def main() -> None:
    """Train the seeds, test and record each, and write the page anew."""
    options = _parser().parse_args()
    known = tasks()
    served, commit = trained_by(options.task, known), revision()
    if not served:
        raise SystemExit(f"{options.task} is no task of results/tasks.toml: {', '.join(known)}")
    torch.set_num_threads(1)  # the networks are small
    for seed in options.seeds:
        trained = in_process.parser().parse_args(served[0].arguments(seed))
        in_process.train(load_experiment([ROOT / file for file in trained.config], trained.set))
        for task in served:
            run = record(task, seed, commit)
            run.path.parent.mkdir(exist_ok=True)
            run.path.write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")
            print(
                f"{task.name} seed {seed}: {run.score:.3f} after {run.frames:,} frames, {run.wall_s:.0f} s", flush=True
            )
    report.write()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m results.run", description="run a task of results/tasks.toml and record what came of it"
    )
    parser.add_argument("task", metavar="TASK", help="a name in results/tasks.toml, or the run of several")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    return parser


def record(task: Task, seed: int, commit: str) -> Run:
    """What a finished run has come to: its curve, and a test of its last policy. commit: that it was trained with.

    Raises ValueError where it took more frames than the task allows.
    """
    folder = RUNS / task.run_name(seed)
    rows = read_metrics(folder)
    frames = rows[-1]["total_frames"]
    if frames > task.frames:
        raise ValueError(f"{task.name} took {frames} frames, and {task.frames} are allowed (results/tasks.toml)")
    return Run(
        task=task.name,
        seed=seed,
        command=task.command(seed),
        evaluation=shlex.join(_evaluation(task, seed)),
        returns=tuple(_test(task, seed, folder)),
        frames=frames,
        updates=rows[-1]["gradient_steps"],
        wall_s=round(rows[-1]["wall_s"], 1),
        curve=_curve(rows, task),
        revision=commit,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
    )


def _curve(rows: Sequence[dict[str, Any]], task: Task) -> dict[str, list[float]]:
    key = f"val/Average {task.metric or 'Total Return'} in {task.env}" if task.env else f"val/{AVERAGE_RETURN}"
    points = [row for row in rows if row.get(key) is not None]
    return {
        "frames": [row["total_frames"] for row in points],
        "wall_s": [round(row["wall_s"], 1) for row in points],
        "return": [round(row[key], 4) for row in points],
    }


def _evaluation(task: Task, seed: int) -> list[str]:
    """The command that plays the same rollouts again."""
    greedy = ["--greedy"] if task.greedy else []
    folder = f"runs/{task.run_name(seed)}"
    return ["amago-ray", "evaluate", folder, "--episodes", str(task.episodes), "--seed", str(seed), *greedy]


def _test(task: Task, seed: int, folder: Path) -> list[float]:
    experiment = load_experiment([folder / "config.txt"], WITHOUT_DATA)
    spec = probe(experiment)
    results = evaluate_policy(
        spec,
        load_policy_weights(spec, latest_weights(folder)),
        experiment.make_val_env,
        task.episodes,
        seed + TEST_SEEDS,
        not task.greedy,
    )
    mine = [result for result in results if task.env in ("", result.env_name)]
    return [round(result.metrics[task.metric] if task.metric else result.total_reward, 4) for result in mine]


def revision() -> str:
    """The commit that is measured, with "+" where the package or its configurations differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "amago_ray", "configs")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": next(models, platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


if __name__ == "__main__":
    main()
