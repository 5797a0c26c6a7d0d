"""What Python gave a run and config.txt has no text for: refused where it is missing, taken where it is given again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gin
import pytest
from error_scene import Scene
from errors_of_files import given_in_python

from amago_ray import Experiment, config
from amago_ray.commands.command_line import load_experiment
from amago_ray.driver.probe import check_data
from amago_ray.driver.resume import create_folder
from amago_ray.envs.builtin import Counting
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.nets.tstep_encoders import FFTstepEncoder
from amago_ray.replay.datasets import Episode
from amago_ray.replay.readers import EpisodeDataset
from amago_ray.watch.callbacks import StopAtReturn


class Mine(FFTstepEncoder):
    """The shapes of its weights are those of the default."""


@gin.configurable
class Named(Mine):
    pass


def other() -> Counting:
    return Counting(7)


def folder_of(tmp_path: Path, **settings: Any) -> Path:
    """The config.txt of a run that Python gave these."""
    given: dict[str, Any] = {"make_train_env": Counting, "traj_encoder_type": GRUTrajEncoder, **settings}
    experiment = Experiment(run_name="run", ckpt_base_dir=tmp_path, max_seq_len=4, **given)
    create_folder(experiment, experiment.directory, check_data(experiment))
    gin.clear_config()
    return experiment.directory.config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tstep_encoder_type", Mine),
        ("make_train_env", other),
        ("make_val_env", other),
        ("dataset", EpisodeDataset([Episode([0, 1, 2], [0, 1], [1.0, 1.0], True)])),
        ("relabeler_type", lambda: None),
        ("exploration_wrapper_type", lambda env: env),
    ],
)
def test_what_is_left_out_is_refused_unless_it_is_given_again(tmp_path: Path, name: str, value: Any) -> None:
    experiment = Experiment(
        "run", **{"make_train_env": Counting, "max_seq_len": 4, "ckpt_base_dir": tmp_path} | {name: value}
    )
    experiment.directory.create()
    path = experiment.directory.config
    path.write_text(config.record("Experiment", vars_of(experiment)))
    gin.clear_config()
    match = rf"config\.txt does not say what Experiment\.{name} \(.*\) was, because .*--set .Experiment\.{name} = "
    with pytest.raises(ValueError, match=match):
        load_experiment([path], ["Experiment.run_name = 'another'"])
    gin.clear_config()
    config.load([path])
    assert not config.is_bound("Experiment", name)
    with pytest.raises(ValueError, match=match):
        Experiment()  # type: ignore[call-arg]
    assert getattr(Experiment(**{name: value}), name) is value


def vars_of(experiment: Experiment) -> dict[str, Any]:
    return {name: getattr(experiment, name) for name in Experiment.__dataclass_fields__}


def test_a_class_with_a_name_takes_the_place_of_one_without(tmp_path: Path) -> None:
    path = folder_of(tmp_path, tstep_encoder_type=Mine)
    assert load_experiment([path], ["Experiment.tstep_encoder_type = @Named"]).tstep_encoder_type is Named
    gin.clear_config()
    (tmp_path / "more.gin").write_text("Experiment.tstep_encoder_type = @Named\n")
    assert load_experiment([path, tmp_path / "more.gin"], []).tstep_encoder_type is Named


def test_all_that_is_left_out_is_named_in_one_line(tmp_path: Path) -> None:
    path = folder_of(tmp_path, tstep_encoder_type=Mine, make_val_env=other, callbacks=[StopAtReturn(2.0)])
    with pytest.raises(ValueError) as refused:
        load_experiment([path], [])
    text = str(refused.value)
    assert "Experiment.make_val_env (<function other at" in text and "Experiment.tstep_encoder_type (<class" in text
    assert "callbacks" not in text and "--env" not in text and "\n" not in text
    gin.clear_config()
    with pytest.raises(ValueError, match=r"again \(--env NAME, an id of gymnasium; --set 'Experiment\.tstep_enc"):
        load_experiment([path], [], env_option=True)


def test_validation_in_the_environments_of_training_follows_them(tmp_path: Path) -> None:
    path = folder_of(tmp_path, make_train_env=other)
    assert path.read_text().count(" was given in Python: <function other") == 2
    experiment = load_experiment([path], ["Experiment.make_train_env = 'CartPole-v1'"])
    assert experiment.make_val_env == experiment.make_train_env == "CartPole-v1"


def test_a_command_goes_on_without_what_it_does_not_need(tmp_path: Path) -> None:
    path = folder_of(tmp_path, relabeler_type=lambda: None)
    assert load_experiment([path], [], ["relabeler_type"]).relabeler_type is None


def test_callbacks_that_are_left_out_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder_of(tmp_path, callbacks=[StopAtReturn(2.0)])
    caplog.set_level(logging.WARNING, "amago_ray")
    assert load_experiment([path], []).callbacks == ()
    (said,) = (record.message for record in caplog.records if "callbacks" in record.message)
    assert said == f"Experiment.callbacks is left out: {path} has no text for what Python gave it"


def test_what_gin_made_is_made_again(tmp_path: Path) -> None:
    bindings = ["Experiment.dataset = @StoredDataset()", f"StoredDataset.path = {str(tmp_path)!r}"]
    config.load([], [*bindings, "Experiment.make_train_env = @few/Counting", "few/Counting.episode_length = 3"])
    experiment = Experiment(run_name="run", max_seq_len=4)  # type: ignore[call-arg]
    (tmp_path / "config.txt").write_text(config.record("Experiment", vars_of(experiment)))
    gin.clear_config()
    again = load_experiment([tmp_path / "config.txt"], [])
    assert type(again.dataset) is type(experiment.dataset)
    assert again.make_train_env().episode_length == 3  # type: ignore[operator]


def test_what_python_gave_is_not_written_down_as_what_gin_held(tmp_path: Path) -> None:
    Experiment(run_name="before", make_train_env=Counting, max_seq_len=4)  # whose encoder is the default
    config.load([], ["Experiment.tstep_encoder_type = @FFTstepEncoder", "Experiment.epochs = 7"])
    experiment = Experiment(
        run_name="run", make_train_env=Counting, max_seq_len=4, tstep_encoder_type=Mine, callbacks=[StopAtReturn(2.0)]
    )
    text = config.record("Experiment", vars_of(experiment))
    assert "Experiment.tstep_encoder_type = " not in text and "Experiment.epochs = 7" in text
    (tmp_path / "config.txt").write_text(text)
    gin.clear_config()
    with pytest.raises(ValueError, match=r"what Experiment\.tstep_encoder_type \(<class '.*Mine'>\) was"):
        load_experiment([tmp_path / "config.txt"], [])


def test_commands_play_no_other_network_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch)
    for name in ("exploration_wrapper_type", "relabeler_type", "dataset"):
        given_in_python(scene.run, name, "<object>")
    few = ("--episodes", 2)
    played = scene.command("evaluate", scene.run, *few)
    assert played.status == 0 and "Average Total Return" in played.out
    given_in_python(scene.run, "make_val_env", "<function hard>")
    for command in ("evaluate", "inspect"):
        outcome = scene.command(command, scene.run)
        assert outcome.status == 2 and "give it again (--env NAME, an id of gymnasium)" in outcome.line
    assert scene.command("evaluate", scene.run, *few, "--env", "CartPole-v1").out == played.out
    assert scene.command("inspect", scene.run, "--max-steps", 2, "--env", "CartPole-v1").status == 0
    given_in_python(scene.run, "traj_encoder_type", "<class 'Mine'>")
    env, given = ("--env", "CartPole-v1"), ("--set", "Experiment.traj_encoder_type = @GRUTrajEncoder")
    for command in ("evaluate", "inspect"):
        outcome = scene.command(command, scene.run, *env)
        assert outcome.status == 2 and "what Experiment.traj_encoder_type (<class 'Mine'>) was" in outcome.line
    assert scene.command("evaluate", scene.run, *few, *env, *given).out == played.out
    assert scene.command("inspect", scene.run, "--max-steps", 2, *env, *given).status == 0
    assert scene.command("replay", scene.run, "--export", tmp_path / "data", "--format", "npz").status == 0


def test_a_run_does_not_go_on_as_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch)
    given_in_python(scene.run, "tstep_encoder_type", "<class 'Mine'>")
    path, more = scene.run / "config.txt", ("--set", "Experiment.epochs = 3")
    text = path.read_text()
    for flags in (("--resume",), ("--overwrite",), ("--set", "Experiment.run_name = 'next'")):
        outcome = scene.command("--config", path, *more, *flags)
        assert outcome.status == 2 and "what Experiment.tstep_encoder_type (<class 'Mine'>) was" in outcome.line
        assert not outcome.left and path.read_text() == text
    tune = ("tune", "--config", path, "--param", "Agent.gamma=uniform(0.1, 0.9)")
    assert "what Experiment.tstep_encoder_type" in scene.command(*tune).line
