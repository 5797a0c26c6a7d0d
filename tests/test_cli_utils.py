"""The helpers of AMAGO's example scripts, and such a script as it is but for the package's name."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytest
from conftest import TESTS

from amago_ray import cli_utils, config
from amago_ray.agent import MultiTaskAgent
from amago_ray.cli_utils import (
    add_common_cli,
    create_experiment_from_cli,
    register_traj_encoder,
    switch_agent,
    switch_async_mode,
    switch_exploration,
    switch_traj_encoder,
    switch_tstep_encoder,
    use_config,
)
from amago_ray.envs.builtin import Counting
from amago_ray.envs.exploration import BilevelEpsilonGreedy
from amago_ray.nets.cnn import IMPALAishCNN
from amago_ray.nets.traj_encoders import GRUTrajEncoder, TformerTrajEncoder, TrajEncoder
from amago_ray.nets.tstep_encoders import CNNTstepEncoder

REQUIRED = ["--run_name", "a", "--buffer_dir", "runs"]


def test_switches_return_classes_and_fill_in_their_settings() -> None:
    settings: dict[str, Any] = {}
    assert switch_agent(settings, "multitask", gamma=0.5) is MultiTaskAgent
    assert switch_tstep_encoder(settings, "cnn", cnn_type=IMPALAishCNN) is CNNTstepEncoder
    assert switch_traj_encoder(settings, "transformer", memory_size=32, layers=2, d_ff=48) is TformerTrajEncoder
    assert switch_traj_encoder(settings, "rnn", 24, 1) is GRUTrajEncoder
    assert switch_exploration(settings, "bilevel", rollout_horizon=9) is BilevelEpsilonGreedy
    assert settings == {
        "MultiTaskAgent.gamma": 0.5,
        "CNNTstepEncoder.cnn_type": IMPALAishCNN,
        "TformerTrajEncoder.d_model": 32,
        "TformerTrajEncoder.d_ff": 48,
        "TformerTrajEncoder.n_layers": 2,
        "GRUTrajEncoder.d_hidden": 24,
        "GRUTrajEncoder.d_output": 24,
        "GRUTrajEncoder.n_layers": 1,
        "BilevelEpsilonGreedy.rollout_horizon": 9,
    }


def test_a_transformer_of_a_width_is_four_times_as_wide_within_and_none_is_the_encoders_own() -> None:
    settings: dict[str, Any] = {}
    switch_traj_encoder(settings, "transformer", memory_size=32)
    assert settings == {"TformerTrajEncoder.d_model": 32, "TformerTrajEncoder.d_ff": 128}
    settings.clear()
    switch_traj_encoder(settings, "mamba")
    assert settings == {}


def test_a_gru_has_both_names() -> None:
    encoders = {name: switch_traj_encoder({}, name, memory_size=8) for name in ("rnn", "gru")}
    assert encoders["rnn"] is encoders["gru"] is GRUTrajEncoder


def test_a_misspelt_short_name() -> None:
    with pytest.raises(
        ValueError, match=r"no traj encoder has the short name 'transfomer'; did you mean 'transformer'\?"
    ):
        switch_traj_encoder({}, "transfomer")


def test_ones_own_encoder_has_a_short_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_utils, "TRAJ_ENCODERS", dict(cli_utils.TRAJ_ENCODERS))
    with pytest.raises(ValueError, match="Plain has no name in gin: put @gin.configurable below"):
        register_traj_encoder("plain")(type("Plain", (TrajEncoder,), {}))

    @register_traj_encoder("own")
    @gin.configurable
    class OwnEncoder(TrajEncoder):
        pass

    with pytest.raises(ValueError, match="the traj encoder OwnEncoder has the short name 'own' already"):
        register_traj_encoder("own")(GRUTrajEncoder)
    settings: dict[str, Any] = {}
    assert switch_traj_encoder(settings, "own", 8, 1) is OwnEncoder
    assert settings == {"OwnEncoder.memory_size": 8, "OwnEncoder.n_layers": 1}


def test_a_dictionary_reaches_other_processes_whatever_its_values(tmp_path: Path) -> None:
    """Classes, numbers of NumPy and paths are in the snapshot that workers are sent; files come on top."""
    (tmp_path / "more.gin").write_text("Agent.tau = 0.5\n")
    use_config(
        {
            "amago.agent.Agent.gamma": np.float64(0.25),
            "Agent.tau": 0.1,
            "amago.nets.tstep_encoders.CNNTstepEncoder.cnn_type": IMPALAishCNN,
            "NCriticsTwoHot.max_return": float("inf"),
        },
        [tmp_path / "more.gin"],
        finalize=False,
    )
    sent = config.snapshot()
    gin.clear_config()
    config.restore(sent)
    assert gin.query_parameter("Agent.gamma") == 0.25 and gin.query_parameter("Agent.tau") == 0.5
    assert repr(gin.query_parameter("CNNTstepEncoder.cnn_type")) == "@IMPALAishCNN"
    assert repr(gin.query_parameter("NCriticsTwoHot.max_return")).endswith("inf")
    with pytest.raises(ValueError, match=r"Agent\.gamma = <object .*: gin has no text for this value"):
        use_config({"Agent.gamma": object()})


def test_a_finished_configuration_is_changed_by_use_config_alone() -> None:
    use_config({"Agent.gamma": 0.25})
    with pytest.raises(RuntimeError, match="locked"):
        gin.bind_parameter("Agent.gamma", 0.5)
    use_config({"Agent.gamma": 0.75})
    assert gin.query_parameter("Agent.gamma") == 0.75
    with gin.unlock_config():
        gin.clear_config()


def test_flags_become_an_experiment() -> None:
    words = [
        *REQUIRED,
        "--traj-encoder",
        "rnn",
        "--batch_size",
        "8",
        "--env_mode",
        "sync",
        "--dset-max-size",
        "9",
        "--no_log",
    ]
    args = add_common_cli(argparse.ArgumentParser()).parse_args(words)
    experiment = create_experiment_from_cli(
        args, Counting, Counting, 16, traj_encoder_type=GRUTrajEncoder, group_name="g", sample_actions=False, epochs=3
    )
    assert (experiment.run_name, experiment.ckpt_base_dir) == ("a", "runs")
    assert (experiment.batch_size, experiment.epochs, experiment.train_batches_per_epoch) == (8, 3, 1000)
    assert (experiment.env_mode, experiment.replay_capacity_trajectories) == ("sync", 9)
    assert not experiment.log_to_wandb and experiment.wandb_group_name == "g"
    assert not experiment.sample_actions_train and experiment.traj_encoder_type is GRUTrajEncoder
    assert switch_async_mode(experiment, "both") is experiment
    with pytest.raises(ValueError, match="--mode collect: one run collects and learns here"):
        switch_async_mode(experiment, "collect")


@pytest.mark.processes
def test_a_script_of_amagos_kind_runs_but_for_the_packages_name(tmp_path: Path) -> None:
    """Two trials of an epoch each: trained, validated, saved and tested, with the networks that it asks for."""
    script = tmp_path / "example.py"
    script.write_text(re.sub(r"\bamago\b", "amago_ray", (TESTS / "amago_example.py").read_text()))
    (tmp_path / "small.gin").write_text(
        "import amago.nets.transformer\n"
        "amago.nets.traj_encoders.TformerTrajEncoder.attention_type = @amago.nets.transformer.VanillaAttention\n"
        "amago.agent.Multigammas.discrete = [0.9]\n"
    )
    flags = (
        "--agent_type multitask --traj_encoder transformer --memory_size 16 --memory_layers 1 --max_seq_len 16 "
        "--epochs 1 --batches_per_epoch 2 --timesteps_per_epoch 32 --parallel_actors 2 --batch_size 4 --val_interval 1 "
        "--ckpt_interval 1 --eval_timesteps 32 --no_log --trials 2 --run_name pole --buffer_dir runs "
        "--configs small.gin"
    )
    result = subprocess.run(
        [sys.executable, str(script), *flags.split()], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("pole_trial_0", "pole_trial_1"):
        assert re.search(rf"{name}: {{.*'Average Total Return in CartPole': \d", result.stdout), result.stdout
        run = tmp_path / "runs" / name
        assert (run / "ckpts" / "policy_weights" / "policy_epoch_0.pt").is_file()
        recorded = (run / "config.txt").read_text()
        for line in ("NCriticsTwoHot.output_bins = 32", "TformerTrajEncoder.d_ff = 64", "PopArt.init_nu = 100.0"):
            assert line in recorded
    for notice in ("PopArtLayer is PopArt here", "VanillaAttention is CausalAttention here"):
        assert result.stderr.count(notice) == 1
