"""The configurations that come along: found by name, in the repository and in a wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gin
import pytest

from amago_ray import config, train
from amago_ray.config import shipped

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names must not depend on the repository being the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["tmaze", "tmaze.gin", "configs/tmaze.gin", "configs/tmaze"])
def test_they_have_names(name: str) -> None:
    assert shipped.find(name) == CONFIGS / "tmaze.gin"


def test_names_are_those_of_all_files() -> None:
    assert shipped.names() == sorted(
        path.relative_to(CONFIGS).as_posix().removesuffix(".gin") for path in CONFIGS.rglob("*.gin")
    )
    assert all(shipped.find(name) == CONFIGS / f"{name}.gin" for name in shipped.names())


def test_files_of_ones_own_come_first(tmp_path: Path) -> None:
    (tmp_path / "tmaze").mkdir()
    assert shipped.find("tmaze") == CONFIGS / "tmaze.gin", "a folder is no configuration"
    (tmp_path / "tmaze.gin").touch()
    assert shipped.find("tmaze") == Path("tmaze.gin") == shipped.find("tmaze.gin")
    assert shipped.find(tmp_path / "tmaze.gin") == tmp_path / "tmaze.gin"
    assert shipped.find("configs/tmaze.gin") == CONFIGS / "tmaze.gin"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("tmase", "did you mean 'tmaze'?"),
        ("passive_50", "did you mean 'tmaze/passive_50'?"),
        ("configs/popgym/game.gin", "did you mean 'popgym/games'?"),
        ("zzz/zzz.gin", "`amago-ray configs` lists those that do"),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_the_nearest(name: str, answer: str) -> None:
    expected = f"--config {name}: there is no such file, nor does one of that name come along; {answer}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        config.load([name])


@pytest.mark.parametrize("path", ["/zzz/tmaze.gin", "runs/tmaze/config.txt"])
def test_a_path_is_no_name(path: str) -> None:
    with pytest.raises(ValueError, match=f"^--config {re.escape(path)}: there is no such file$"):
        config.load([path])


def test_by_name_they_are_configurations_with_their_includes() -> None:
    config.load(["rl2/bandit_k5_n10", "models/gru", "budgets/frames_4m"])
    assert gin.query_parameter("Experiment.epochs") == 800
    assert gin.query_parameter("Experiment.run_name") == "bandit_k5_n10"


def test_a_file_of_ones_own_may_include_one(tmp_path: Path) -> None:
    (tmp_path / "mine.gin").write_text('include "tmaze.gin"\nExperiment.run_name = "mine"\n')
    config.load(["mine"])
    assert gin.query_parameter("TMaze.corridor_length") == 30
    assert gin.query_parameter("Experiment.run_name") == "mine"


def test_the_command_lists_and_prints_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tmaze.gin", "tmase", "secret.txt"):  # as `amago-ray configs tmaze > tmaze.gin` has made one already
        (tmp_path / name).write_text("here")
    assert train.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == shipped.names()
    assert all(len(line.split()) > 2 and len(line) <= 120 for line in lines), "each says what it is, on one line"
    assert train.main(["configs", "tmaze", "models/gru"]) == 0
    assert capsys.readouterr().out == "".join((CONFIGS / f"{name}.gin").read_text() for name in ("tmaze", "models/gru"))
    assert train.main(["configs", "tmase"]) == 2
    assert capsys.readouterr().err == (
        "amago-ray: tmase: no configuration of that name comes along; did you mean 'tmaze'?\n"
    )
    assert train.main(["configs", "secret.txt"]) == 2 and capsys.readouterr().out == ""


@pytest.mark.processes
def test_a_wheel_has_them(tmp_path: Path) -> None:
    """Built from a copy, so that nothing of an earlier build gets in; unpacked far from the repository."""
    source, unpacked = tmp_path / "source", tmp_path / "site-packages"
    for name in ("amago_ray", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment | more, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # As `pip wheel --no-deps --no-build-isolation` does.
    run(
        "-c",
        f"import os; os.chdir('source'); from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})",
    )
    (wheel,) = tmp_path.glob("amago_ray-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        archive.extractall(unpacked)
    package = {path.relative_to(source).as_posix() for path in (source / "amago_ray").rglob("*.*")}
    configs = {f"amago_ray/{path.relative_to(source).as_posix()}" for path in (source / "configs").rglob("*.*")}
    assert inside == package | configs
    code = (
        "from amago_ray.config import shipped; print(shipped.find('meta_frozen_lake'))\n"
        "from amago_ray import train; train.main(['configs', 'tmaze'])"
    )
    first, _, rest = run("-c", code, PYTHONPATH=str(unpacked)).partition("\n")
    assert first == str(unpacked / "amago_ray" / "configs" / "meta_frozen_lake.gin")
    assert rest == (CONFIGS / "tmaze.gin").read_text()
