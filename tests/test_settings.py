"""Every setting is written down once; documents and help are made of it."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import pytest
from conftest import TESTS

from amago_ray import train
from amago_ray.agent import Agent
from amago_ray.envs.builtin import Counting
from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.replay.sampling.relabeling import HindsightRelabeler
from amago_ray.settings import SECTIONS, ExperimentSettings, check_values, table


def test_the_document_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["settings"]) == 0
    printed = capsys.readouterr().out
    assert printed == (TESTS.parent / "docs" / "settings.md").read_text(encoding="utf-8"), "write it anew"
    assert printed == table()


def test_every_setting_has_a_meaning_and_a_place() -> None:
    names = [field.name for field in fields(ExperimentSettings)]
    assert set(SECTIONS) <= set(names) and names[0] in SECTIONS
    for field in fields(ExperimentSettings):
        assert len(field.metadata["meaning"]) > 5 and not field.metadata["meaning"].endswith("."), field.name
        assert f"\n    {field.name} (" in str(ExperimentSettings.__doc__)
        assert f"| `{field.name}` |" in table()


@pytest.mark.parametrize(
    ("name", "value", "objection"),
    [
        ("batch_size", 0, "it must be an integer of 1 or more"),
        ("batch_size", True, "it must be an integer of 1 or more"),
        ("batch_size", 2.0, "it must be an integer of 1 or more"),
        ("traj_save_len", 2.5, "it must be an integer of 1 or more, or None"),
        ("train_batches_per_epoch", -1, "it must be an integer of 0 or more"),
        ("learning_rate", 0.0, "it must be a number above 0"),
        ("learning_rate", "fast", "it must be a number above 0"),
        ("learning_rate", float("nan"), "it must be a number above 0"),
        ("importance_exponent", 1.5, r"it must be a number in \[0, 1\]"),
        ("schedule", "alternating", "use one of 'auto', 'alternate', 'overlap', 'continuous'"),
        ("run_name", "..", "it names a folder"),
        ("run_name", "a/b", "it names a folder"),
        ("learner_cpus", 0, "it must be an integer of 1 or more, or None"),
        ("seed", -1, "it must be an integer of 0 or more"),
        ("seed", 2**32, "it must be an integer of 0 or more, and of 4,294,967,295 at most"),
    ],
)
def test_a_value_that_cannot_be_right(name: str, value: Any, objection: str) -> None:
    settings = ExperimentSettings(**{"run_name": "a", "make_train_env": Counting, "max_seq_len": 4, name: value})
    with pytest.raises(ValueError, match=rf"^Experiment\.{name}=.*: {objection}"):
        check_values(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("traj_save_len", 1e10),
        ("traj_save_len", None),
        ("wandb_mode", None),
        ("seed", 2**32 - 1),
        ("relabeler_type", partial(HindsightRelabeler, strategy="final")),
        ("relabeler_type", lambda: HindsightRelabeler()),
        ("exploration_wrapper_type", partial(partial(EpsilonGreedy), eps_start=0.5)),
        ("exploration_wrapper_type", None),
    ],
)
def test_a_value_that_may_be(name: str, value: Any) -> None:
    check_values(ExperimentSettings(**{"run_name": "a", "make_train_env": Counting, "max_seq_len": 4, name: value}))


def test_a_class_of_another_kind() -> None:
    settings = ExperimentSettings("a", Counting, 4, traj_encoder_type="GRUTrajEncodr")  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"Experiment\.traj_encoder_type='GRUTrajEncodr'.*did you mean 'GRUTrajEncoder'"
    ):
        check_values(settings)


@pytest.mark.parametrize("value", [Agent, int, partial(Agent, gamma=0.9), "Hindsight", 3])
@pytest.mark.parametrize(
    ("name", "base"), [("relabeler_type", "Relabeler"), ("exploration_wrapper_type", "ExplorationWrapper")]
)
def test_what_makes_another_kind(name: str, base: str, value: Any) -> None:
    settings = ExperimentSettings(**{"run_name": "a", "make_train_env": Counting, "max_seq_len": 4, name: value})
    with pytest.raises(TypeError, match=rf"^Experiment\.{name}=.*: it must be a subclass of {base}; "):
        check_values(settings)
