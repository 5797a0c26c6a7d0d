"""`amago-ray board` as a user gives it wrongly; `tests/system/browser_cycle.py` looks at what it serves."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from amago_ray import train


def test_a_port_in_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert train.main(["board", str(tmp_path), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"amago-ray: --host 127.0.0.1 --port {port}: something else is served there; choose another --port, or 0 for "
        "any that is free\n"
    )


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["nowhere"], "nowhere: there is no such folder"),
        ([".", "--port", "70000"], "--port 70000: it must be from 0 to 65535"),
    ],
)
def test_what_cannot_be_served(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["board", *arguments]) == 2
    assert capsys.readouterr().err == f"amago-ray: {expected}\n"


def test_without_its_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find_spec = importlib.util.find_spec

    def missing(name: str, *others: Any) -> Any:
        return None if name == "plotly" else find_spec(name, *others)

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert train.main(["board", "."]) == 2
    assert capsys.readouterr().err == "amago-ray: the board needs plotly: pip install 'amago_ray[board]'\n"
