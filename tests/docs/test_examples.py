"""What lies in examples/ runs, with small budgets, and its README names all of it."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from conftest import TESTS, TINY_NETWORKS

from amago_ray import config

EXAMPLES = TESTS.parent / "examples"
# Over what a script chooses: it binds before it makes its experiment, so these are given as defaults of the fixture.
SMALL = {"train_timesteps_per_epoch": 24, "train_batches_per_epoch": 2, "batch_size": 4, "parallel_actors": 4}


def run_example(name: str, *arguments: str) -> Any:
    """What `main` of a script returns, run as `python examples/NAME ARGUMENTS` is."""
    return runpy.run_path(str(EXAMPLES / name), run_name="example")["main"](list(arguments))


@pytest.fixture
def small(ray_instance: None, shared_processes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets of seconds, whatever a script asks for, and networks of width 16, in a folder of its own."""
    import amago_ray
    from amago_ray.experiment import Experiment

    def make(**settings: Any) -> Experiment:
        config.load([], [*TINY_NETWORKS, *(f"Experiment.{name} = {value}" for name, value in SMALL.items())])
        given = {name: value for name, value in settings.items() if name not in SMALL}
        return Experiment(**given, num_rollout_workers=1, replay_capacity_gb=0.02, verbose=False)

    monkeypatch.setattr(amago_ray, "Experiment", make, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])  # as Python has it for a script


@pytest.mark.usefixtures("small")
def test_an_environment_of_ones_own_and_its_policy_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0.0 <= run_example("custom_environment.py", "--epochs", "1") <= 1.0
    assert re.search(r"found in \d+% of 200 rollouts, after [123]\.\d\d guesses", capsys.readouterr().out)
    run_example("policy_in_use.py", "runs/guess_the_number", "--rollouts", "3")
    assert (
        len(re.findall(r"^the number is \d: (?:\d \(\w+\)(?:, )?){1,3}$", capsys.readouterr().out, re.MULTILINE)) == 3
    )


@pytest.mark.usefixtures("small")
def test_meta_rl() -> None:
    assert len(run_example("meta_rl.py", "--epochs", "1")) == 5


@pytest.mark.usefixtures("small")
def test_offline() -> None:
    recorded, learned = run_example("offline.py", "--epochs", "1", "--rollouts", "10")
    assert recorded > 60 and learned > 5  # the controller is better than chance, which falls after 20 steps
    assert not list(Path("runs/offline/replay").rglob("*.segment")), "nothing is collected"


@pytest.mark.usefixtures("small")
def test_several_tasks() -> None:
    assert set(run_example("multi_task.py", "--epochs", "1")) == {2, 4, 6}


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells, one after the other; and it is kept with the outputs of a whole run."""
    monkeypatch.setenv("EPOCHS", "1")
    matplotlib.use("Agg")
    cells = json.loads((EXAMPLES / "what_memory_is_worth.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in code:
        exec("".join(cell["source"]), names)
    assert {len(values) for values in names["returns"].values()} == {2}
    assert re.search(r"^GRU: -?\d\.\d\d\nno memory: -?\d\.\d\d$", capsys.readouterr().out, re.MULTILINE)
    kept = "".join(text for cell in code for output in cell["outputs"] for text in output.get("text", ()))
    assert "GRU: 1.00\n" in kept, "with memory it is solved"
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])


def test_the_table_names_them_all() -> None:
    listed = re.findall(r"^\| \[`([\w.]+)`\]", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))
