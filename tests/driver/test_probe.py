"""What is tried before anything starts, and what a run that is there already is protected from (see tests/errors/)."""

from __future__ import annotations

import os
import random
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
import torch
from conftest import TESTS, TINY_NETWORKS
from dataset_cases import play
from gymnasium import spaces
from process_envs import Noting
from small_agents import small_agent_spec

from amago_ray import Experiment, config, train
from amago_ray.driver.probe import check_data, check_settings, probe
from amago_ray.driver.resume import check_same_weights
from amago_ray.driver.topology import Topology
from amago_ray.envs.builtin import Counting, TMaze
from amago_ray.nets.traj_encoders import FFTrajEncoder, GRUTrajEncoder
from amago_ray.replay.datasets.dataset import MixtureOfDatasets, OnlineReplay
from amago_ray.replay.readers import EpisodeDataset
from amago_ray.replay.sampling.relabeling import HindsightRelabeler
from amago_ray.single_process import SingleProcess


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


def test_a_policy_can_be_looked_at_where_the_data_it_learned_from_are_not(tmp_path: Path) -> None:
    """What `amago-ray evaluate` does before it acts."""
    gin.clear_config()
    config.load([], [*bindings(tmp_path), "Experiment.dataset = @StoredDataset()", "StoredDataset.path = 'nowhere'"])
    experiment = Experiment()  # gin fills in what is required
    assert probe(experiment).max_seq_len == 8


def a_list(*_: Any) -> Any:
    return []


@pytest.mark.parametrize(
    ("setting", "base"), [("relabeler_type", "Relabeler"), ("exploration_wrapper_type", "ExplorationWrapper")]
)
def test_a_function_that_makes_another_kind(
    setting: str, base: str, tmp_path: Path, nothing_starts: None, no_ray: None
) -> None:
    given: dict[str, Any] = {"run_name": "a", "ckpt_base_dir": tmp_path, "max_seq_len": 4, setting: a_list}
    experiment = Experiment(make_train_env=partial(Counting, 6), **given)
    with pytest.raises(
        TypeError, match=rf"^Experiment\.{setting}=<function a_list.*: it must make a {base}, and it .*\[\]$"
    ):
        experiment.start()


def test_a_relabeler_that_refuses_its_arguments(tmp_path: Path, nothing_starts: None, no_ray: None) -> None:
    made = partial(HindsightRelabeler, strategy="past")
    experiment = Experiment("a", partial(Counting, 6), 4, ckpt_base_dir=tmp_path, relabeler_type=made)
    with pytest.raises(ValueError, match="strategy='past'"):
        experiment.start()


class DrawsFromAll(Counting):
    """An environment that draws from the streams which all code shares."""

    def reset(self, **given: Any) -> Any:
        random.random(), np.random.random(), torch.rand(1)
        return super().reset(**given)


def test_the_callers_random_streams_are_left_alone(tmp_path: Path, no_ray: None) -> None:
    def states() -> tuple[Any, ...]:
        kind, keys, *place = np.random.get_state()
        return random.getstate(), kind, np.asarray(keys).tolist(), place, torch.get_rng_state().tolist()

    make_env = partial(DrawsFromAll, action="continuous")  # whose policy draws, too
    experiment = Experiment("a", make_env, 8, traj_encoder_type=GRUTrajEncoder, ckpt_base_dir=tmp_path)
    before = states()
    with pytest.raises(AssertionError, match="Ray was started"):
        experiment.start()
    assert states() == before


class CountedOtherwise(Counting):
    """An environment whose goals would be others once they are desired."""

    def __init__(self) -> None:
        super().__init__(6)
        self.observation_space = spaces.Dict(
            achieved_goal=spaces.Discrete(5, start=1), desired_goal=spaces.Discrete(6), count=self.observation_space
        )

    def reset(self, **given: Any) -> Any:
        obs, info = super().reset(**given)
        return {"achieved_goal": 1, "desired_goal": 0, "count": obs}, info

    def step(self, action: Any) -> Any:
        obs, *others = super().step(action)
        return {"achieved_goal": 1, "desired_goal": 0, "count": obs}, *others


def test_a_relabeler_of_goals_that_are_counted_otherwise(tmp_path: Path, nothing_starts: None, no_ray: None) -> None:
    experiment = Experiment("a", CountedOtherwise, 4, ckpt_base_dir=tmp_path, relabeler_type=HindsightRelabeler)
    message = r"^Experiment.relabeler_type=.* Discrete\(5, start=1\) and .* Discrete\(6\);"
    with pytest.raises(ValueError, match=message):
        experiment.start()
    spec = small_agent_spec(CountedOtherwise, FFTrajEncoder, 4)
    with pytest.raises(ValueError, match=message):
        SingleProcess(CountedOtherwise, spec, relabeler=HindsightRelabeler())


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
    with make_experiment(**settings | {"epochs": 2}) as longer:
        longer.start(resume=True)
        longer.learn()
    recorded = experiment.directory.config.read_text()
    with pytest.raises(ValueError, match="has 2 epochs already, and Experiment.epochs=1 asks for no more"):
        make_experiment(**settings).start(resume=True)
    assert experiment.directory.config.read_text() == recorded
    with make_experiment(**settings, seed=5) as anew:
        anew.start(overwrite=True)
        assert not anew.directory.latest_policy.exists() and anew.directory.saved_epochs() == []


def test_what_is_collected_may_be_chosen_among_beside_other_data(tmp_path: Path) -> None:
    config.load([], TINY_NETWORKS)
    of_others = EpisodeDataset(play(Counting(6), lambda obs: 1, 4))
    settings: dict[str, Any] = {"replay_sampling": "timesteps", "ckpt_base_dir": tmp_path}
    with pytest.raises(ValueError, match="^Experiment.replay_sampling='timesteps': it is for what the run itself"):
        check_data(Experiment("a", Counting, 4, dataset=of_others, train_timesteps_per_epoch=0, **settings))
    both = MixtureOfDatasets((OnlineReplay(), of_others), (1.0, 1.0))
    for dataset in (None, both):
        check_data(Experiment("a", Counting, 4, dataset=dataset, **settings))


@pytest.mark.processes
def test_environments_with_processes_of_their_own_are_built_once_and_not_in_the_driver(tmp_path: Path) -> None:
    config.load([], TINY_NETWORKS)
    folder = tmp_path / "built"
    folder.mkdir()
    train_env, val_env = (partial(Noting, folder, name) for name in ("train", "val"))
    experiment = Experiment("a", train_env, 4, make_val_env=val_env, env_mode="processes", ckpt_base_dir=tmp_path)
    probe(experiment)
    check_data(experiment)
    pids, names, _ = zip(*(path.name.split("-") for path in folder.iterdir()), strict=True)
    assert sorted(names) == ["train", "val"] and str(os.getpid()) not in pids


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
        ({"env_mode": "threads"}, "env_mode='threads': use one of 'sync', 'processes', 'async', 'already_vectorized'"),
        ({"env_timeout_s": 2.0}, "env_timeout_s=2.0: in a worker's own process .* set env_mode='processes'"),
        ({"env_max_rollouts": 5}, "env_max_rollouts=5: in a worker's own process"),
        ({"env_double_buffer": True}, "env_double_buffer=True: in a worker's own process"),
        (
            {"env_mode": "processes", "env_timeout_s": 200, "call_timeout_s": 900},
            "env_timeout_s=200: 5 of them in a row must fit into call_timeout_s=900",
        ),
        ({"env_mode": "processes", "env_max_rollouts": 0}, "env_max_rollouts=0: it must be an integer of 1 or more"),
    ],
)
def test_numbers_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment(run_name="a", make_train_env=partial(TMaze, 4), max_seq_len=8, **wrong)
