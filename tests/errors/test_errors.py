"""Whatever is wrong is said in one line, with exit status 2, in seconds, and nothing is left behind."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TESTS
from error_case import Case
from error_cases import GROUPS, page, row, shown
from error_scene import Scene, forget_finished_run

PAGE = (TESTS.parent / "docs" / "errors.md").read_text(encoding="utf-8")
CASES = [case for cases in GROUPS.values() for case in cases]
SECONDS = 20.0  # of this process, which waits for no other


@pytest.fixture(scope="module", autouse=True)
def no_run_is_kept() -> Iterator[None]:
    platform.processor()  # what Minari imports asks for it once, with a process
    yield
    forget_finished_run()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.what) for case in CASES])
def test_it_is_one_line(case: Case, scene: Scene) -> None:
    began = time.process_time()
    outcome = case.provoke(scene)
    assert time.process_time() - began < SECONDS
    assert outcome.status == 2, (outcome.status, outcome.out, outcome.err)
    for part in case.names:
        assert part in outcome.line, outcome.line
    assert case.began or set(outcome.left) <= {"runs"}, "nothing is left"
    assert row(case, shown(outcome, scene.folder)) in PAGE, "python tests/error_cases.py > docs/errors.md"


def test_the_page_has_these_rows_and_no_others() -> None:
    rows = dict(re.findall(r"^\| (.+?) \| `` (.+) `` \|$", PAGE, re.MULTILINE))
    assert len(rows) == len(CASES) >= 60
    assert page({what: line.replace("\\|", "|") for what, line in rows.items()}) == PAGE


def test_debug_shows_the_stack_above_the_line(scene: Scene) -> None:
    config = scene.config("Experiment.batch_size = 0")
    outcome = scene.command("--config", config, "--debug")
    stack, line = outcome.err.removesuffix("\n").rsplit("\n", 1)
    assert outcome.status == 2 and line == scene.command("--config", config).err.removesuffix("\n")
    assert stack.startswith("Traceback") and "check_values" in stack and "ValueError: Experiment.batch_size=0" in stack
    outcome = scene.command("evaluate", scene.run, "--episodes", "0", "--debug")
    assert outcome.err.count("\n") == 1, "nothing was raised there but the line itself"
