"""The command line: train, plot, evaluate."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import gin
import pytest
from conftest import TESTS, TINY_NETWORKS
from PIL import Image

import amago_ray
from amago_ray import load_policy, train
from amago_ray.commands.train import compare
from amago_ray.watch.metrics import AVERAGE_RETURN

CONFIG = (
    *TINY_NETWORKS,
    "Experiment.run_name = 'maze'",
    "Experiment.make_train_env = @TMaze",
    "TMaze.corridor_length = 3",
    "Experiment.traj_encoder_type = @GRUTrajEncoder",
    "Experiment.max_seq_len = 4",
    "Experiment.parallel_actors = 2",
    "Experiment.train_timesteps_per_epoch = 16",
    "Experiment.train_batches_per_epoch = 2",
    "Experiment.batch_size = 4",
    "Experiment.epochs = 2",
    "Experiment.ckpt_interval = 1",
    "Experiment.replay_capacity_gb = 0.02",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run and what it printed: trained by the plain script, from elsewhere, with a Ray of its own."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "maze.gin").write_text("\n".join(CONFIG) + "\n")
    script = TESTS.parent / "amago_ray" / "train.py"
    result = subprocess.run(
        [sys.executable, str(script), "--config", "maze.gin"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return folder / "runs" / "maze", result.stdout


def evaluate(*arguments: str | Path) -> int:
    gin.clear_config()
    return train.main(["evaluate", *map(str, arguments)])


@pytest.mark.processes
def test_help_is_useful() -> None:
    for command in ([sys.executable, "-m", "amago_ray.train"], [str(Path(sys.executable).with_name("amago-ray"))]):
        result = subprocess.run([*command, "--help"], cwd=TESTS.parent, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        for word in ("--config", "--set", "--resume", "--overwrite", "plot", "evaluate", "configs", "examples"):
            assert word in result.stdout


def test_a_bare_command_shows_its_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        train.main([])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("usage: amago-ray ")
    assert train.main(["--version"]) == 0
    assert capsys.readouterr().out == f"amago-ray {amago_ray.__version__}\n"


@pytest.mark.parametrize("command", ["plot", "evaluate"])
def test_help_of_the_other_commands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        train.main([command, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "RUN" in out and ("--out" if command == "plot" else "--gif") in out


def test_training_ends_with_a_comparison(trained: tuple[Path, str]) -> None:
    run, out = trained
    assert f"The run is in {run}" in out
    assert re.search(r"epoch 1/2 .*\n(epoch 2: .*\n)?epoch 2/2 ", out), out
    assert re.search(r"Final test over 2\d\d rollouts, without exploration:\n\s+trained\s+random\n", out), out
    assert re.search(r"mean return +-?\d\.\d\d +-?\d\.\d\d\n", out), out


def test_the_table_shows_attempts_in_meta_rl() -> None:
    trained = {AVERAGE_RETURN: 3.0, "Total Episodes": 200.0}
    random = {AVERAGE_RETURN: 1.0}
    for attempt in (1, 2, 10):
        trained[f"Average Attempt {attempt} Success in Lake"] = attempt / 10
        random[f"Average Attempt {attempt} Success in Lake"] = 0.25
    table = compare(trained, random)
    assert "success at attempt 1          0.10      0.25" in table
    assert "success at attempt 10         1.00      0.25" in table
    assert "success at attempt 2" not in table


def test_plot_draws_a_picture(trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = trained
    out = tmp_path / "new.png"
    assert train.main(["plot", str(run), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    assert train.main(["plot", str(tmp_path / "no run")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no run" in err


def test_evaluate_prints_returns_and_draws(
    trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = trained
    gif = tmp_path / "maze.gif"
    assert evaluate(run, "--episodes", "16", "--greedy", "--gif", gif) == 0
    out = capsys.readouterr().out
    assert re.search(re.escape(AVERAGE_RETURN) + r" +-?\d\.\d{3}\n", out)
    assert re.search(r"Total Episodes +\d\d\.000\n", out) and "Average Success in TMaze-Passive-3" in out
    assert out.endswith(f"{gif}\n")
    with Image.open(gif) as picture:
        shown_ms = 0
        for i in range(picture.n_frames):
            picture.seek(i)
            shown_ms += picture.info["duration"]
    # At the horizon of 4 steps, or by a turn at the junction, which is the fourth step at the earliest.
    assert shown_ms == 120 * 5

    assert evaluate(run, "--episodes", "4", "--epoch", "0") == 0
    assert evaluate(run, "--episodes", "4", "--set", "TMaze.corridor_length = 2") == 0
    assert "TMaze-Passive-2" in capsys.readouterr().out
    assert evaluate(run, "--episodes", "4", "--env", "TMaze", "--set", "TMaze.active = True") == 0
    assert "TMaze-Active-3" in capsys.readouterr().out


def test_the_trained_policy_is_taken_away(trained: tuple[Path, str]) -> None:
    run, _ = trained
    for policy in (load_policy(run), load_policy(run / "ckpts" / "policy_weights" / "policy_epoch_0.pt", sample=False)):
        action, _ = policy.act(policy.observation_space.sample())
        assert policy.action_space.contains(action)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--episodes", "0"], ["--episodes 0", "1 or more"]),
        (["--epoch", "7"], ["--epoch 7", "0, 1"]),
        (["--set", "GRUTrajEncoder.d_hidden = 24"], ["policy.pt does not fit this configuration"]),
        (["--env", "Coutning"], ["'Coutning'", "did you mean 'Counting'"]),
        (["--env", "NoSuchThing-v3"], ["NoSuchThing"]),
    ],
)
def test_mistakes_in_evaluate(
    trained: tuple[Path, str], capsys: pytest.CaptureFixture[str], arguments: list[str], expected: list[str]
) -> None:
    assert evaluate(trained[0], *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    for part in expected:
        assert part in err


def test_a_gif_of_what_does_not_render(
    trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amago_ray.envs.builtin.tmaze.check_render_mode", lambda mode: None)
    assert evaluate(trained[0], "--episodes", "4", "--gif", tmp_path / "out.gif") == 2
    out, err = capsys.readouterr()
    assert out == "", "it is said before anything is played"
    assert err.count("\n") == 1 and "does not render" in err and "render_mode='rgb_array'" in err
    assert evaluate(tmp_path / "no run") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no run" in err and "has no config.txt; is it the folder of a run?" in err


def test_a_run_is_evaluated_without_its_data(
    trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data set of an offline run may be elsewhere: the policy acts in the environments alone."""
    run = tmp_path / "offline"
    shutil.copytree(trained[0] / "ckpts" / "latest", run / "ckpts" / "latest")
    offline = (
        "Experiment.dataset = @StoredDataset()",
        f"StoredDataset.path = {str(tmp_path / 'gone')!r}",
        "Experiment.train_timesteps_per_epoch = 0",
    )
    (run / "config.txt").write_text("\n".join([(trained[0] / "config.txt").read_text(), *offline]) + "\n")
    assert evaluate(run, "--episodes", "4") == 0, capsys.readouterr().err
    assert AVERAGE_RETURN in capsys.readouterr().out
