"""`amago-ray import-amago`: weights under AMAGO's names become a run that acts, evaluates and trains on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import gin
import numpy as np
import pytest
import torch
from golden_cases import GoldenShapes, group, load
from torch import Tensor

from amago_ray import load_policy, train
from amago_ray.agent.flat_weights import load_flat_state
from amago_ray.commands.command_line import load_experiment
from amago_ray.driver.probe import probe
from amago_ray.rollout.evaluate import load_policy_weights
from amago_ray.watch.metrics import read_metrics

CASES = ["rollout_gru", "rollout_transformer", "rollout_transformer_rope"]
ENCODERS = {"rnn": "GRUTrajEncoder", "transformer": "TformerTrajEncoder"}
TRAINING = (
    "Experiment.parallel_actors = 2",
    "Experiment.train_timesteps_per_epoch = 80",
    "Experiment.train_batches_per_epoch = 1",
    "Experiment.batch_size = 4",
    "Experiment.epochs = 1",
    "Experiment.replay_capacity_gb = 0.02",
    "Experiment.learning_rate = 1e-8",
    "Agent.tau = 0.0",
    "Experiment.num_rollout_workers = 1",
)


BINS = ("NCriticsTwoHot.min_return = -9.0", "NCriticsTwoHot.max_return = 9.0")


class Files:
    """A golden case as a user has it: AMAGO's file of weights, and a gin file that describes the agent."""

    def __init__(self, folder: Path, name: str):
        self.meta, self.arrays = load(name)
        self.state = group(self.arrays, "state/")
        self.weights, self.config, self.out = folder / "policy_epoch_7.pt", folder / "my.gin", folder / "runs" / "mine"
        lines = [
            "import golden_cases",
            *(f"{k} = {v if str(v).startswith('@') else repr(v)}" for k, v in self.meta["gin"].items()),
            "Experiment.make_train_env = @GoldenShapes",
            f"Experiment.traj_encoder_type = @{ENCODERS[self.meta['traj_encoder']]}",
            f"Experiment.max_seq_len = {self.meta['max_seq_len']}",
            *TRAINING,
        ]
        self.config.write_text("\n".join(lines))
        self.save(self.state)

    def save(self, state: object) -> None:
        torch.save(state, self.weights)

    def import_it(self, *more: str) -> int:
        return main("import-amago", self.weights, "--config", self.config, "--out", self.out, *more)


def main(*arguments: str | Path) -> int:
    gin.clear_config()
    return train.main([str(argument) for argument in arguments])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, "rollout_gru")


def saved(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_the_imported_policy_acts_as_in_amago(name: str, tmp_path: Path) -> None:
    """Greedy actions over rollouts with resets, from the file that the run holds and the configuration it recorded."""
    files = Files(tmp_path, name)
    assert files.import_it() == 0
    gin.clear_config()
    spec = probe(load_experiment([files.out / "config.txt"], []))
    policy, arrays = spec.build().policy.eval(), files.arrays
    load_flat_state(policy, load_policy_weights(spec, files.out / "ckpts" / "latest" / "policy.pt").buffer)
    memory = policy.initial_memory(arrays["obs"].shape[1])
    for t, obs in enumerate(arrays["obs"]):
        rl2, time_idx = torch.from_numpy(arrays["rl2s"][t]), torch.from_numpy(arrays["time_idxs"][t])
        action, memory = policy.act({"observation": torch.from_numpy(obs)}, rl2, time_idx, memory, sample=False)
        assert np.array_equal(action.argmax(dim=-1), arrays["probs"][t].argmax(axis=-1)), f"step {t}"
        memory = policy.reset_memory(memory, arrays["reset_after"][t])


def test_a_run_is_made(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.import_it("--set", "Agent.tau = 0.25") == 0
    out = capsys.readouterr().out
    latest = files.out / "ckpts" / "latest" / "policy.pt"
    assert f"amago-ray evaluate {files.out}\n" in out and f"--init-from {latest}\n" in out
    state, first = saved(latest), saved(files.out / "ckpts" / "policy_weights" / "policy_epoch_0.pt")
    assert all(torch.equal(value, first[name]) for name, value in state.items())
    assert torch.equal(state["critics.inp_layer.weight"], files.state["critics.net.inp_layer.weight"])
    assert torch.equal(state["popart.mu"], files.state["popart.mu"])
    text = (files.out / "config.txt").read_text()
    assert "Agent.tau = 0.25" in text and f"Experiment.run_name = {files.out.name!r}" in text

    for more in ((), ("--epoch", "0")):
        assert main("evaluate", files.out, "--episodes", "8", *more) == 0
        assert re.search(r"Average Total Return in GoldenShapes +\d", capsys.readouterr().out)
    policy = load_policy(files.out)
    action, _ = policy.act(policy.observation_space.sample())
    assert policy.action_space.contains(action)


def test_files_of_several_processes(files: Files) -> None:
    files.save({f"module.{name}": value for name, value in files.state.items()})
    assert files.import_it() == 0


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not any(part in name for part in names)}


@pytest.mark.parametrize(
    ("bindings", "expected"),
    [
        (["GRUTrajEncoder.d_hidden = 24"], ["policy.traj_encoder.rnn.weight_ih_l0", "(48, 10), not (72, 10)"]),
        (["NCritics.d_hidden = 24"], ["critics.inp_layer.bias: (4, 1, 16), not (4, 1, 24)"]),
        (["Agent.num_critics = 3"], ["critics.inp_layer.bias: (4, 1, 16), not (3, 1, 16)"]),
        (["Multigammas.discrete = [0.1]"], ["popart.mu: (3, 1), not (2, 1)"]),
        (["Experiment.traj_encoder_type = @TformerTrajEncoder"], ["missing ['policy.traj_encoder.tformer"]),
        (["Agent.actor_type = @ResidualActor"], ["missing ['policy.actor.blocks", "check the encoder and agent types"]),
        (
            ["Experiment.agent_type = @MultiTaskAgent", *BINS],
            ["critics.inp_layer.weight: (4, 12, 16), not (4, 16, 256)"],
        ),
        (["GRUTrajEncoder.d_hiden = 24"], ["did you mean 'd_hidden'"]),
    ],
)
def test_weights_of_another_agent(
    files: Files, capsys: pytest.CaptureFixture[str], bindings: Sequence[str], expected: Sequence[str]
) -> None:
    assert files.import_it(*(part for binding in bindings for part in ("--set", binding))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    for part in expected:
        assert part in err
    assert not files.out.exists()


@pytest.mark.parametrize(
    "bindings",
    [["TformerTrajEncoder.n_heads = 4"], ["TformerTrajEncoder.d_model = 18", "TformerTrajEncoder.n_heads = 3"]],
)
def test_another_number_of_attention_heads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bindings: Sequence[str]
) -> None:
    files = Files(tmp_path, "rollout_transformer")
    assert files.import_it(*(part for binding in bindings for part in ("--set", binding))) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "head_scaler: (1, 1, 2, 1) in AMAGO's layout" in err


def test_a_transformer_s_weights_for_another_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = Files(tmp_path, "rollout_transformer")
    assert files.import_it("--set", "Experiment.traj_encoder_type = @GRUTrajEncoder") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "missing ['policy.traj_encoder.out.bias'" in err and "tformer" in err


def test_files_that_hold_no_weights(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    def answer() -> str:
        assert files.import_it() == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    files.weights.write_text("no weights")
    assert "is not a file of PyTorch weights" in answer()
    files.weights.write_bytes(b"")
    assert "is not a file of PyTorch weights" in answer()
    files.save(files.state)
    files.weights.write_bytes(files.weights.read_bytes()[:5000])
    assert "is not a file of PyTorch weights" in answer()
    files.save({"model": files.state})
    assert "does not hold a state dict" in answer()
    files.save(GoldenShapes())  # code, which is not run
    assert "is not a file of PyTorch weights" in answer()
    files.save({**files.state, "actor.extra": torch.zeros(1)})
    assert "not expected ['policy.actor.extra']" in answer()
    files.save(without(files.state, "popart"))
    assert "missing ['popart.b'" in answer()
    files.weights.unlink()
    assert "there is no such file of policy weights" in answer()
    assert not files.out.exists()


def test_nothing_is_written_over(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.out.mkdir(parents=True)
    assert files.import_it() == 2
    assert f"--out {files.out}: this exists already" in capsys.readouterr().err


# --- training on -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_instance", "shared_processes")
def test_training_goes_on_from_it(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    """With a learning rate of next to nothing the weights stay what they were, which initial weights are not."""
    assert files.import_it() == 0
    imported = saved(files.out / "ckpts" / "latest" / "policy.pt")
    start = ("--config", files.out / "config.txt", "--init-from", files.out / "ckpts" / "latest" / "policy.pt")
    assert main(*start, "--no-final-test") == 0, capsys.readouterr().err
    trained = saved(files.out / "ckpts" / "latest" / "policy.pt")
    for name, value in imported.items():
        if "popart" not in name and "in_norm" not in name:
            torch.testing.assert_close(trained[name], value, rtol=1e-5, atol=1e-5)
    assert not torch.equal(trained["popart.t"], imported["popart.t"]), "it did train"
    assert any("train/Total Loss" in row for row in read_metrics(files.out))

    capsys.readouterr()
    assert main(*start, "--overwrite") == 2
    assert "--overwrite would remove --init-from" in capsys.readouterr().err
    assert (files.out / "ckpts" / "latest" / "policy.pt").is_file()
    assert main(*start, "--resume") == 2
    assert "--init-from begins a run and --resume goes on with one" in capsys.readouterr().err


def test_weights_that_a_run_cannot_begin_with(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    """They are refused before anything starts."""
    assert files.import_it() == 0
    capsys.readouterr()
    latest = files.out / "ckpts" / "latest" / "policy.pt"
    settings = ("--config", files.out / "config.txt", "--set", "Experiment.run_name = 'other'")
    assert main(*settings, "--init-from", latest, "--set", "GRUTrajEncoder.d_hidden = 24") == 2
    assert "policy.pt does not fit this configuration" in capsys.readouterr().err
    assert main(*settings, "--init-from", files.config) == 2
    assert "my.gin is not a file of PyTorch weights" in capsys.readouterr().err
    assert main(*settings, "--init-from", files.out / "none.pt") == 2
    assert "there is no such file" in capsys.readouterr().err
    assert not (files.out.parent / "other").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["import-amago", "--help"], ["FILE", "--config", "--out"]),
        (["--help"], ["import-amago"]),
    ):
        with pytest.raises(SystemExit) as end:
            train.main(arguments)
        assert end.value.code == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words)
