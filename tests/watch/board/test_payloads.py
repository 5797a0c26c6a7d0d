"""What a page is told of settings, replay, and runs that cannot be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest.mock import Mock

import pytest
from watch.test_run_status import make_run

from amago_ray.watch.board.library import Library, Run
from amago_ray.watch.board.payloads import bindings, list_of_runs, run_details, run_row, settings_of, stored
from amago_ray.watch.metrics import finite_json

CONFIG = """\
# ====
# As it was configured
import some.module
from amago_ray.agent import actor_critic

A.x = 1
train/Agent.gamma = 0.9
amago_ray.nets.actors.Actor.layers = \\
    [1,
     2]
Experiment.make_env = @Some()
# Experiment.odd was given in Python: <function>
A.x = 2
macro = 'a = b'
import another
"""


def test_what_a_configuration_binds() -> None:
    assert bindings(CONFIG) == {
        "A.x": "2",
        "train/Agent.gamma": "0.9",
        "Actor.layers": "[1, 2]",
        "Experiment.make_env": "@Some()",
        "macro": "'a = b'",
    }
    assert bindings("") == {}


def test_how_runs_differ(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", 0, learning_rate=1e-3, seed=1)
    other = make_run(tmp_path / "b", 0, learning_rate=3e-4)
    rows = {row["name"]: row for row in settings_of([Run("a", first.root), Run("b", other.root)])}
    assert rows["Experiment.learning_rate"]["values"] == ["0.001", "0.0003"]
    assert {name for name, row in rows.items() if row["differs"]} == {"Experiment.learning_rate", "Experiment.seed"}
    assert rows["Experiment.seed"]["values"] == ["1", None]


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    good, bad = make_run(tmp_path / "good", 2), make_run(tmp_path / "bad", 2)
    library = Library([tmp_path])
    library.scan()
    library.refresh(10.0)
    (bad.root / "stopped.json").write_text("{half")
    rows = {row["id"]: row for row in list_of_runs(library, True)["runs"]}
    assert rows["good/run"]["epoch"] == 2 and "error" not in rows["good/run"]
    assert "error" in rows["bad/run"]
    json.dumps(finite_json(rows), allow_nan=False)
    assert good.root.is_dir()


def test_a_log_that_may_not_be_read_is_an_error_of_its_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "good", 2), make_run(tmp_path / "bad", 2)
    library = Library([tmp_path])
    library.scan()
    refused = PermissionError(13, "Permission denied", "metrics.jsonl")
    log = library.runs["bad/run"].log
    with monkeypatch.context() as patch:
        patch.setattr(log, "refresh", Mock(side_effect=refused))
        assert library.refresh(10.0)
        rows = {row["id"]: row for row in list_of_runs(library, True)["runs"]}
    assert rows["good/run"]["epoch"] == 2
    assert rows["bad/run"] == {"id": "bad/run", "error": "[Errno 13] Permission denied: 'metrics.jsonl'"}
    library.refresh(10.0)
    assert run_row(library.runs["bad/run"])["epoch"] == 2, "when it may be read again"


def test_a_run_without_metrics_has_a_row_and_details(tmp_path: Path) -> None:
    run = Run("run", make_run(tmp_path, 0).root)
    row = run_row(run)
    assert row["epoch"] == 0 and row["bound"] is None and row["state"] in ("starting", "silent")
    about = run_details(run)
    assert (
        about["epochs"] == []
        and about["bound"] is None
        and about["events"] == about["media"] == about["policies"] == []
    )
    assert about["counts"] == {"Worker Deaths": 0, "Environment Failures": 0}
    assert stored(run)["trajectories"] == 0


def test_numbers_that_json_has_no_word_for() -> None:
    value = {"a": [1.0, math.nan, {"b": -math.inf}], "c": (math.inf, "text", None, 3)}
    assert finite_json(value) == {"a": [1.0, None, {"b": None}], "c": [None, "text", None, 3]}
