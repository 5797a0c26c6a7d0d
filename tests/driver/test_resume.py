"""What a run goes on from in its folder, and that nothing there is lost over it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ring_cases import tiny_agent

from amago_ray.agent import MultiTaskAgent
from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.resume import open_folder, state_to_resume, what_to_resume
from amago_ray.envs.builtin import Counting
from amago_ray.envs.makers import env_spaces
from amago_ray.nets.critics import NCriticsTwoHot
from amago_ray.replay.datasets import RowLayout
from amago_ray.run_directory import RunDirectory
from amago_ray.settings import ExperimentSettings
from amago_ray.watch.metrics import MetricsLog, Progress

LAYOUT = RowLayout(*env_spaces(Counting, None))


class NothingLogged:
    to_resume: dict[str, Any] = {"wandb_run_id": "of the original"}


class Folder:
    """The folder of a run `name` in which epochs were logged, states saved and policies kept."""

    def __init__(self, base: Path, name: str = "run"):
        self.directory = RunDirectory(base, name)
        self.settings = ExperimentSettings(name, Counting, 8, ckpt_base_dir=base, make_val_env=Counting, epochs=9)
        self.spec = tiny_agent(Counting)
        self.said: list[str] = []

    def trained(self, epochs: int, states: tuple[int, ...] = (), policies: tuple[int, ...] = ()) -> Folder:
        self.directory.create()
        log = MetricsLog(self.directory.root, resume=False)
        for epoch in range(epochs):
            log.log("train", {"Total Loss": 1.0}, Progress(epoch))
        log.close()
        for epoch in states:
            self.directory.save_training_state(epoch, lambda folder: None, self.state(epoch))
        for epoch in policies:
            self.directory.policy_epoch(epoch).write_bytes(b"weights")
        return self

    def state(self, epoch: int, spec: AgentSpec | None = None) -> dict[str, Any]:
        logged: Any = NothingLogged()
        ring = {"batches": 1, "weight_version": 1, "commits": 1, "validations": 0, "replay": {}}
        return json.loads(json.dumps(ring | what_to_resume(Progress(epoch), spec or self.spec, LAYOUT, logged)))

    def resume(self, how: Any = True, overwrite: bool = False) -> dict[str, Any]:
        state = state_to_resume(self.settings, self.directory, self.spec, LAYOUT, how, overwrite)
        open_folder(self.settings, self.directory, LAYOUT, state, self.said.append)
        return state

    def there(self) -> set[str]:
        return {str(path.relative_to(self.directory.root)) for path in self.directory.root.rglob("*")}


@pytest.mark.parametrize("how", [True, "auto"])
def test_a_folder_that_was_renamed_goes_on_under_its_new_name(tmp_path: Path, how: Any) -> None:
    Folder(tmp_path, "before").trained(4, states=(0, 3)).directory.root.rename(tmp_path / "run")
    folder = Folder(tmp_path)
    state = folder.resume(how)
    assert state["progress"]["epoch"] == 3 and state["wandb_run_id"] is None, "a copy does not log into the original"
    assert folder.directory.saved_epochs() == [0, 3] and folder.directory.load_run_state(3)["wandb_run_id"] is None
    assert folder.directory.saved_epochs("before") == []
    assert folder.said == ["the training states of 'before', which lie here, are taken over by 'run'"]
    assert folder.resume(how)["progress"]["epoch"] == 3 and len(folder.said) == 1


def test_states_of_this_run_go_before_those_of_others(tmp_path: Path) -> None:
    folder = Folder(tmp_path).trained(2, states=(1,))
    (folder.directory.training_states / "other_epoch_7").mkdir()
    (folder.directory.training_states / "other_epoch_7" / "run_state.json").write_text("{}")
    assert folder.resume()["progress"]["epoch"] == 1 and folder.directory.saved_epochs("other") == [7]


@pytest.mark.parametrize("how", [True, "auto"])
def test_states_of_several_other_runs_are_not_chosen_from(tmp_path: Path, how: Any) -> None:
    folder = Folder(tmp_path).trained(2, states=(1,))
    folder.directory.training_state(1).rename(folder.directory.training_state(1, "a"))
    folder.directory.save_training_state(0, lambda _: None, folder.state(0))
    folder.directory.training_state(0).rename(folder.directory.training_state(0, "b"))
    before = folder.there()
    with pytest.raises(ValueError, match="holds training states of 'a' and 'b', and none of 'run': .*--overwrite"):
        folder.resume(how)
    assert folder.there() == before


@pytest.mark.parametrize("how", [True, "auto"])
@pytest.mark.parametrize(("epochs", "policies"), [(2, ()), (1, (0,)), (4, (0, 3)), (0, (5,))])
def test_what_cannot_be_gone_on_from_is_not_removed(
    tmp_path: Path, how: Any, epochs: int, policies: tuple[int, ...]
) -> None:
    folder = Folder(tmp_path).trained(epochs, policies=policies)
    before = folder.there()
    said = f"holds {epochs} finished epochs and {len(policies)} policies, and no training state .*--overwrite"
    with pytest.raises(ValueError, match=said):
        folder.resume(how)
    assert folder.there() == before
    assert folder.resume(False, overwrite=True) == {} and not folder.directory.policy_epochs()


@pytest.mark.parametrize("how", [True, "auto"])
@pytest.mark.parametrize(("epochs", "under_way", "policies"), [(0, False, ()), (1, False, ()), (3, True, (0,))])
def test_a_run_that_was_killed_before_its_first_state_begins_anew(
    tmp_path: Path, how: Any, epochs: int, under_way: bool, policies: tuple[int, ...]
) -> None:
    folder = Folder(tmp_path).trained(epochs, policies=policies)
    if under_way:
        folder.directory.open_training_state(0)
    assert folder.resume(how) == {} and not (folder.directory.root / "metrics.jsonl").exists()


def agent(**settings: Any) -> AgentSpec:
    spec = tiny_agent(Counting)
    return replace(spec, agent_type=partial(spec.agent_type, **settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gamma": 0.9}, "Agent.gamma was 0.999 in the run, and is 0.9 now"),
        ({"popart": False}, "Agent.popart was True in the run, and is False now"),
        ({"reward_multiplier": 1}, "Agent.reward_multiplier was 10.0 in the run, and is 1.0 now"),
        (
            {"use_multigamma": False},
            r"Multigammas.discrete \(with Agent.use_multigamma\) was \[0.1, .*, and is \[\] now",
        ),
    ],
)
def test_values_of_something_else_are_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    folder = Folder(tmp_path).trained(1, states=(0,))
    before = folder.there()
    folder.spec = agent(**settings)
    with pytest.raises(ValueError, match=f"^resume: {said}.*; set it back, or choose another run_name$"):
        folder.resume()
    assert folder.there() == before
    state = {name: value for name, value in folder.state(0).items() if name != "values"}
    folder.directory.save_training_state(0, lambda _: None, state)
    assert folder.resume()["progress"]["epoch"] == 0, "a state that is older than this is taken as it was"


def test_another_scale_of_bins_is_refused(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    bins = partial(NCriticsTwoHot, n_layers=1, d_hidden=16, output_bins=64, max_return=100.0)
    multi_task = replace(folder.spec, agent_type=partial(MultiTaskAgent, num_critics=2))
    specs = [
        replace(multi_task, agent_type=partial(multi_task.agent_type, critic_type=partial(bins, min_return=low)))
        for low in (-50.0, -100.0)
    ]
    folder.spec = specs[0]
    folder.trained(1, states=(0,))
    assert folder.resume()
    folder.spec = specs[1]
    with pytest.raises(ValueError, match=r"min_return.* was \[-50.0, 100.0, True\] in the run, and is \[-100.0, "):
        folder.resume()
