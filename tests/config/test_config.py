"""gin: what is bound where, what wins, what is recorded, and what a mistake is answered with."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytest
from conftest import TESTS
from hypothesis import given
from hypothesis import strategies as st

from amago_ray import Experiment, config
from amago_ray.agent.actor_critic import Agent, Multigammas
from amago_ray.config import nearest, record, reject_unknown_arguments, restore, snapshot
from amago_ray.driver.probe import check_data, probe
from amago_ray.driver.resume import create_folder
from amago_ray.envs.builtin import Counting, TMaze
from amago_ray.envs.tasks import entries_of, maker_of
from amago_ray.nets.traj_encoders import GRUTrajEncoder


def test_the_nearest_name() -> None:
    assert nearest("batchsize", ["epochs", "batch_size"]) == "; did you mean 'batch_size'?"
    assert nearest("zzz", ["b", "a"]) == "; known: a, b"
    assert nearest("zzz", [f"name{i}" for i in range(100)]) == "", "too many to list"


def test_arguments_that_a_function_does_not_take() -> None:
    reject_unknown_arguments(TMaze.__init__, ["corridor_length", "penalty"], "TMaze")
    with pytest.raises(TypeError, match=r"TMaze has no setting 'coridor_length'; did you mean 'corridor_length'\?"):
        reject_unknown_arguments(TMaze.__init__, ["coridor_length"], "TMaze")
    with pytest.raises(TypeError) as unlike:
        reject_unknown_arguments(TMaze.__init__, ["zzz"], "TMaze")
    assert "corridor_length" in str(unlike.value) and "self" not in str(unlike.value)


@pytest.mark.parametrize(
    ("binding", "answer"),
    [
        ("GRUTrajEncodr.d_hidden = 3", r"no configurable is named 'GRUTrajEncodr'; did you mean 'GRUTrajEncoder'\?"),
        ("Experiment.traj_encoder_type = @GRUTrajEncodr", r"'GRUTrajEncodr'; did you mean 'GRUTrajEncoder'\?"),
        ("Agent.gama = 0.9", r"Agent has no setting 'gama'; did you mean 'gamma'\?"),
        ("Experiment.epoch = 9", r"Experiment has no setting 'epoch'; did you mean 'epochs'\?"),
        ("Agent.gamma 0.9", r"Couldn't parse .*: 'Agent.gamma 0.9'"),
        (
            "Experiment.epochs",
            r"^'Experiment\.epochs' is not NAME = VALUE: Couldn't parse statement, expected",
        ),
        ("Experiment.epochs =", r"^'Experiment\.epochs =' is not NAME = VALUE: Unable to parse value\.$"),
        (
            "Multigammas.discrete = [0.9,",
            r"^'Multigammas\.discrete = \[0\.9,' is not NAME = VALUE: .* bracket",
        ),
        ("Experiment.run_name = mine", r"run_name = mine: mine is no value: write @X for a class .*, quotes for text"),
        ("Experiment.make_val_env = [TMaze]", r"make_val_env = \[TMaze\]: TMaze is no value: write @X for a class"),
        ("Experiment.verbose = true", r"verbose = true: true is no value; did you mean True\?"),
        ("batch_size = 64", r"^batch_size = 64 sets nothing: no %batch_size .*did you mean 'Experiment\.batch_size'\?"),
        ("learnin_rate = 1.0", r"did you mean 'Experiment\.learning_rate'\?"),
        ("gamma = 1.0", r"did you mean 'Agent\.gamma'\?"),
        ("zzzz = 1.0", r"no %zzzz stands for it anywhere; a setting is written with its class, as Agent\.gamma"),
        ("nosuch/Agent.gamma = 0.3", r"^nosuch/Agent\.gamma = 0\.3 sets nothing: no reference has the scope 'nosuch'"),
        ("x = %x", r"^x = %x: a macro cannot stand for itself"),
    ],
)
def test_mistakes_are_answered_in_one_line(binding: str, answer: str) -> None:
    with pytest.raises(ValueError, match=answer) as error:
        config.load([], [binding])
    assert "\n" not in str(error.value)


def test_a_mistake_in_a_file_names_the_file_and_the_line(tmp_path: Path) -> None:
    (tmp_path / "bad.gin").write_text("Agent.gamma = 0.9\nAgent.tau 0.1\n")
    with pytest.raises(ValueError, match=r"bad\.gin.*line 2.*'Agent.tau 0.1'"):
        config.load([tmp_path / "bad.gin"])
    with pytest.raises(ValueError, match=r"--config .*none\.gin: there is no such file"):
        config.load([tmp_path / "none.gin"])


def test_macros_and_scopes_that_something_takes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config.load([], ["x = [%y]", "y = 3", "Multigammas.discrete = %x"])
    config.load([], ["y = 4"])  # of what is configured already, as a trial's
    config.load([], ["outer/inner/TMaze.penalty = 1.0", "Experiment.make_train_env = [@outer/inner/TMaze]"])
    (tmp_path / "own_scopes.gin").write_text("import process_envs\n")
    assert not caplog.records
    config.load([tmp_path / "own_scopes.gin"], ["theirs/TMaze.penalty = 1.0"])  # its code may enter it
    (notice,) = (record.getMessage() for record in caplog.records)
    assert notice.startswith("theirs/TMaze.penalty = 1.0 sets nothing") and "did you mean" not in notice


def test_macros_and_scopes_of_a_file_that_nothing_takes_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They may be meant for other files."""
    (tmp_path / "a.gin").write_text("batch_size = 3\nnosuch/Agent.gamma = 0.3\nx = 1\nAgent.tau = %x\n")
    config.load([tmp_path / "a.gin"])
    macro, scope = (record.getMessage() for record in caplog.records)
    assert macro.startswith("batch_size = 3 sets nothing") and macro.endswith("a.gin line 1)")
    assert scope.startswith("nosuch/Agent.gamma = 0.3 sets nothing") and scope.endswith("a.gin line 2)")


def test_a_macro_that_there_is_not(tmp_path: Path) -> None:
    given = ["bs = 4", "Experiment.epochs = %bs", "Experiment.run_name = 'a'", "Experiment.max_seq_len = 4"]
    config.load([], [*given, "Experiment.make_train_env = 'CartPole-v1'", "Experiment.batch_size = %bss"])
    with pytest.raises(
        ValueError, match=r"^Experiment\.batch_size = %bss: no macro is named %bss; did you mean %bs\?$"
    ):
        Experiment()
    config.load([], ["Experiment.batch_size = 4", "other = %nosuch", "Experiment.seed = %other"])
    with pytest.raises(
        ValueError, match=r"^Experiment\.seed = %other: no macro is named %nosuch: a line that binds it"
    ):
        Experiment()
    config.load([], ["nosuch = 1", "Agent.gamma = %bss", "MambaTrajEncoder.d_model = %width"])
    assert Experiment().seed == 1, "Agent is not made yet, and nobody makes a MambaTrajEncoder"
    with pytest.raises(ValueError, match=r"^no macro is named %bss; did you mean %bs\?$"):
        probe(Experiment(traj_encoder_type=GRUTrajEncoder))


def test_nothing_is_told_of_what_a_run_itself_wrote(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its record has macros and scopes as they were given, and then the values that they had, which win."""
    scoped = ["eval/TMaze.penalty = 1.0", "Experiment.make_train_env = @eval/TMaze"]
    config.load([], ["bs = 9", "Experiment.batch_size = %bs", *scoped])
    values = {"batch_size": 9, "make_train_env": "CartPole-v1"}
    (tmp_path / "config.txt").write_text(record("Experiment", values))
    (tmp_path / "again.gin").write_text("include 'config.txt'\nother = 3\n")
    gin.clear_config()
    caplog.clear()
    config.load([tmp_path / "config.txt"])
    assert not caplog.records and gin.query_parameter("Experiment.batch_size") == 9
    config.load([tmp_path / "again.gin"])
    (notice,) = (each.getMessage() for each in caplog.records)
    assert notice.startswith("other = 3 sets nothing")
    with pytest.raises(ValueError, match="bs = 10 sets nothing"):  # what is bound on top of it
        config.load([tmp_path / "config.txt"], ["bs = 10"])


def test_macros_that_stand_for_one_another() -> None:
    with pytest.raises(ValueError, match=r"^(a = \[%b\]|b = %a): a macro cannot stand for itself$"):
        config.load([], ["a = [%b]", "b = %a", "c = %a", "Agent.gamma = %c"])


def test_files_that_include_one_another_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "base.gin").write_text("Agent.gamma = 0.9\n")
    (tmp_path / "a.gin").write_text("include 'base.gin'\ninclude 'base.gin'\ninclude 'b.gin'\n")
    (tmp_path / "b.gin").write_text("include 'a.gin'\n")
    with pytest.raises(
        ValueError, match=r"a\.gin includes itself, or others that include it.*b\.gin line 1\)"
    ) as error:
        config.load([tmp_path / "a.gin"])
    assert "\n" not in str(error.value)


def test_a_configuration_is_read_from_what_a_shell_gives_for_a_file(tmp_path: Path) -> None:
    """As `--config <(command)` does: it is there once only."""
    reader, writer = os.pipe()
    os.write(writer, b"Agent.gamma = 0.3\n")
    os.close(writer)
    try:
        config.load([f"/dev/fd/{reader}"])
    finally:
        os.close(reader)
    assert gin.query_parameter("Agent.gamma") == 0.3
    with pytest.raises(ValueError, match="there is no such file"):
        config.load([tmp_path])


def test_later_ones_win(tmp_path: Path) -> None:
    (tmp_path / "a.gin").write_text("Agent.gamma = 0.1\nAgent.tau = 0.1\nAgent.n_step = 1\n")
    (tmp_path / "b.gin").write_text("Agent.tau = 0.2\nAgent.n_step = 2\n")
    config.load([tmp_path / "a.gin", tmp_path / "b.gin"], ["Agent.n_step = 3", "Agent.n_step = 4"])
    assert [gin.query_parameter(f"Agent.{name}") for name in ("gamma", "tau", "n_step")] == [0.1, 0.2, 4]
    assert config.is_bound("Agent", "tau") and not config.is_bound("Agent", "num_critics")


def test_a_snapshot_carries_everything_over() -> None:
    bindings = [
        "Multigammas.discrete = [0.5, 0.9]",
        "Experiment.make_train_env = @TMaze",
        "TMaze.corridor_length = 7",
        "TMaze.penalty = None",
        "Experiment.run_name = 'with \\'quotes\\' and a long, long, long, long, long, long, long, long, long name'",
        "length = 3",
        "eval/TMaze.corridor_length = %length",
        "Experiment.make_val_env = @eval/TMaze",
    ]
    config.load([], bindings)
    before = snapshot()
    gin.clear_config()
    config.load([], ["Agent.gamma = 0.5"])
    restore(before)
    assert snapshot() == before
    assert Multigammas().discrete == [0.5, 0.9]
    assert TMaze().corridor_length == 7
    with gin.config_scope("eval"):
        assert TMaze().corridor_length == 3
    assert not config.is_bound("Agent", "gamma"), "what was there before is gone"


@pytest.mark.processes
def test_a_snapshot_is_restored_where_the_experiment_is_unknown() -> None:
    """A process of the run knows no Experiment, and needs no Ray for its configuration."""
    config.load([], ["Experiment.epochs = 3", "TMaze.corridor_length = 7"])
    code = (
        "import sys; from amago_ray import config; config.restore(sys.argv[1]);"
        "from amago_ray.envs.builtin import TMaze; assert 'amago_ray.experiment' not in sys.modules;"
        "print(TMaze().corridor_length)"
    )
    result = subprocess.run([sys.executable, "-c", code, snapshot()], cwd=TESTS.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "7\n"


def test_the_record_of_settings_given_in_python(tmp_path: Path) -> None:
    config.load([], ["Counting.episode_length = 4"])
    Counting()  # in use from here on, with its defaults
    text = record(
        "Experiment",
        {
            "run_name": "it's",
            "make_train_env": lambda: Counting(6),
            "make_val_env": [Counting, "CartPole-v1"],
            "traj_encoder_type": GRUTrajEncoder,
            "tstep_encoder_type": None,
            "exploration_wrapper_type": partial(Agent),
            "learning_rate": 1e-4,
            "log_to_wandb": False,
        },
    )
    lines = text.splitlines()
    assert 'Experiment.run_name = "it\'s"' in lines
    assert "Experiment.make_val_env = [@Counting, 'CartPole-v1']" in lines
    assert "Experiment.traj_encoder_type = @GRUTrajEncoder" in lines
    assert "Experiment.tstep_encoder_type = None" in lines
    assert "Experiment.learning_rate = 0.0001" in lines and "Experiment.log_to_wandb = False" in lines
    assert "Counting.episode_length = 4" in lines
    assert "Counting.random_lengths = False" in lines, "defaults in use are recorded too"
    for name in ("make_train_env", "exploration_wrapper_type"):
        (line,) = (line for line in lines if f"Experiment.{name}" in line)
        assert line.startswith(f"# Experiment.{name} was given in Python: ")

    (tmp_path / "config.txt").write_text(text)
    gin.clear_config()
    config.load([tmp_path / "config.txt"])
    assert gin.query_parameter("Experiment.run_name") == "it's"
    assert Counting().episode_length == 4


def test_settings_of_gym_make_are_given_and_recorded(tmp_path: Path) -> None:
    pair, other = ("CartPole-v1", {"max_episode_steps": 7}), "['CartPole-v1', ('Acrobot-v1', {'max_episode_steps': 3})]"
    text = record("Experiment", {"make_train_env": pair, "replay_compression": ("a",), "learner_nodes": {"pool": "x"}})
    assert "Experiment.make_train_env = ('CartPole-v1', {'max_episode_steps': 7})" in text.splitlines()
    (tmp_path / "config.txt").write_text(text)
    config.load([tmp_path / "config.txt"], [f"Experiment.make_val_env = {other}"])
    assert gin.query_parameter("Experiment.make_train_env") == pair
    assert gin.query_parameter("Experiment.replay_compression") == ("a",)
    assert gin.query_parameter("Experiment.learner_nodes") == {"pool": "x"}
    listed = entries_of(gin.query_parameter("Experiment.make_val_env"))
    assert [maker_of(entry)().spec.max_episode_steps for entry in listed] == [500, 3]
    assert "given in Python" in record("Experiment", {"make_train_env": ("CartPole-v1", {"reward": lambda: 1})})


def test_an_experiment_made_in_python_records_its_lambda(tmp_path: Path) -> None:
    experiment = Experiment(
        run_name="a", ckpt_base_dir=tmp_path, make_train_env=lambda: Counting(6), max_seq_len=4, batch_size=7
    )
    create_folder(experiment, experiment.directory, check_data(experiment))
    lines = (tmp_path / "a" / "config.txt").read_text().splitlines()
    assert "Experiment.batch_size = 7" in lines
    assert f"Experiment.ckpt_base_dir = {str(tmp_path)!r}" in lines
    assert any(line.startswith("# Experiment.make_train_env was given in Python: <function") for line in lines)


@gin.configurable
def recorded(value: Any) -> Any:
    return value


def reread(value: Any, folder: Path) -> Any:
    """`value` after it was recorded in a run's configuration, and that was loaded."""
    (folder / "config.txt").write_text(record("recorded", {"value": value}), encoding="utf-8")
    with gin.unlock_config():
        gin.clear_config()
    config.load([folder / "config.txt"])
    return recorded()  # type: ignore[call-arg]  # gin fills it in


def alike(a: Any, b: Any) -> bool:
    """Equal, of equal types, where NaN equals NaN."""
    if isinstance(a, dict):
        return isinstance(b, dict) and alike(list(a.items()), list(b.items()))
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"]))
SETTINGS = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text("ab\n'%@#", max_size=4), inner)
    ),
    max_leaves=8,
)


@given(SETTINGS)
def test_whatever_is_recorded_is_read_again(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert alike(reread(value, Path(folder)), value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.float64(0.001), 0.001),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.float64("inf"), math.inf),
        (Path("/data/runs"), "/data/runs"),
        ({"pool": "rollout", "paths": [Path("a")]}, {"pool": "rollout", "paths": ["a"]}),
        (("Meta-World/MT1", {"env_name": "reach-v3", "seed": 1}), None),
        ([("A-v0", {}), Counting, (GRUTrajEncoder,)], None),
        ((), None),
    ],
)
def test_what_python_gives_is_recorded_as_plain_values(tmp_path: Path, given: Any, expected: Any) -> None:
    assert alike(reread(given, tmp_path), given if expected is None else expected)


def test_what_has_no_text_in_gin_stays_within_its_comment(tmp_path: Path) -> None:
    class Wide:
        def __repr__(self) -> str:
            return "Wide(\n  Agent.gamma = 0.5\n)"

    for value in (Wide(), [1, Wide()], {"a": Wide()}, np.zeros(3), lambda: None, {1, 2}):
        config.load([], ["Agent.gamma = 0.25"])
        text = record("Experiment", {"seed": value})
        (tmp_path / "config.txt").write_text(text)
        gin.clear_config()
        config.load([tmp_path / "config.txt"])
        assert gin.query_parameter("Agent.gamma") == 0.25
        assert not config.is_bound("Experiment", "seed")
        assert text.count("# Experiment.seed was given in Python: ") == 1


def test_infinity_and_nan_in_a_configuration() -> None:
    config.load([], ["recorded.value = [%inf, %minus_inf, %nan]"])
    text = snapshot()
    gin.clear_config()
    restore(text)
    high, low, nan = recorded()  # type: ignore[call-arg]
    assert (high, low) == (math.inf, -math.inf) and math.isnan(nan)


def test_files_include_others_beside_them_and_name_the_line_of_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "base.gin").write_text("Agent.gamma = 0.5\nAgent:\n  tau = 0.1\n  n_step = 2\n")
    (tmp_path / "top.gin").write_text("include 'base.gin'\nAgent.tau = 0.2\n")
    config.load([tmp_path / "top.gin"])
    assert [gin.query_parameter(f"Agent.{name}") for name in ("gamma", "tau", "n_step")] == [0.5, 0.2, 2]
    (tmp_path / "top.gin").write_text("include 'base.gin'\nAgent.gama = 0.2\n")
    with pytest.raises(ValueError, match=r"did you mean 'gamma'\? \(.*top\.gin line 2\)"):
        config.load([tmp_path / "top.gin"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.gin").write_text("Agent.tau = 0.3\n")
    gin.add_config_file_search_path(str(tmp_path / "elsewhere"))
    (tmp_path / "top.gin").write_text("include 'far.gin'\n")
    config.load([tmp_path / "top.gin"])
    assert gin.query_parameter("Agent.tau") == 0.3
    (tmp_path / "top.gin").write_text("include 'bas.gin'\n")
    with pytest.raises(ValueError, match=r"include 'bas\.gin': there is no such file \(.*top\.gin line 1\)"):
        config.load([tmp_path / "top.gin"])


def test_what_python_binds_reaches_other_processes_or_is_refused() -> None:
    config.load([])
    gin.bind_parameter("Agent.gamma", np.float64(0.25))
    gin.bind_parameter("Multigammas.discrete", [0.5, np.float32(0.75)])
    gin.bind_parameter("Experiment.traj_encoder_type", GRUTrajEncoder)
    gin.bind_parameter("Experiment.make_train_env", lambda: Counting(6))  # the driver sends it itself
    sent = snapshot()
    gin.clear_config()
    restore(sent, driver=True)
    assert gin.query_parameter("Agent.gamma") == 0.25 and Multigammas().discrete == [0.5, 0.75]
    assert config.is_bound("Experiment", "traj_encoder_type")
    gin.bind_parameter("Agent.fbc_filter_func", lambda advantage: advantage)
    with pytest.raises(ValueError, match=r"Agent\.fbc_filter_func = <function .*gin has no text for this value"):
        snapshot()


def test_a_value_that_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    @gin.configurable
    def needy(size: int = gin.REQUIRED) -> int:
        return size

    with pytest.raises(RuntimeError) as error:
        needy()
    assert config.explain(error.value) == "needy needs a value of 'size'"


class NeedsTwo(ValueError):
    """An error whose constructor takes something else than its message."""

    def __init__(self, name: str, size: int):
        super().__init__(f"{name}={size}: it must be 4")


def test_an_error_is_what_was_raised_before_gin_added_its_calls() -> None:
    @gin.configurable
    def outer() -> None:
        inner()

    @gin.configurable
    def inner() -> None:
        raise NeedsTwo("size", 3)

    with pytest.raises(NeedsTwo) as caught:
        outer()
    assert str(caught.value).count("In call to configurable") == 2
    raised = config.as_raised(caught.value)
    assert isinstance(raised, NeedsTwo) and str(raised) == "size=3: it must be 4"
    assert raised.__traceback__ is caught.value.__traceback__
    plain = ValueError("as it is")
    assert config.as_raised(plain) is plain
