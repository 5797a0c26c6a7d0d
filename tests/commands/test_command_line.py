"""What all commands share: one line per mistake, what Ctrl-C is answered with, and short names of settings."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gin
import pytest
from conftest import TINY_NETWORKS

from amago_ray import Experiment, train
from amago_ray.commands import train as train_command
from amago_ray.commands.command_line import (
    Mistake,
    bindings_of,
    in_one_line,
    load_experiment,
    short_name_options,
    while_it_trains,
)
from amago_ray.commands.train import trials_of
from amago_ray.driver.probe import check_data
from amago_ray.driver.resume import create_folder
from amago_ray.envs.builtin import Counting

SETTINGS = (
    *TINY_NETWORKS,
    "Experiment.run_name = 'short'",
    "Experiment.make_train_env = @Counting",
    "Experiment.max_seq_len = 8",
    "Experiment.traj_encoder_type = @GRUTrajEncoder",
)


def write_config(folder: Path) -> str:
    (folder / "short.gin").write_text("\n".join([*SETTINGS, f"Experiment.ckpt_base_dir = {str(folder)!r}"]) + "\n")
    return str(folder / "short.gin")


@gin.configurable
def fails(message: str) -> None:
    raise ValueError(message)


def test_messages_do_not_end_in_the_list_of_gins_calls() -> None:
    with pytest.raises(Mistake) as mistake, in_one_line():
        fails("size=3: it must be 4")
    assert str(mistake.value) == "size=3: it must be 4"
    with pytest.raises(Mistake) as mistake, in_one_line():
        fails()  # type: ignore[call-arg]
    assert str(mistake.value) == "fails() missing 1 required positional argument: 'message'"
    with pytest.raises(Mistake) as mistake, in_one_line(), gin.config_scope("eval"):
        try:
            fails("size=3: it must be 4")
        except ValueError as error:
            raise ValueError(f"environment 1 of 4: {error}; see its docs") from error
    assert str(mistake.value) == "environment 1 of 4: size=3: it must be 4; see its docs"


def test_a_value_that_gin_requires_is_a_mistake_and_other_runtime_errors_are_not() -> None:
    with pytest.raises(Mistake, match="fails needs a value of 'message'"), in_one_line():
        fails(gin.REQUIRED)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), in_one_line():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        (lambda run: None, "stopped; nothing was trained yet"),
        (
            lambda run: (run.directory.root / "metrics.jsonl").touch(),
            "stopped; no training state of short was saved yet: --overwrite starts it anew",
        ),
        (
            lambda run: run.directory.save_training_state(0, lambda folder: None, {}),
            "stopped; --resume goes on from the newest training state, after epoch 1",
        ),
        (
            lambda run: (
                run.directory.save_training_state(0, lambda folder: None, {}),
                setattr(run.progress, "epoch", 3),
            ),
            "stopped; --resume goes on from the newest training state, after epoch 1, and makes those up to 4 again",
        ),
    ],
)
def test_ctrl_c_says_how_a_run_goes_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    begin: Callable[[Experiment], object],
    expected: str,
) -> None:
    def train_a_little(experiment: Experiment, *_: Any, **__: Any) -> None:
        create_folder(experiment, experiment.directory, check_data(experiment))
        begin(experiment)
        interrupt()

    monkeypatch.setattr(train_command, "train", train_a_little)
    assert train.main(["--config", write_config(tmp_path)]) == 130
    assert capsys.readouterr().err == f"\namago-ray: {expected}\n"


def test_an_environment_that_was_given_in_python_needs_a_name() -> None:
    """As in the `config.txt` of such a run."""
    with pytest.raises(ValueError, match=r"lacks Experiment\.make_train_env; .* gymnasium\.register or @gin\.config"):
        load_experiment([], ["Experiment.run_name = 'a'", "Experiment.max_seq_len = 4"])


def test_ctrl_c_in_plot_advises_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amago_ray.commands.plot.read_run", interrupt)
    assert train.main(["plot", "runs/a"]) == 130
    assert capsys.readouterr().err == "\namago-ray: stopped\n"


@contextmanager
def unread_output(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard output is a pipe whose reader has gone, as that of `amago-ray ... | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        yield


@pytest.mark.parametrize("arguments", [["configs"], ["settings"], ["--help"], ["plot", "--help"]])
def test_a_reader_that_goes_away_ends_a_command_in_silence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    with unread_output(monkeypatch):
        assert train.main(arguments) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["configs"], ["settings"], ["configs", "tmaze"], ["plot", "--help"]])
def test_an_output_that_cannot_be_written_is_a_mistake_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert train.main(arguments) == 2
    expected = "standard output cannot be written: No space left on device"
    assert capsys.readouterr().err == f"amago-ray: {expected}\n"


def test_an_output_that_is_closed_is_a_mistake_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert train.main(["configs"]) == 2
    assert capsys.readouterr().err.startswith("amago-ray: standard output is closed")


def test_another_file_that_is_full_is_told_as_any_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        with while_it_trains():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train_command, "train", fail)
    assert train.main(["--config", write_config(tmp_path)]) == 2
    assert capsys.readouterr().err == "amago-ray: [Errno 28] No space left on device\n"


def test_a_training_whose_reader_goes_away_says_how_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_a_little(experiment: Experiment, *_: Any, **__: Any) -> None:
        create_folder(experiment, experiment.directory, check_data(experiment))
        with while_it_trains():
            print("epoch 1", flush=True)

    monkeypatch.setattr(train_command, "train", train_a_little)
    with unread_output(monkeypatch):
        assert train.main(["--config", write_config(tmp_path)]) == 141
    expected = "nobody reads its output; nothing was trained yet"
    assert capsys.readouterr().err == f"\namago-ray: stopped; {expected}\n"


def test_a_broken_pipe_outside_of_training_is_no_reader_that_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(train_command, "train", fail)
    with pytest.raises(BrokenPipeError):
        train.main(["--config", write_config(tmp_path)])


def test_another_broken_pipe_is_told_as_any_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        with while_it_trains():
            raise BrokenPipeError(errno.EPIPE, "Broken pipe", "an environment's")

    monkeypatch.setattr(train_command, "train", fail)
    assert train.main(["--config", write_config(tmp_path)]) == 2
    assert "an environment's" in capsys.readouterr().err


@pytest.mark.processes
def test_nothing_is_left_to_say_at_the_interpreters_end() -> None:
    command = Path(sys.executable).with_name("amago-ray")
    with subprocess.Popen([command, "configs"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_short_names_win_over_files_and_lose_to_set(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser(parents=[short_name_options()])
    parser.add_argument("--set", action="append", default=[])
    words = [
        "--agent",
        "multitask",
        "--traj-encoder",
        "transformer",
        "--tstep-encoder",
        "ff",
        "--exploration",
        "bilevel",
    ]
    options = parser.parse_args([*words, "--set", "Experiment.agent_type = @Agent"])
    experiment = load_experiment([write_config(tmp_path)], bindings_of(options))
    assert experiment.traj_encoder_type.__name__ == "TformerTrajEncoder"
    assert experiment.tstep_encoder_type is not None and experiment.tstep_encoder_type.__name__ == "FFTstepEncoder"
    assert experiment.exploration_wrapper_type is not None
    assert experiment.exploration_wrapper_type.__name__ == "BilevelEpsilonGreedy"
    assert experiment.agent_type.__name__ == "Agent"


def test_trials_have_seeds_and_names_of_their_own() -> None:
    one = Experiment(run_name="a", make_train_env=Counting, max_seq_len=4, seed=5)
    assert trials_of(one, 1) == [one]
    assert [(trial.run_name, trial.seed) for trial in trials_of(one, 3)] == [
        ("a_trial_0", 5), ("a_trial_1", 6), ("a_trial_2", 7),
    ]  # fmt: skip


def test_trials_are_trained_one_after_another_and_resumed_where_they_were_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, bool]] = []

    def train_a_little(experiment: Experiment, options: argparse.Namespace, resume: bool) -> None:
        trained.append((experiment.run_name, resume))
        experiment.directory.save_training_state(0, lambda folder: None, {})
        if experiment.run_name.endswith("_1"):
            interrupt()

    monkeypatch.setattr(train_command, "train", train_a_little)
    command = ["--config", write_config(tmp_path), "--trials", "3"]
    assert train.main(command) == 130
    assert trained == [("short_trial_0", False), ("short_trial_1", False)]
    trained.clear()
    assert train.main(command) == 2
    assert "short_trial_0, short_trial_1 in" in capsys.readouterr().err and not trained
    monkeypatch.setattr(train_command, "train", lambda trial, _, resume: trained.append((trial.run_name, resume)))
    assert train.main([*command, "--resume"]) == 0
    # Of several trials, those that were never begun have nothing to resume.
    assert trained == [(f"short_trial_{i}", "auto") for i in range(3)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--trials", "0"], "--trials 0: it must be 1 or more"),
        (["--init-from", "a.pt", "--resume"], "leave out either"),
        (["--set", "Agent.gama = 1"], "Agent has no setting 'gama'; did you mean 'gamma'?"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert train.main(["--config", write_config(tmp_path), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("amago-ray: ") and err.count("\n") == 1 and expected in err


def test_modules_of_the_current_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `python -m` finds them, but after everything that is installed."""
    (tmp_path / "extensions_of_mine.py").write_text("FOUND = True\n")
    (tmp_path / "mine.gin").write_text("import extensions_of_mine\nExperiment.epochs = -1\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    assert train.main(["--config", "tmaze", "--config", "mine.gin"]) == 2
    assert "epochs=-1" in capsys.readouterr().err and sys.path[-1] == str(tmp_path)
    assert sys.modules.pop("extensions_of_mine").FOUND


def test_a_command_in_a_folder_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert train.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("amago-ray ")
