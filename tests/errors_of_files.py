"""What can be wrong with data, weights, runs, and words of the command line."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from error_case import Case, Provoke, dataset, in_run, resumed, with_settings, words
from error_scene import Outcome, Scene, npz_of, truncate

# ---------------------------------------------------------------- data


def _damaged_segment(scene: Scene) -> Outcome:
    replay = scene.run / "replay"
    for segment in replay.rglob("*.segment"):
        truncate(segment, 40)
    replay.rename(scene.folder / "old")
    return scene.command(
        "--config", scene.config("Experiment.dataset = @StoredDataset()", "StoredDataset.path = 'old'"), "--overwrite"
    )


def _other_environments(scene: Scene) -> Outcome:
    (scene.run / "replay").rename(scene.folder / "old")
    return scene.command(
        "--config",
        scene.config(
            "Experiment.make_train_env = 'Acrobot-v1'",
            "Experiment.dataset = @StoredDataset()",
            "StoredDataset.path = 'old'",
        ),
        "--overwrite",
    )


def _npz(**changes: Any) -> Provoke:
    def provoke(scene: Scene) -> Outcome:
        npz_of(scene.folder / "buffer" / "CartPole_0_1.npz", **changes)
        return dataset("AmagoDataset", "AmagoDataset.path = 'buffer'")(scene)

    return provoke


def _cut_npz(scene: Scene) -> Outcome:
    npz_of(scene.folder / "buffer" / "CartPole_0_1.npz")
    truncate(scene.folder / "buffer" / "CartPole_0_1.npz")
    return dataset("AmagoDataset", "AmagoDataset.path = 'buffer'")(scene)


def _pickled_npz(scene: Scene) -> Outcome:
    npz_of(scene.folder / "buffer" / "CartPole_0_1.npz", rews=[{"an": "object"}])
    return dataset("AmagoDataset", "AmagoDataset.path = 'buffer'")(scene)


DATA = (
    Case("data that are not there", dataset("StoredDataset", "StoredDataset.path = 'nowhere'"), ("nowhere", "no traj")),
    Case("a segment cut to its first bytes", _damaged_segment, ("old", "no trajectories are stored there")),
    Case("data of other environments", _other_environments, ("StoredDataset.path", "other environments")),
    Case("a folder without AMAGO's files", dataset("AmagoDataset", "AmagoDataset.path = 'b'"), ("no .npz files",)),
    Case("an npz file that is cut off", _cut_npz, ("CartPole_0_1.npz cannot be read",)),
    Case("an npz file that holds a pickle", _pickled_npz, ("CartPole_0_1.npz cannot be read", "allow_pickle=False")),
    Case(
        "an npz file with rows missing",
        _npz(dones=[[True]]),
        ("has dones of shape (1, 1) for 3 rewards: 3 rows of one",),
    ),
    Case(
        "an npz file with NaN",
        _npz(rews=[[1.0], [float("nan")], [1.0]]),
        ("AmagoDataset, trajectory 0", "reward 1 is nan"),
    ),
    Case(
        "a Minari dataset that is not there", dataset("MinariDataset", "MinariDataset.dataset = 'a/b-v0'"), ("a/b-v0",)
    ),
    Case("observations that are not numbers", dataset("NanData"), ("NanData, trajectory 1", "is nan")),
    Case("rewards without end", dataset("InfiniteRewards"), ("InfiniteRewards, trajectory 1", "reward 1 is inf")),
    Case("actions that there are not", dataset("ForeignActions"), ("ForeignActions, trajectory 1", "Discrete(2)")),
    Case("too few rewards", dataset("ShortRewards"), ("ShortRewards, trajectory 1", "shape (4, 4)")),
    Case("observations of another shape", dataset("OtherObservations"), ("trajectory 1", "shape (4, 9)")),
    Case("a reader that fails", dataset("BrokenReader"), ("BrokenReader", "KeyError", "episode_1")),
    Case("no data set, but a class of them", with_settings("Experiment.dataset = @FineData"), ("RLDataset",)),
)

# ---------------------------------------------------------------- weights and runs


def _foreign_weights(scene: Scene) -> Outcome:
    torch.save({"a": torch.zeros(3)}, scene.folder / "other.pt")
    return scene.command("--config", scene.config(), "--init-from", scene.folder / "other.pt")


def _code(scene: Scene) -> Outcome:
    class Code:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(scene.folder / "it was run"),)

    torch.save({"a": Code()}, scene.folder / "code.pt")
    return scene.command("--config", scene.config(), "--init-from", scene.folder / "code.pt")


def _cut_weights(scene: Scene) -> Outcome:
    weights = scene.run / "ckpts" / "latest" / "policy.pt"
    truncate(weights)
    other = scene.config("Experiment.run_name = 'next'")
    return scene.command("--config", other, "--init-from", weights)


def _state(run: Any, name: str) -> Any:
    return run / "ckpts" / "training_states" / "run_epoch_0" / name


def _of_two_others(run: Any) -> None:
    states = run / "ckpts" / "training_states"
    shutil.copytree(states / "run_epoch_0", states / "a_epoch_0")
    (states / "run_epoch_0").rename(states / "b_epoch_0")


def _another_number_of_shards(scene: Scene) -> Outcome:
    return resumed(lambda run: None, "Experiment.num_replay_shards = 2")(scene)


RUNS = (
    Case("weights that are not there", words("--config", "CONFIG", "--init-from", "a.pt"), ("a.pt", "no such file")),
    Case("weights that are cut off", _cut_weights, ("policy.pt is not a file of PyTorch weights",)),
    Case("weights of something else", _foreign_weights, ("other.pt does not fit this configuration",)),
    Case(
        "a file that would run code",
        _code,
        ("code.pt is not a file of PyTorch weights", "could be code and are not loaded"),
    ),
    Case(
        "a run that is there already", lambda scene: words("--config", "CONFIG")(_with_run(scene)), ("already holds",)
    ),
    Case("nothing to resume", with_settings(flags=("--resume",)), ("holds no run", "run_name")),
    Case(
        "a run whose training states are gone",
        resumed(lambda run: shutil.rmtree(run / "ckpts" / "training_states")),
        ("1 finished epochs and 1 policies", "no training state", "--overwrite"),
    ),
    Case(
        "a folder with training states of two other runs",
        resumed(_of_two_others),
        ("training states of 'a' and 'b'", "none of 'run'", "run_name", "--overwrite"),
    ),
    Case(
        "a discount other than before",
        resumed(lambda run: None, "Agent.gamma = 0.9"),
        ("Agent.gamma was 0.999", "is 0.9 now", "run_name"),
    ),
    Case(
        "more discounts than before",
        resumed(lambda run: None, "Multigammas.discrete = [0.9, 0.95]"),
        ("Multigammas.discrete", "was [0.9]", "is [0.9, 0.95] now", "run_name"),
    ),
    Case(
        "networks other than before",
        resumed(lambda run: None, "GRUTrajEncoder.d_hidden = 24"),
        ("no longer matches the saved weights", "config.txt"),
    ),
    Case(
        "environments other than before",
        resumed(lambda run: None, "Experiment.make_train_env = @other_actions"),
        ("no longer matches",),
    ),
    Case(
        "a training state whose weights are cut off",
        resumed(lambda run: truncate(_state(run, "model.safetensors"))),
        ("run_epoch_0", "model.safetensors", "is damaged"),
    ),
    Case(
        "a training state whose optimiser is cut off",
        resumed(lambda run: truncate(_state(run, "optimizer.bin"))),
        ("run_epoch_0", "optimizer.bin", "is damaged"),
    ),
    Case(
        "a training state of which bytes have changed",
        resumed(lambda run: _flip(_state(run, "optimizer.bin"))),
        ("run_epoch_0", "optimizer.bin", "is damaged"),
    ),
    Case(
        "a training state whose record is cut off",
        resumed(lambda run: truncate(_state(run, "run_state.json"))),
        ("run_epoch_0", "run_state.json", "is damaged"),
    ),
    Case(
        "a training state whose record is of something else",
        resumed(lambda run: _state(run, "run_state.json").write_text('{"epoch": 1}')),
        ("run_epoch_0", "run_state.json", "is damaged"),
    ),
    Case("a run that is not there", words("evaluate", "runs/none"), ("runs/none", "has no config.txt")),
    Case(
        "a run whose encoder has no name for gin",
        in_run("evaluate", "RUN", damage=lambda run: given_in_python(run, "tstep_encoder_type", "<class 'Mine'>")),
        ("Experiment.tstep_encoder_type (<class 'Mine'>)", "@gin.configurable"),
    ),
    Case(
        "a run whose environments have no name",
        in_run("evaluate", "RUN", damage=lambda run: given_in_python(run, "make_val_env", "<function make>")),
        ("Experiment.make_val_env (<function make>)", "--env NAME"),
    ),
    Case("an epoch that was not kept", words("evaluate", "RUN", "--epoch", "7"), ("--epoch 7", "policies of 0")),
    Case("a best policy that was not kept", words("evaluate", "RUN", "--best"), ("--best", "@KeepBestPolicy()")),
    Case("no rollouts to evaluate", words("evaluate", "RUN", "--episodes", "0"), ("--episodes 0", "1 or more")),
    Case(
        "an environment that it cannot act in",
        words("evaluate", "RUN", "--env", "Acrobot-v1"),
        ("policy.pt does not fit this configuration",),
    ),
    Case(
        "a run whose weights are cut off",
        in_run("evaluate", "RUN", damage=lambda run: truncate(run / "ckpts" / "latest" / "policy.pt")),
        ("policy.pt is not a file of PyTorch weights",),
    ),
    Case(
        "a run whose spaces are cut off",
        in_run("export", "RUN", damage=lambda run: truncate(run / "spaces.json")),
        ("spaces.json holds no spaces that can be read",),
    ),
    Case(
        "a run with a folder in place of its log",
        in_run("plot", "RUN", damage=lambda run: _folder_instead(run / "metrics.jsonl")),
        ("metrics.jsonl", "is a folder", "remove it"),
    ),
    Case(
        "a run whose replay was removed",
        in_run("replay", "RUN", damage=lambda run: (run / "replay").rename(run / "elsewhere")),
        ("holds no stored data",),
    ),
    Case("a folder that is no run", words("status", "."), ("no config.txt",)),
    Case(
        "an import over what is there", words("import-data", "RUN", "--config", "CONFIG", "--out", "RUN"), ("exists",)
    ),
    Case("an import of what is not there", words("import-data", "a/b-v0", "--out", "new"), ("a/b-v0",)),
    Case("a sweep without a parameter", words("tune", "--config", "CONFIG"), ("--param",)),
    Case(
        "a distribution that there is not",
        words("tune", "--config", "CONFIG", "--param", "Agent.gamma=normal(0, 1)"),
        ("no distribution is named 'normal'",),
    ),
    Case(
        "a sweep outside of its folder",
        words("tune", "--config", "CONFIG", "--param", "Agent.gamma=uniform(0.1, 0.9)", "--name", "../elsewhere"),
        ("--name '../elsewhere'", "it names a folder"),
    ),
    Case("a command that there is not", words("evalute", "runs/a"), ("'evalute'", "did you mean 'evaluate'")),
    Case("an option that the command does not have", words("--config", "CONFIG", "--fast"), ("--fast", "--help")),
    Case("a word missing", words("plot"), ("RUN", "--help")),
)


def given_in_python(run: Any, name: str, value: str) -> None:
    """Let a finished run be one that Python gave this setting."""
    lines = (run / "config.txt").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(f"Experiment.{name} = ")]
    (run / "config.txt").write_text("\n".join([*kept, f"# Experiment.{name} was given in Python: {value}", ""]))


def _with_run(scene: Scene) -> Scene:
    assert scene.run.exists()
    return scene


def _folder_instead(path: Any) -> None:
    path.unlink()
    path.mkdir()


def _overwrite(path: Any, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def _flip(path: Any) -> None:
    """Change the bytes in the middle."""
    content = path.read_bytes()
    _overwrite(path, len(content) // 2, bytes(255 - byte for byte in content[len(content) // 2 :][:8]))
