"""Every setting is written down once; documents and help are made of it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any, get_args

import gin
import numpy as np
import pytest
from conftest import TESTS

from amago_ray import Experiment, train
from amago_ray.agent import Agent
from amago_ray.config.value_types import hints_of
from amago_ray.driver.probe import probe
from amago_ray.envs.builtin import Counting
from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.replay.sampling.relabeling import HindsightRelabeler
from amago_ray.settings import CHANGEABLE, SECTIONS, SETTINGS, ExperimentSettings, check_values, table


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


OF_NUMPY = {bool: np.bool_, int: np.int64, float: np.float32}


def numbers() -> dict[str, Any]:
    """Every setting that takes a number or a truth value -> one of NumPy that it may have."""
    found = {}
    for field in fields(ExperimentSettings):
        hint = hints_of(ExperimentSettings)[field.name]
        kind = next((kind for kind in OF_NUMPY if kind in (hint, *get_args(hint))), None)
        if kind is not None:
            default = field.default if field.default not in (None, MISSING) else 1
            found[field.name] = OF_NUMPY[kind](default)
    return found


def test_numbers_of_numpy_become_pythons_own() -> None:
    given = numbers()
    assert {"epochs", "learning_rate", "max_seq_len", "traj_save_len", "verbose"} <= given.keys()
    settings = ExperimentSettings(**{"run_name": "a", "make_train_env": Counting, **given})
    check_values(settings)
    for name, value in given.items():
        taken = getattr(settings, name)
        assert type(taken) in OF_NUMPY and taken == value, name


def test_an_experiment_of_numpys_numbers() -> None:
    gin.bind_parameter("Experiment.epochs", np.int64(2))
    experiment = Experiment(run_name="a", make_train_env=Counting, max_seq_len=np.int64(4), seed=np.int64(3))
    assert type(experiment.epochs) is type(experiment.max_seq_len) is int
    assert probe(experiment).seed == 3


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


def experiment(**changes: Any) -> Experiment:
    return Experiment(**({"run_name": "a", "make_train_env": Counting, "max_seq_len": 4} | changes))


@pytest.mark.parametrize("stage", ["new", "running", "closed"])
def test_a_setting_that_is_changed_is_checked_as_one_that_is_given(stage: str) -> None:
    x = experiment()
    x._stage = stage
    with pytest.raises(ValueError, match=r"^Experiment\.val_interval=0: it must be an integer of 1 or more$"):
        x.val_interval = 0
    x.epochs = np.int64(3)  # type: ignore[assignment]
    assert type(x.epochs) is int and x.epochs == 3 and x.val_interval == 20


def test_only_what_is_read_again_may_change_while_a_run_goes_on() -> None:
    x = experiment()
    x.learning_rate = 0.5
    x._stage = "running"
    for name in SETTINGS:
        if name in CHANGEABLE:
            setattr(x, name, getattr(x, name))
            continue
        with pytest.raises(AttributeError, match=rf"^Experiment\.{name}=.*: this experiment has started with .*resume"):
            setattr(x, name, getattr(x, name))
    assert x.learning_rate == 0.5
    x._stage = "closed"
    x.learning_rate = 0.25


@pytest.mark.parametrize(
    ("name", "setting"),
    [("batchsize", "batch_size"), ("learnig_rate", "learning_rate"), ("val_intervall", "val_interval")],
)
def test_a_misspelt_attribute(name: str, setting: str) -> None:
    with pytest.raises(AttributeError, match=f"^Experiment has no setting {name!r}; did you mean {setting!r}?"):
        setattr(experiment(), name, 3)


class Own(Experiment):
    epoch: int
    batchsize = 3

    def on_checkpoint_loaded(self) -> None:
        self.epoch, self.batchsize, self._epoch, self.loaded = 1, 2, 3, True


@dataclass
class OwnFields(Experiment):
    val_intervals: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.started = False
        super().__post_init__()


def test_attributes_of_a_subclass_are_its_own() -> None:
    own = Own(run_name="a", make_train_env=Counting, max_seq_len=4)
    own.on_checkpoint_loaded()
    assert (own.epoch, own.batchsize, own._epoch, own.loaded) == (1, 2, 3, True)
    fields_of_it = OwnFields(run_name="a", make_train_env=Counting, max_seq_len=4, val_intervals=(2,))
    fields_of_it.val_intervals = (3,)
    assert fields_of_it.val_intervals == (3,) and not fields_of_it.started
