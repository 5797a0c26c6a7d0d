"""Bad input ends in one clear line that names the setting, the value and the remedy, before anything is trained."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gin
import gymnasium as gym
import numpy as np
import pytest
from conftest import TESTS, TINY_NETWORKS

from amago_ray import Experiment, config, train
from amago_ray.driver.probe import check_settings, probe
from amago_ray.driver.resume import check_same_weights
from amago_ray.driver.topology import Topology
from amago_ray.envs.builtin import Counting, TMaze
from amago_ray.nets.traj_encoders import GRUTrajEncoder


class Sick(gym.Env):
    """An environment with one thing wrong."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, **wrong: Any):
        self.wrong = wrong
        for name in ("observation_space", "action_space"):
            if name in wrong:
                setattr(self, name, wrong[name])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return self.wrong.get("obs", np.zeros(2, np.float32)), self.wrong.get("reward", 0.0), False, False, {}


@gin.configurable(module="probe_cases")
def nan_observation() -> gym.Env:
    return Sick(obs=np.array([0.0, np.nan], np.float32))


@gin.configurable(module="probe_cases")
def reward_of_wrong_shape() -> gym.Env:
    return Sick(reward=np.zeros(3))


@gin.configurable(module="probe_cases")
def unsupported_observations() -> gym.Env:
    return Sick(observation_space=gym.spaces.Text(5))


@gin.configurable(module="probe_cases")
def unsupported_actions() -> gym.Env:
    return Sick(action_space=gym.spaces.Text(5))


@gin.configurable(module="probe_cases")
def unbounded_actions() -> gym.Env:
    return Sick(action_space=gym.spaces.Box(-np.inf, np.inf, (1,)))


class NoGymnasium:
    def reset(self) -> int:
        return 0


@gin.configurable(module="probe_cases")
def without_gymnasium() -> Any:
    return NoGymnasium()


@gin.configurable(module="probe_cases")
def cannot_be_built() -> Any:
    raise OSError("the simulator is not installed")


# (bindings that are wrong, what the line must say): the setting, the value, and what would be right.
MISTAKES = {
    "unknown gin name": (
        ["TformerTrajEncodr.d_model = 3"],
        ["'TformerTrajEncodr'", "did you mean 'TformerTrajEncoder'"],
    ),
    "unknown gin parameter": (["Agent.gama = 0.9"], ["Agent has no setting 'gama'", "did you mean 'gamma'"]),
    "misspelt setting": (["Experiment.batchsize = 3"], ["Experiment", "'batchsize'", "did you mean 'batch_size'"]),
    "gin syntax": (["Experiment.batch_size 3"], ["batch_size"]),
    "unknown encoder": (
        ["Experiment.traj_encoder_type = 'GRUTrajEncodr'"],
        ["Experiment.traj_encoder_type", "'GRUTrajEncodr'", "did you mean 'GRUTrajEncoder'"],
    ),
    "reference to an unknown encoder": (
        ["Experiment.traj_encoder_type = @GRUTrajEncodr"],
        ["'GRUTrajEncodr'", "did you mean 'GRUTrajEncoder'"],
    ),
    "encoder of the wrong kind": (
        ["Experiment.tstep_encoder_type = @GRUTrajEncoder"],
        ["Experiment.tstep_encoder_type", "subclass of TstepEncoder", "FFTstepEncoder"],
    ),
    "unknown environment": (["Experiment.make_train_env = 'CartPool-v1'"], ["CartPool"]),
    "no gymnasium interface": (
        ["Experiment.make_train_env = @without_gymnasium"],
        ["NoGymnasium", "step", "observation_space", "gymnasium Env"],
    ),
    "environment that cannot be built": (
        ["Experiment.make_train_env = @cannot_be_built"],
        ["cannot_be_built", "OSError: the simulator is not installed"],
    ),
    "unsupported observation space": (
        ["Experiment.make_train_env = @unsupported_observations"],
        ["Sick", "Text", "not supported", "Box"],
    ),
    "unsupported action space": (
        ["Experiment.make_train_env = @unsupported_actions"],
        ["Sick", "Text", "not supported", "Box, Discrete, MultiDiscrete or MultiBinary"],
    ),
    "unbounded actions": (
        ["Experiment.make_train_env = @unbounded_actions"],
        ["Sick", "finite bounds", "give low and high"],
    ),
    "NaN observation": (["Experiment.make_train_env = @nan_observation"], ["Sick", "observation", "not finite"]),
    "reward of wrong shape": (
        ["Experiment.make_train_env = @reward_of_wrong_shape"],
        ["Sick", "reward must be one number", "array([0., 0., 0.])"],
    ),
    "validation in other spaces": (
        ["Experiment.make_val_env = @TMaze"],
        ["make_val_env has other spaces than make_train_env"],
    ),
    "batch_size=0": (["Experiment.batch_size = 0"], ["Experiment.batch_size=0", "1 or more"]),
    "no epochs": (["Experiment.epochs = 1.5"], ["Experiment.epochs=1.5", "integer of 1 or more"]),
    "learning_rate": (["Experiment.learning_rate = -1e-3"], ["Experiment.learning_rate=-0.001", "above 0"]),
    "bad schedule": (["Experiment.schedule = 'alternating'"], ["Experiment.schedule='alternating'", "'alternate'"]),
    "bad mixed_precision": (
        ["Experiment.mixed_precision = 'float16'"],
        ["Experiment.mixed_precision='float16'", "'no', 'bf16', 'fp16', 'auto'"],
    ),
    "bad padded_sampling": (["Experiment.padded_sampling = 'middle'"], ["padded_sampling='middle'", "'left'"]),
    "bad run_name": (["Experiment.run_name = 'a/b'"], ["Experiment.run_name='a/b'", "without '/'"]),
    "more workers than environments": (
        ["Experiment.num_rollout_workers = 9"],
        ["Experiment.num_rollout_workers=9", "parallel_actors=4"],
    ),
    "bad discount": (["Agent.gamma = 1.5"], ["Agent.gamma=1.5", "[0, 1)"]),
    "heads that do not divide": (
        ["Experiment.traj_encoder_type = @TformerTrajEncoder", "TformerTrajEncoder.n_heads = 7"],
        ["n_heads"],
    ),
    "priorities without critics": (
        ["Experiment.replay_sampling = 'prioritized'", "Agent.fake_filter = True", "Agent.online_coeff = 0"],
        ["Experiment.replay_sampling='prioritized'", "critics", "'timesteps'"],
    ),
    "data that are not there": (
        ["Experiment.dataset = @StoredDataset()", "StoredDataset.path = 'nowhere'"],
        ["StoredDataset.path=", "nowhere", "no trajectories are stored there"],
    ),
    "bad exploration": (["EpsilonGreedy.steps_anneal = 0"], ["steps_anneal=0", "at least 1"]),
}


def bindings(tmp_path: Path) -> list[str]:
    """A configuration that would work."""
    return [
        *TINY_NETWORKS,
        "Experiment.run_name = 'run'",
        f"Experiment.ckpt_base_dir = {str(tmp_path / 'runs')!r}",
        "Experiment.make_train_env = @Counting",
        "Experiment.traj_encoder_type = @GRUTrajEncoder",
        "Experiment.max_seq_len = 8",
        "Experiment.parallel_actors = 4",
        "Experiment.train_timesteps_per_epoch = 16",
        "Experiment.train_batches_per_epoch = 2",
        "Experiment.epochs = 1",
        "Experiment.batch_size = 4",
        "Experiment.num_rollout_workers = 1",
        "Experiment.replay_capacity_gb = 0.02",
        "Experiment.verbose = False",
    ]


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistakes have to be found before any process starts."""

    def start(*args: Any) -> None:
        raise AssertionError("processes were started")

    monkeypatch.setattr(Topology, "__init__", start)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*args: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("amago_ray.experiment.connect", connect)


def command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], *flags: str) -> str:
    """The one line that the command prints about a mistake in `extra`."""
    file = tmp_path / "config.gin"
    file.write_text("\n".join(bindings(tmp_path)) + "\n")
    sets = [argument for binding in extra for argument in ("--set", binding)]
    assert train.main(["--config", str(file), *sets, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return one_line(err)


def one_line(err: str) -> str:
    assert err.startswith("amago-ray: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err
    assert len(err) < 600, "one line, and not a page without line ends"
    return err


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: None, no_ray: None, mistake: str
) -> None:
    extra, expected = MISTAKES[mistake]
    line = command_line(tmp_path, capsys, extra)
    for part in expected:
        assert part in line, line
    assert not (tmp_path / "runs").exists(), "a mistake leaves no run behind"

    gin.clear_config()
    with pytest.raises((ValueError, TypeError)):
        config.load([], [*bindings(tmp_path), *extra])
        Experiment().start()  # type: ignore[call-arg]  # gin fills them in
    assert not (tmp_path / "runs").exists()


def test_a_policy_can_be_looked_at_where_the_data_it_learned_from_are_not(tmp_path: Path) -> None:
    """What `amago-ray evaluate` does before it acts."""
    gin.clear_config()
    config.load([], [*bindings(tmp_path), *MISTAKES["data that are not there"][0]])
    experiment = Experiment()  # gin fills in what is required
    assert probe(experiment).max_seq_len == 8


def test_a_misspelt_argument_in_python() -> None:
    with pytest.raises(TypeError, match=r"Experiment has no setting 'btch_size'; did you mean 'batch_size'\?"):
        Experiment(run_name="a", make_train_env=Counting, max_seq_len=4, btch_size=3)  # type: ignore[call-arg]


def test_a_maker_that_cannot_be_sent(tmp_path: Path, nothing_starts: None, no_ray: None) -> None:
    lock = threading.Lock()

    def make_env() -> gym.Env:
        with lock:
            return Counting(6)

    experiment = Experiment(run_name="a", ckpt_base_dir=tmp_path, make_train_env=make_env, max_seq_len=4)
    with pytest.raises(ValueError, match=r"Experiment.make_train_env=.*make_env.* cannot be sent to other processes"):
        experiment.start()


def test_missing_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.gin").write_text("")
    assert train.main(["--config", str(tmp_path / "empty.gin")]) == 2
    line = one_line(capsys.readouterr().err)
    assert "Experiment.run_name, Experiment.make_train_env, Experiment.max_seq_len" in line
    assert train.main(["--config", str(tmp_path / "none.gin")]) == 2
    assert f"{tmp_path / 'none.gin'}: there is no such file" in one_line(capsys.readouterr().err)


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: None, no_ray: None
) -> None:
    (tmp_path / "file").write_text("not a folder")
    blocked = str(tmp_path / "file" / "runs")
    line = command_line(tmp_path, capsys, [f"Experiment.ckpt_base_dir = {blocked!r}"])
    assert f"ckpt_base_dir={blocked!r} cannot be written" in line


def test_more_learners_than_gpus(
    ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: None
) -> None:
    line = command_line(tmp_path, capsys, ["Experiment.num_learners = 9"])
    assert "Experiment.num_learners=9" in line and "lower num_learners" in line and "learner_device='cpu'" in line
    line = command_line(tmp_path, capsys, ["Experiment.learner_device = 'cuda'", "Experiment.num_learners = 9"])
    assert "Experiment.num_learners=9" in line and "GPU" in line


def test_more_than_the_cluster_has(
    ray_instance: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: None
) -> None:
    line = command_line(tmp_path, capsys, ["Experiment.replay_capacity_gb = 1e6", "Experiment.replay_durable = False"])
    assert "replay shards, which need 1,100,000 GB each, find no node with as much left" in line
    assert "Experiment.num_replay_shards or replay_capacity_gb" in line
    assert not (tmp_path / "runs").exists(), "a mistake leaves no run behind"
    line = command_line(tmp_path, capsys, ["Experiment.learner_cpus = 99"])
    assert "1 of 1 learners, which need 99 CPUs each" in line
    assert "lower Experiment.num_learners or learner_cpus" in line


def test_resuming_what_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: None, no_ray: None
) -> None:
    line = command_line(tmp_path, capsys, [], "--resume")
    assert f"resume: {tmp_path / 'runs' / 'run'} holds no run" in line and "run_name" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("shared_processes")
def test_a_run_that_is_there_already(
    make_experiment: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is neither overwritten by mistake nor resumed with other networks; --overwrite starts it anew."""
    settings = {
        "make_train_env": Counting,
        "ckpt_base_dir": tmp_path / "runs",
        "num_rollout_workers": 1,
        "num_replay_shards": 1,
        "epochs": 1,
    }
    with make_experiment(**settings) as experiment:
        experiment.learn()
    saved = experiment.directory.latest_policy.read_bytes()
    gin.clear_config()
    line = command_line(tmp_path, capsys, [])
    assert "already holds a run" in line and all(way in line for way in ("--resume", "--overwrite", "run_name"))
    line = command_line(tmp_path, capsys, ["GRUTrajEncoder.d_hidden = 24"], "--resume")
    assert "no longer matches the saved weights" in line and "policy.traj_encoder" in line and "config.txt" in line
    assert "(16, 16)" in line or "(48, 16)" in line, "the shapes, before and now"
    assert experiment.directory.latest_policy.read_bytes() == saved

    gin.clear_config()
    config.load([], TINY_NETWORKS)
    with make_experiment(**settings, seed=5) as anew:
        anew.start(overwrite=True)
        assert not anew.directory.latest_policy.exists() and anew.directory.saved_epochs() == []


@pytest.mark.processes
def test_the_command_itself(tmp_path: Path) -> None:
    """Once as a process of its own: exit status 2, one line, nothing else, and no waiting."""
    file = tmp_path / "config.gin"
    file.write_text("\n".join(bindings(tmp_path)) + "\n")
    result = subprocess.run(
        [sys.executable, "-m", "amago_ray.train", "--config", str(file), "--set", "Experiment.batch_size = 0"],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "AMAGO_RAY_TRACEBACK"},
    )
    assert result.returncode == 2 and result.stdout == ""
    assert "Experiment.batch_size=0: it must be an integer of 1 or more" in one_line(result.stderr)


def test_weights_are_compared() -> None:
    check_same_weights({"a": [2, 3]}, {"a": [2, 3]})
    with pytest.raises(ValueError, match=re.escape("a was (2, 3), now (2, 4)")):
        check_same_weights({"a": [2, 3]}, {"a": [2, 4]})
    with pytest.raises(ValueError, match=re.escape("b was (1,), now absent")):
        check_same_weights({"a": [2, 3], "b": [1]}, {"a": [2, 3]})


@pytest.mark.parametrize("right", [{}, {"traj_save_len": 1e10}, {"traj_save_len": 10**10}, {"test_episodes": 0}])
def test_settings_that_are_right_pass(right: dict[str, Any]) -> None:
    check_settings(
        Experiment(
            run_name="a",
            make_train_env=partial(TMaze, 4),
            max_seq_len=8,
            traj_encoder_type=GRUTrajEncoder,
            l2_coeff=0.0,
            **right,
        )
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"traj_save_len": 10.5}, "traj_save_len=10.5: it must be an integer of 1 or more"),
        ({"traj_save_len": float("inf")}, "traj_save_len=inf: it must be an integer"),
        ({"traj_save_len": "long"}, "traj_save_len='long': it must be an integer"),
        ({"force_reset_train_envs_every": 0}, "force_reset_train_envs_every=0: it must be an integer of 1 or more"),
        ({"test_episodes": -1}, "test_episodes=-1: it must be an integer of 0 or more"),
        ({"test_max_timesteps": 0}, "test_max_timesteps=0: it must be an integer of 1 or more"),
    ],
)
def test_numbers_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment(run_name="a", make_train_env=partial(TMaze, 4), max_seq_len=8, **wrong)
