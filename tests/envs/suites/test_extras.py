"""A suite whose package is not there says in one line what to install."""

from __future__ import annotations

import re
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from amago_ray.envs import suites
from amago_ray.envs.makers import check_env
from amago_ray.envs.suites.extras import require

ROOT = Path(__file__).parents[3]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

# Of every maker what it is called with, the package that it asks for first, and the extra that brings it.
MAKERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "atari_games": ({}, "ale_py", "atari"),
    "make_atari": ({}, "ale_py", "atari"),
    "make_crafter": ({}, "crafter", "crafter"),
    "make_dm_control": ({}, "dm_control", "dm-control"),
    "make_envpool": ({}, "envpool", "envpool"),
    "make_gymnax": ({}, "gymnax", "gymnax"),
    "make_half_cheetah": ({}, "mujoco", "mujoco"),
    "make_metaworld": ({}, "metaworld", "metaworld"),
    "make_minigrid": ({}, "minigrid", "minigrid"),
    "make_no_velocities": ({"env_id": "Hopper-v5"}, "mujoco", "mujoco"),
    "make_popgym": ({}, "popgym", "popgym"),
    "make_xland": ({}, "xminigrid", "xland"),
    "metaworld_tasks": ({}, "metaworld", "metaworld"),
    "popgym_games": ({}, "popgym", "popgym"),
    "share_spaces": ({"tasks": [suites.make_popgym]}, "popgym", "popgym"),
}


def test_every_suite_is_tried_and_every_extra_is_pinned() -> None:
    assert sorted(MAKERS) == sorted(suites.__all__)
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for _, _, extra in MAKERS.values():
        named = {re.split(r"[\[<>=]", requirement)[0] for requirement in EXTRAS[extra]}
        assert named <= pinned, extra


@pytest.mark.parametrize("name", MAKERS)
def test_a_missing_package_ends_in_a_line_that_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs, module, extra = MAKERS[name]
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    line = rf"{module} is not installed: pip install 'amago_ray\[{extra}\]'"
    maker = partial(getattr(suites, name), **kwargs)
    if name.startswith("make_"):
        with pytest.raises(ModuleNotFoundError, match=f"^{line}"):
            maker()
        with pytest.raises(ValueError, match=rf"^building the environment {name}.* failed with .*{line}"):
            check_env(maker)
    else:
        with pytest.raises((ModuleNotFoundError, ValueError), match=line):
            check_env(maker())


def test_what_a_package_lacks_itself_is_not_blamed_on_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_suite_of_games.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'a_package_that_nobody_has'"):
        require("a_suite_of_games", "games")
    assert require("json", "games").loads("1") == 1
