"""The configurations of the suites compose: each file of an environment names the command that it is run by."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from amago_ray import config
from amago_ray.driver.probe import probe
from amago_ray.experiment import Experiment

CONFIGS = Path(__file__).parents[2] / "configs"
PARTS = ("models", "budgets", "sweeps")
FILES = sorted(path for path in CONFIGS.glob("*/*.gin") if path.parent.name not in PARTS)
TASKS = {"train": ["reach-v3", "push-v3"], "test": ["pick-place-v3"]}
# Whose packages the tests have.
BUILDABLE = ("control", "key_door", "maze_runner", "minigrid", "multi", "popgym", "rl2/bandit", "rl2/tabular", "tmaze")


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def files_of_the_command(path: Path) -> list[Path]:
    (command,) = re.findall(r"^#     amago-ray (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [CONFIGS.parent / name for name in re.findall(r"--config (\S+)", command)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_command_of_a_file_is_a_whole_experiment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of_the_command(path)
    assert [file.parent.name for file in files] == [path.parent.name, "models", "budgets"] and files[0] == path
    for name in ("metaworld", "metaworld.env_dict"):  # which lists the tasks of a benchmark
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(ML10_V3=TASKS, ML45_V3=TASKS))  # type: ignore[arg-type]
    config.load(files, ["Experiment.verbose = False"])
    experiment = Experiment()
    assert experiment.run_name not in ("", path.parent.name)
    if name_of(path).startswith(BUILDABLE):
        probe(experiment)


def test_models_and_budgets_go_with_any_environment() -> None:
    for part, others in (("models", "Experiment.epochs"), ("budgets", "traj_encoder_type")):
        for path in (CONFIGS / part).glob("*.gin"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"make_train_env|run_name|max_seq_len", text), path
            assert others not in text, path


def test_runs_have_names_of_their_own() -> None:
    names = [re.findall(r'^Experiment.run_name = "(.*)"$', path.read_text(), re.MULTILINE)[-1] for path in FILES]
    assert len(set(names)) == len(names)
