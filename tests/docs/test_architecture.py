"""What the documents say of the code's structure is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_imports import LAYERS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_table_of_rooms_is_the_one_that_the_imports_are_held_to() -> None:
    table = ARCHITECTURE.split("## Rooms")[1].split("## ")[0]
    rows = [frozenset(re.findall(r"`([\w/]+)`", line.split("|")[1])) for line in table.splitlines() if "|" in line]
    assert [row for row in rows if row] == [layer for layer in LAYERS if layer != {"__init__"}]


def test_every_kind_of_change_names_a_file_that_exists() -> None:
    table = ARCHITECTURE.split("## Where a change goes")[1].split("## ")[0]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", table)
    assert len(named) > 15
    for name in named:
        places = [ROOT, ROOT / "amago_ray", ROOT / "amago_ray" / "nets"]
        assert any((place / name).exists() for place in places), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (document.parent / link).exists(), link


def test_every_report_that_was_tried_names_its_test() -> None:
    report = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
    rows = [line for line in report.splitlines() if line.startswith("| ") and not line.startswith("| reported")]
    assert len(rows) >= 10
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert named and all((ROOT / name).is_file() for name in named), row
