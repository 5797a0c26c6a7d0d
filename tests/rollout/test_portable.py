"""Exported policies act, step by step, as the policy does, and are files that say what goes in and comes out."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import torch
from acting_cases import ACTION_SPACES, OBSERVATION_SPACES, Random, make_run
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import Tensor

from amago_ray import load_policy
from amago_ray.envs.saved_spaces import from_plain
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.rollout import portable
from amago_ray.rollout.acting import ActingPolicy
from amago_ray.rollout.portable import PortablePolicy, export_policy, own_numbers

SINKS = (
    "TformerTrajEncoder.attention_type = @SlidingSinkAttention",
    "SlidingSinkAttention.window_size = 3",
    "SlidingSinkAttention.sink_size = 2",
)
GMM = ("Actor.continuous_dist_type = @GMM", "Agent.online_coeff = 0", "Agent.offline_coeff = 1")
BETA = ("Actor.continuous_dist_type = @Beta",)
CASES: dict[str, tuple[str, str, str, tuple[str, ...]]] = {  # sequence model, observation, action, bindings
    "ff": ("FFTrajEncoder", "discrete", "multidiscrete", ()),
    "gru": ("GRUTrajEncoder", "nested", "box", ()),
    "transformer": ("TformerTrajEncoder", "nested", "discrete", SINKS),
    "rope": ("TformerTrajEncoder", "box", "box", ("TformerTrajEncoder.pos_emb = 'rope'",)),
    "mamba": ("MambaTrajEncoder", "box", "integers", ()),
    "gmm": ("IdentityTrajEncoder", "box", "box", GMM),
    "beta": ("IdentityTrajEncoder", "box", "box", BETA),
    "none": ("IdentityTrajEncoder", "box", "multibinary", ()),
}


def policy_of(folder: Path, case: str) -> ActingPolicy:
    encoder, observation, action, bindings = CASES[case]
    make_env = partial(Random, OBSERVATION_SPACES[observation], ACTION_SPACES[action])
    return load_policy(make_run(folder, make_env, encoder, bindings).directory.root, sample=False)


def random_batch(space: gym.Space, num_envs: int) -> Any:
    empty: Any = create_empty_array(space, num_envs)
    return concatenate(space, [space.sample() for _ in range(num_envs)], empty)


class OnnxFile:
    """As a user runs it: names in, names out, and memory handed on by name."""

    def __init__(self, path: Path):
        self.session = onnxruntime.InferenceSession(path)
        for array in (*self.session.get_inputs(), *self.session.get_outputs()):
            assert array.shape[0] == "batch", array.name
        self.description = json.loads(self.session.get_modelmeta().custom_metadata_map["amago_ray"])

    def __call__(self, obs: Any, reward: Any, start: Any, memory: Any) -> tuple[Any, Any]:
        feed = {f"obs.{name}": value for name, value in obs.items()}
        feed |= {f"memory.{name}": value for name, value in memory.items()}
        names = [output.name for output in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(names, feed | {"reward": reward, "episode_start": start})))
        return found["action"], {name: found[f"memory_out.{name}"] for name in memory}


class TorchFile:
    def __init__(self, path: Path):
        files = {"amago_ray": ""}
        self.step = torch.export.load(path, extra_files=files).module()
        self.description = json.loads(files["amago_ray"])

    def __call__(self, obs: Any, reward: Any, start: Any, memory: Any) -> tuple[Any, Any]:
        tensors = torch.utils._pytree.tree_map(torch.from_numpy, (obs, reward, start, memory))
        action, after, *_ = self.step(*tensors)
        return action.numpy(), {name: value.numpy() for name, value in after.items()}


def zeros(arrays: dict[str, Any], num_envs: int) -> dict[str, np.ndarray]:
    return {name: np.zeros((num_envs, *array["shape"][1:]), array["dtype"]) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("case", "format"),
    [
        ("ff", "onnx"),
        ("gru", "onnx"),
        ("transformer", "onnx"),
        ("gmm", "onnx"),
        ("beta", "onnx"),
        ("rope", "torch"),
        ("gmm", "torch"),
        ("beta", "torch"),
        ("gru", "torch"),
        ("mamba", "torch"),
        ("none", "torch"),
    ],
)
def test_a_file_acts_as_the_policy_does(case: str, format: Any, tmp_path: Path) -> None:
    """For one environment and for several, whose rollouts begin at different times, from a memory of zeros."""
    policy = policy_of(tmp_path, case)
    out = tmp_path / "new" / f"policy.{format}"
    assert export_policy(policy, out, format) < 1e-4
    file = OnnxFile(out) if format == "onnx" else TorchFile(out)
    space = policy.observation_space
    space.seed(3)
    rng, taken, reach = np.random.default_rng(1), set(), np.float64(1.0)
    if isinstance(policy.action_space, spaces.Box):
        reach = policy.action_space.high.astype(np.float64) - policy.action_space.low
    for num_envs in (1, 4):
        state, memory = None, zeros(file.description["memory"], num_envs)
        for t in range(25):
            obs = random_batch(space, num_envs)
            reward = rng.normal(size=num_envs).astype(np.float32)
            start = (rng.random(num_envs) < 0.15) | (t == 0)
            expected, state = policy.act(obs, state, start, reward)
            found, memory = file(own_numbers(space, obs), reward, start, memory)
            assert found.dtype == expected.dtype and found.shape == expected.shape
            np.testing.assert_allclose(found / reach, expected / reach, atol=1e-3)
            taken |= {str(action.tolist()) for action in found}
    assert len(taken) > 1
    assert from_plain(file.description["action_space"]) == policy.action_space
    assert from_plain(file.description["observation_space"]) == space


def test_masks_images_and_probabilities(tmp_path: Path) -> None:
    observation = spaces.Dict(image=spaces.Box(0, 255, (36, 36, 3), np.uint8), legal=spaces.MultiBinary(4))

    class Legal(Random):
        def reset(self, **kwargs: Any) -> Any:
            obs, info = super().reset(**kwargs)
            return obs | {"legal": np.ones(4, np.int8)}, info

        def step(self, action: Any) -> Any:
            obs, *rest = super().step(action)
            return obs | {"legal": np.ones(4, np.int8)}, *rest

    make_env = partial(Legal, observation, ACTION_SPACES["discrete"])
    policy = load_policy(make_run(tmp_path, make_env, "GRUTrajEncoder", action_mask_key="legal").directory.root)
    assert export_policy(policy, tmp_path / "policy", "onnx") == 0.0
    obs = own_numbers(observation, random_batch(observation, 2))
    obs["legal"] = np.array([[0, 0, 1, 0], [0, 1, 0, 1]], np.int8)
    step = PortablePolicy(policy.policy, observation, policy.action_space)
    expected = step({k: torch.from_numpy(v) for k, v in obs.items()}, torch.zeros(2), torch.ones(2, dtype=torch.bool),
                    step.initial_memory(2))  # fmt: skip
    assert expected[0][0] == 2 + 3 and ((expected[2] > 0).int() <= torch.from_numpy(obs["legal"])).all()
    file = OnnxFile(tmp_path / "policy")
    action, _ = file(obs, np.zeros(2, np.float32), np.ones(2, bool), zeros(file.description["memory"], 2))
    np.testing.assert_array_equal(action, expected[0].numpy())
    assert file.description["outputs"] == ["action", "memory", "probs"]


class Own(GRUTrajEncoder):
    """Acts in a way of its own, of which there is no portable form."""

    def portable_memory(self, num_envs: int) -> dict[str, Tensor]:
        return super(GRUTrajEncoder, self).portable_memory(num_envs)


class Untraceable(GRUTrajEncoder):
    def portable_step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: Any) -> Any:
        if float(seq_BD.sum()) > 0:  # a graph cannot ask
            seq_BD = -seq_BD
        return super().portable_step(seq_BD, time_idx_B, memory)


class Different(GRUTrajEncoder):
    def portable_step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: Any) -> Any:
        state, memory = super().portable_step(-seq_BD, time_idx_B, memory)
        return state, memory


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (Own, "Own cannot be exported: it has memory, and defines no portable_memory and portable_step"),
        (Untraceable, "PyTorch cannot export these networks: "),
        (Different, "the exported policy is off by .* within 40 steps: it is not kept"),
    ],
)
def test_what_cannot_be_exported_is_not_written(encoder: Any, message: str, tmp_path: Path) -> None:
    make_env = partial(Random, OBSERVATION_SPACES["box"], ACTION_SPACES["box"])
    run = make_run(tmp_path, make_env, encoder).directory.root
    policy = load_policy(run, settings={"traj_encoder_type": encoder})
    with pytest.raises(ValueError, match=message) as error:
        export_policy(policy, tmp_path / "out" / "policy.pt2", "torch")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").glob("*")) == []


def test_missing_packages_and_unknown_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(tmp_path, "ff")
    with pytest.raises(ValueError, match="format='jit': use onnx or torch"):
        export_policy(policy, tmp_path / "policy", "jit")  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"needs onnxruntime: pip install 'amago_ray\[export\]'"):
        export_policy(policy, tmp_path / "policy", "onnx")
    assert portable.FORMATS == ("onnx", "torch")
