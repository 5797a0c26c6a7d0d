"""Loads the golden files and builds the agents that they describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gin
import gymnasium as gym
import numpy as np
import torch

from amago_ray.agent import Agent
from amago_ray.agent.amago_weights import convert_amago_weights
from amago_ray.agent.policy import TrainingBatch
from amago_ray.nets.traj_encoders import FFTrajEncoder, GRUTrajEncoder, TformerTrajEncoder
from amago_ray.nets.tstep_encoders import CNNTstepEncoder, FFTstepEncoder
from amago_ray.specs import ActionSpec, ArraySpec

GOLDEN = Path(__file__).parent / "golden"
TSTEP_ENCODERS = {"ff": FFTstepEncoder, "cnn": CNNTstepEncoder}
TRAJ_ENCODERS = {"ff": FFTrajEncoder, "rnn": GRUTrajEncoder, "transformer": TformerTrajEncoder}


def load(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(meta, arrays) of one golden file."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return json.loads(bytes(arrays.pop("meta"))) if "meta" in arrays else {}, arrays


def group(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}


def bind(bindings: dict) -> None:
    """Make `bindings` the whole gin configuration. Every case binds all heads, used or not."""
    lines = [f"{name} = {value if str(value).startswith('@') else repr(value)}" for name, value in bindings.items()]
    gin.clear_config()
    gin.parse_config(lines)


@gin.configurable
class GoldenShapes(gym.Env):
    """Rollouts of 5 random observations, with the spaces of the agents in the rollout files."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._time = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._time += 1
        return self._observe(), float(action == 0), self._time == 5, False, {}

    def _observe(self) -> np.ndarray:
        return self.np_random.standard_normal(3).astype(np.float32)


def action_spec(kind: str, size: int) -> ActionSpec:
    if kind == "discrete":
        return ActionSpec("discrete", (), "int64", size, (size,))
    return ActionSpec("continuous", (size,), "float32", size)


def build_agent(
    meta: dict, arrays: dict[str, np.ndarray], agent_type: type[Agent], obs: dict[str, np.ndarray]
) -> Agent:
    """The agent of a golden case with its weights; `obs` gives observation shapes after two leading dimensions."""
    bind(meta["gin"])
    agent = agent_type(
        obs_spec={k: ArraySpec(v.shape[2:], str(v.dtype)) for k, v in obs.items()},
        action_spec=action_spec(meta.get("action_space", "discrete"), meta.get("action_dim", 3)),
        max_seq_len=meta["max_seq_len"],
        tstep_encoder_type=TSTEP_ENCODERS[meta.get("tstep_encoder", "ff")],
        traj_encoder_type=TRAJ_ENCODERS[meta["traj_encoder"]],
    )
    agent.load_state_dict(convert_amago_weights(group(arrays, "state/"), agent))
    return agent


def training_batch(arrays: dict[str, np.ndarray]) -> TrainingBatch:
    batch = group(arrays, "batch/")
    length = batch["rews"].shape[1]
    return TrainingBatch(
        obs={k.removeprefix("obs/"): v for k, v in batch.items() if k.startswith("obs/")},
        rl2=batch["rl2s"],
        time_idx=batch["time_idxs"].squeeze(-1),
        actions=batch["actions"],
        rewards=batch["rews"].squeeze(-1),
        terminated=batch["dones"].squeeze(-1).float(),
        mask=torch.arange(length) < batch["lengths"].unsqueeze(1),
    )
