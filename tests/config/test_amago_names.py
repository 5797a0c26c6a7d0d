"""Every name of AMAGO 3.3: the same here, one that stands for another, or absent with a reason in docs/amago.md.

The table is amago_names.json. kind: "setting" (an argument that gin gives), "class", "method", "flag" or "function" of
`cli_utils`. here: "same", "alias" or "absent". example: a value of AMAGO's of an alias.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin
import pytest
from conftest import TESTS

from amago_ray import Experiment, cli_utils, config
from amago_ray.config import accept_amago_arguments, amago_names, reject_unknown_arguments
from amago_ray.envs.builtin import Counting
from amago_ray.nets.scaling import PopArt
from amago_ray.settings import env_processes

DOCUMENT = (TESTS.parent / "docs" / "amago.md").read_text(encoding="utf-8")
TABLE: list[dict[str, str]] = json.loads((TESTS / "config" / "amago_names.json").read_text(encoding="utf-8"))

SAME_MODULES = (
    "amago.agent",
    "amago.cli_utils",
    "amago.envs",
    "amago.envs.exploration",
    "amago.experiment",
    "amago.nets.cnn",
    "amago.nets.traj_encoders",
    "amago.nets.tstep_encoders",
)


def rows(kind: str, here: str) -> list[Any]:
    found = [row for row in TABLE if (row["kind"], row["here"]) == (kind, here)]
    return [pytest.param(row, id=f"{row['owner']}.{row['argument']}") for row in found]


def takes(configurable: Any, argument: str) -> bool:
    """Whether a class or function has an argument, be it one that it hands on to its base class."""
    for owner in inspect.getmro(configurable) if inspect.isclass(configurable) else (configurable,):
        if inspect.isclass(owner) and "__init__" not in owner.__dict__:
            continue
        parameters = inspect.signature(owner.__init__ if inspect.isclass(owner) else owner).parameters
        if argument in parameters:
            return True
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return False
    return False


@pytest.mark.parametrize("row", rows("setting", "same"))
def test_a_setting_of_the_same_name(row: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """By the short name, and by AMAGO's full one, without a notice. A macro stands for a value of any type."""
    config.load([], [f"{row['module']}.{row['owner']}.{row['argument']} = %full"])
    assert repr(gin.query_parameter(f"{row['owner']}.{row['argument']}")) == "%full"
    config.load([], [f"{row['owner']}.{row['argument']} = %short"])
    assert repr(gin.query_parameter(f"{row['owner']}.{row['argument']}")) == "%short"
    assert takes(gin.get_configurable(row["owner"]), row["argument"])
    assert not caplog.records


@pytest.mark.parametrize("row", rows("class", "same"))
def test_a_class_of_the_same_name(row: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    config.load([], [f"kept = @{row['module']}.{row['owner']}", "Experiment.run_name = %kept"])
    assert not caplog.records


@pytest.mark.parametrize("row", rows("setting", "alias"))
def test_a_setting_of_another_name(row: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """AMAGO's is taken, and every name of it is told of in one line."""
    for owner in (row["owner"], f"{row['module']}.{row['owner']}"):
        caplog.clear()
        config.load([], [f"{owner}.{row['argument']} = {row['example']}"])
        (notice,) = (record.getMessage() for record in caplog.records)
        assert notice.startswith(row["owner"]) and "\n" not in notice and " here" in notice


@pytest.mark.parametrize("row", rows("class", "alias"))
def test_a_class_of_another_name(row: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    config.load([], [f"kept = @{row['module']}.{row['owner']}", "Experiment.run_name = %kept"])
    (notice,) = (record.getMessage() for record in caplog.records)
    assert notice == f"{row['owner']} is {amago_names.CLASSES[row['owner']]} here"


@pytest.mark.parametrize("row", [case for kind in ("setting", "class", "method") for case in rows(kind, "absent")])
def test_what_is_absent_has_a_reason(row: dict[str, str]) -> None:
    name = ".".join(part for part in (row["owner"], row["argument"]) if part)
    assert re.search(rf"^\| `{re.escape(name)}` \| \S.+ \|$", DOCUMENT, re.MULTILINE)


@pytest.mark.parametrize("row", rows("method", "same"))
def test_a_method_of_the_same_name(row: dict[str, str]) -> None:
    owner = Experiment if row["owner"] == "Experiment" else gin.get_configurable(row["owner"])
    assert callable(getattr(owner, row["argument"]))


@pytest.mark.parametrize("row", rows("function", "same"))
def test_a_function_of_cli_utils(row: dict[str, str]) -> None:
    assert callable(getattr(cli_utils, row["argument"]))


@pytest.mark.parametrize("row", rows("flag", "same"))
def test_a_flag_of_cli_utils(row: dict[str, str]) -> None:
    """With underscores and with dashes."""
    options = cli_utils.add_common_cli(argparse.ArgumentParser())._option_string_actions
    assert options[row["argument"]] is options["--" + row["argument"][2:].replace("_", "-")]


def test_the_modules_that_the_document_names_are_there() -> None:
    named = set(re.findall(r"`(amago(?:_ray)?(?:\.\w+)+)`", DOCUMENT.partition("## Modules")[2].partition("\n## ")[0]))
    same = {name.replace("amago.", "amago_ray.") for name in named & set(SAME_MODULES)}
    assert same == {name.replace("amago.", "amago_ray.") for name in SAME_MODULES}
    for name in same | {name for name in named if name.startswith("amago_ray.")}:
        importlib.import_module(name)
    assert set(amago_names.MODULES) - {"amago.utils"} <= named | {"amago.envs.amago_env"}


def test_the_table_names_every_alias_and_each_is_needed() -> None:
    """No alias hides a name that exists here."""
    aliases = {row["owner"] for row in TABLE if row["here"] == "alias"}
    arguments = {f"{row['owner']}.{row['argument']}" for row in TABLE if row["here"] == "alias"}
    assert set(amago_names.CLASSES) <= aliases and set(amago_names.ARGUMENTS) <= arguments
    config.load([])
    known = set(config.configurable_names())
    assert not known & set(amago_names.CLASSES) and set(amago_names.CLASSES.values()) <= known
    for name in amago_names.ARGUMENTS:
        owner, argument = name.split(".")
        assert owner not in known or not takes(gin.get_configurable(owner), argument), name


# ---------------------------------------------------------------- where names are given


def test_names_in_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Full and short, in blocks, in values, in scopes and after an import of AMAGO's own module."""
    (tmp_path / "amago.gin").write_text(
        "import amago.nets.traj_encoders\n"
        "width = 24\n"
        "amago.nets.traj_encoders.TformerTrajEncoder:\n"
        "    d_model = %width\n"
        "    attention_type = @amago.nets.transformer.VanillaAttention\n"
        "agent.MultiTaskAgent.gamma = 0.5\n"
        "amago_ray.nets.actor_critic.PopArtLayer.beta = 0.25\n"
        "test/PopArtLayer.beta = 0.75\n"
        "Experiment:\n"
        "    sample_actions = False\n"
        "    critic_loss_weight = 3.0\n"
    )
    config.load([tmp_path / "amago.gin"])
    assert PopArt(num_gammas=1).beta == 0.25
    with gin.config_scope("test"):
        assert PopArt(num_gammas=1).beta == 0.75
    assert gin.query_parameter("MultiTaskAgent.gamma") == 0.5
    assert repr(gin.query_parameter("TformerTrajEncoder.attention_type")).endswith("CausalAttention")
    assert repr(gin.query_parameter("TformerTrajEncoder.d_model")) == "%width"
    for name in ("train", "val"):
        assert gin.query_parameter(f"Experiment.sample_actions_{name}") is False
    for owner in ("Agent", "MultiTaskAgent"):
        assert gin.query_parameter(f"{owner}.critic_loss_weight") == 3.0
    *notices, of_scope = (record.getMessage() for record in caplog.records)
    assert of_scope.startswith("test/PopArtLayer.beta = 0.75 sets nothing"), "but for code of one's own"
    assert notices == [
        "import amago.nets.traj_encoders is not needed here: all of amago_ray is known",
        "VanillaAttention is CausalAttention here",
        "PopArtLayer is PopArt here",
        "Experiment.sample_actions is Experiment.sample_actions_train and Experiment.sample_actions_val here",
        "Experiment.critic_loss_weight is Agent.critic_loss_weight and MultiTaskAgent.critic_loss_weight here",
    ]
    before = config.snapshot()
    caplog.clear()
    config.restore(before)
    assert config.snapshot() == before and not caplog.records, "other processes are sent the names here"


def test_names_in_python(caplog: pytest.LogCaptureFixture) -> None:
    experiment = Experiment(
        run_name="a",
        make_train_env=Counting,
        max_seq_len=4,
        env_mode="async",
        sample_actions=False,  # type: ignore[call-arg]
        dloader_workers=10,
        critic_loss_weight=2.5,
    )
    assert env_processes(experiment) is None
    assert not experiment.sample_actions_train and not experiment.sample_actions_val
    assert gin.query_parameter("Agent.critic_loss_weight") == 2.5
    assert [record.getMessage().split()[0] for record in caplog.records] == [
        f"Experiment.{name}" for name in ("sample_actions", "dloader_workers", "critic_loss_weight")
    ]


def test_what_python_gives_wins_over_gin_under_either_name() -> None:
    config.load([], ["Experiment.sample_actions_train = True", "Experiment.num_rollout_workers = 3"])
    experiment = Experiment(
        run_name="a", make_train_env=Counting, max_seq_len=4, sample_actions=False  # type: ignore[call-arg]
    )  # fmt: skip
    assert not experiment.sample_actions_train and experiment.num_rollout_workers == 3


@pytest.mark.parametrize(
    ("binding", "answer"),
    [
        ("Experiment.local_time_optimizer = True", "set Agent.optimizer_type = @AdamWRel"),
        ("Experiment.local_time_optimizer = %mode", "Experiment.local_time_optimizer = %mode: write the value itself"),
        (
            "amago.nets.traj_encoders.TformerTrajEncoder.n_layer = 1",
            "has no setting 'n_layer'; did you mean 'n_layers'",
        ),
        ("amago.nets.traj_encoders.TformerTrajEncodr.n_layers = 1", "did you mean 'TformerTrajEncoder'?"),
        ("theirs.TformerTrajEncoder.n_layers = 1", "no configurable is named 'theirs.TformerTrajEncoder'"),
    ],
)
def test_what_cannot_be_had_is_answered_in_one_line(binding: str, answer: str) -> None:
    with pytest.raises(ValueError) as error:
        config.load([], ["mode = 'sync'", binding])
    assert answer in str(error.value) and "\n" not in str(error.value)


def test_a_class_of_ones_own_with_an_alias_for_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decorator keeps the signature, so that gin and `reject_unknown_arguments` see the names here."""

    @accept_amago_arguments
    @dataclass
    class Owner:
        size: int = 1

    monkeypatch.setitem(
        amago_names.ARGUMENTS, "Owner.width", amago_names.Argument(lambda v: {"Owner.size": v}, "is Owner.size here")
    )
    assert Owner(width=3).size == 3  # type: ignore[call-arg]
    assert list(inspect.signature(Owner).parameters) == ["size"]
    reject_unknown_arguments(Owner, ["width"], "Owner")
    with pytest.raises(TypeError, match="Owner has no setting 'widht'"):
        reject_unknown_arguments(Owner, ["widht"], "Owner")
