"""A suite whose package is not there says in one line what to install."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from amago_ray.envs.makers import check_env
from amago_ray.envs.suites import atari_games, make_atari, make_half_cheetah, make_minigrid, make_popgym, popgym_games
from amago_ray.envs.suites.extras import require

EXTRAS = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["optional-dependencies"]

MAKERS: list[tuple[Any, str, str]] = [
    (make_atari, "ale_py", "atari"),
    (make_half_cheetah, "mujoco", "mujoco"),
    (make_minigrid, "minigrid", "minigrid"),
    (make_popgym, "popgym", "popgym"),
]


@pytest.mark.parametrize(("maker", "module", "extra"), MAKERS)
def test_a_missing_package_ends_in_a_line_that_names_the_extra(
    maker: Any, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert extra in EXTRAS
    line = rf"{module} is not installed: pip install 'amago_ray\[{extra}\]'"
    with pytest.raises(ModuleNotFoundError, match=f"^{line}"):
        maker()
    with pytest.raises(ValueError, match=rf"^building the environment {maker.__name__} failed with .*{line}"):
        check_env(maker)


def test_lists_of_games_say_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "popgym", None)
    with pytest.raises(ModuleNotFoundError, match=r"'amago_ray\[popgym\]'"):
        popgym_games(("popgym-NeverHeardOfEasy-v0",))
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ValueError, match=r"make_atari with .*'amago_ray\[atari\]'"):
        check_env(atari_games(("Pong",)))


def test_what_a_package_lacks_itself_is_not_blamed_on_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_suite_of_games.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'a_package_that_nobody_has'"):
        require("a_suite_of_games", "games")
    assert require("json", "games").loads("1") == 1
