"""The page of results: equal to the data, and its statistics and verdicts."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from amago_ray import config
from amago_ray.commands.train import _parser
from results import report
from results.table import RESULTS, ROOT, Published, Run, Task, runs, tasks

PUBLISHED = Published(6.7, "Theirs", "1M", "https://example.org")
TASK = Task("game", "A game", ("a.gin", "b.gin"), 100, PUBLISHED, greedy=True)


def run_of(seed: int, score: float) -> Run:
    curve = {"frames": [50, 100], "wall_s": [1.0, 2.0], "return": [0.0, score]}
    machine = {"cpu": "a CPU", "cores": 2, "torch": "2"}
    returns = (score - 0.5, score + 0.5)
    return Run("game", seed, "amago-ray", "evaluate", returns, 100, 10, 60.0, curve, "abc", "2026-01-01", machine)


def test_the_page_is_what_the_data_say() -> None:
    assert report.PAGE.read_text(encoding="utf-8") == report.page(tasks())


def test_the_readme_s_table_is_what_the_data_say() -> None:
    text = report.README.read_text(encoding="utf-8")
    assert report.readme(tasks(), text) == text
    assert f"{report.MARKS[1]}" in text and len(re.findall(r"^\| .*\(https://", text, re.MULTILINE)) >= 5


def test_the_readme_s_table(tmp_path: Path) -> None:
    below = replace(TASK, name="other", title="Another", published=replace(PUBLISHED, value=9.0))
    for task in (TASK, below):
        (tmp_path / task.name).mkdir()
        run = run_of(0, 6.75)
        (tmp_path / task.name / "seed_0.json").write_text(json.dumps(asdict(run)), encoding="utf-8")
    text = f"before\n{report.MARKS[0]}stale\n{report.MARKS[1]}after\n"
    written = report.readme({"game": TASK, "other": below, "unknown": replace(TASK, name="none")}, text, tmp_path)
    assert written.startswith("before\n") and written.endswith("after\n") and "stale" not in written
    assert "| A game | **6.75** | Theirs [6.7](https://example.org) | 100, 1M |\n| Another | 6.75 |" in written
    assert "1 of 2 tasks are at or above" in written
    assert report.readme({"game": TASK, "other": below}, written, tmp_path) == written


def test_neighbours_with_one_number_share_a_row_of_the_readme(tmp_path: Path) -> None:
    games = {
        "a": replace(TASK, name="a", title="Maze, length 5"),
        "b": replace(TASK, name="b", title="Maze, length 50", published=replace(PUBLISHED, frames="2M")),
        "c": replace(TASK, name="c", title="Maze, length 500", published=replace(PUBLISHED, value=7.0)),
    }
    for task, score in zip(games, (6.75, 5.0, 8.0), strict=True):
        (tmp_path / task).mkdir()
        (tmp_path / task / "seed_0.json").write_text(json.dumps(asdict(run_of(0, score))), encoding="utf-8")
    written = report.readme(games, f"{report.MARKS[0]}{report.MARKS[1]}", tmp_path)
    theirs = "Theirs [{}](https://example.org)"
    assert f"| Maze, length 5; 50 | **6.75**; 5.00 | {theirs.format(6.7)} | 100, 1M; 100, 2M |" in written
    assert f"| Maze, length 500 | **8.00** | {theirs.format(7)} | 100, 1M |" in written
    assert "2 of 3 tasks are at or above" in written


def test_what_is_recorded_belongs_to_the_table() -> None:
    known = tasks()
    for folder in (path for path in RESULTS.iterdir() if path.is_dir() and path.name != "__pycache__"):
        for run in runs(folder.name):
            task = known[run.task]
            assert run.path == folder / f"seed_{run.seed}.json" and 100 <= len(run.returns) <= task.episodes
            assert task.env or len(run.returns) == task.episodes  # one environment has a part of them
            assert run.frames <= task.frames
            on_ray = shlex.join(["amago-ray", *task.arguments(run.seed), "--no-final-test"])
            assert run.command in (task.command(run.seed), on_ray)


@pytest.mark.parametrize("task", tasks().values(), ids=lambda task: task.name)
def test_every_command_is_one(task: Task) -> None:
    options = _parser().parse_args(task.arguments(seed=3))
    config.load([ROOT / file for file in options.config], options.set)
    assert config.is_bound("Experiment", "make_train_env") and task.published.url.startswith("https://")


def test_summary_is_of_the_seeds() -> None:
    summary = report.summarize([run_of(seed, score) for seed, score in enumerate((1.0, 2.0, 3.0, 10.0))])
    assert summary.scores == (1.0, 2.0, 3.0, 10.0)
    assert summary.mean == 4.0 and summary.iqm == 2.5  # the least and the greatest of four are trimmed
    assert 1.0 <= summary.low < 4.0 < summary.high <= 10.0
    alike = report.summarize([run_of(seed, 5.0) for seed in range(3)])
    assert (alike.low, alike.mean, alike.high) == (5.0, 5.0, 5.0)


@pytest.mark.parametrize(
    ("scores", "reaches", "who"),
    [
        ((6.66, 6.66), True, "-"),  # 6.7 to the digit that is published
        ((6.64, 6.64), False, "published"),
        ((6.5, 7.0), True, "-"),
        ((6.2, 6.9), False, "-"),
        ((6.9, 7.0), True, "ours"),
    ],
)
def test_verdicts(scores: tuple[float, ...], reaches: bool, who: str) -> None:
    ours = report.summarize([run_of(seed, score) for seed, score in enumerate(scores)])
    assert report.at_or_above(TASK, ours) is reaches
    assert report.better(TASK, ours) == who


@pytest.mark.parametrize(("last", "reaches"), [(0.48, False), (0.98, True)])
def test_most_of_a_success_rate_is_not_the_whole_of_it(last: float, reaches: bool) -> None:
    success = replace(TASK, published=replace(PUBLISHED, value=1.0))
    ours = report.summarize([run_of(seed, score) for seed, score in enumerate((1.0, 1.0, last))])
    assert report.at_or_above(success, ours) is reaches


def test_page_of_some_data(tmp_path: Path) -> None:
    (tmp_path / "game").mkdir()
    for seed, score in enumerate((6.9, 7.1)):
        text = json.dumps(asdict(run_of(seed, score)))
        (tmp_path / "game" / f"seed_{seed}.json").write_text(text, encoding="utf-8")
    page = report.page({"game": TASK, "other": replace(TASK, name="other", title="Another")}, tmp_path)
    assert "| A game | **7.00** | 7.00 | 6.90 ... 7.10 | 2 | 100 | [Theirs 6.7](https://example.org) | 1M |" in page
    assert "1 of 1 tasks are at or above" in page and "Not run: Another." in page
