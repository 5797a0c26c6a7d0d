"""Runs of small untrained policies, and environments in which everything is random, for tests of policies in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from conftest import TINY_NETWORKS
from gymnasium import spaces

from amago_ray import Experiment, config
from amago_ray.driver.probe import check_data, probe
from amago_ray.driver.resume import create_folder
from amago_ray.nets.traj_encoders import TrajEncoder

ACTION_SPACES: dict[str, gym.Space] = {
    "discrete": spaces.Discrete(4, start=3),
    "multidiscrete": spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [5, -2]]),
    "multibinary": spaces.MultiBinary((2, 2)),
    "box": spaces.Box(np.float32([-2.0, 0.0, 1.0]), np.float32([3.0, 0.5, 9.0])),
    "integers": spaces.Box(-3, 12, (2, 1), np.int32),
}
OBSERVATION_SPACES: dict[str, gym.Space] = {
    "box": spaces.Box(-1.0, 1.0, (3,)),
    "discrete": spaces.Discrete(5, start=-2),
    "nested": spaces.Dict(
        a=spaces.Box(0, 3, (2, 2), np.uint8),
        b=spaces.Dict(c=spaces.Discrete(3, start=1), d=spaces.Box(-np.inf, np.inf, (2,), np.float64)),
        e=spaces.Tuple([spaces.MultiBinary(3), spaces.MultiDiscrete([2, 4], start=[1, 1])]),
    ),
}
SETTINGS = (
    *TINY_NETWORKS,
    "FFTrajEncoder.d_model = 16",
    "TformerTrajEncoder.d_model = 16",
    "TformerTrajEncoder.n_heads = 2",
    "TformerTrajEncoder.d_ff = 24",
    "TformerTrajEncoder.n_layers = 1",
    "MambaTrajEncoder.d_model = 16",
    "MambaTrajEncoder.n_layers = 1",
)
MAX_SEQ_LEN = 6  # below the longest rollout, so that rings come round


class Random(gym.Env):
    """Random observations and rewards, rollouts of 2 to 12 steps. It keeps what it gave and took in `log`.

    log: ("reset", observation), then ("step", action, observation, reward, ended), again and again.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, log: list[Any] | None = None):
        self.observation_space, self.action_space = observation_space, action_space
        self.log = [] if log is None else log

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._left = int(self.np_random.integers(2, 13))
        obs = self.observation_space.sample()
        self.log.append(("reset", obs))
        return obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self._left -= 1
        obs, reward = self.observation_space.sample(), float(self.np_random.normal())
        terminated, truncated = self._left == 0 and reward > 0, self._left == 0 and reward <= 0
        self.log.append(("step", action, obs, reward, terminated or truncated))
        return obs, reward, terminated, truncated, {}


def sharpen(policy: torch.nn.Module, seed: int = 0) -> None:
    """Random weights large enough that actions depend on what was seen."""
    generator = torch.Generator().manual_seed(seed + 20)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.dim() > 1:
                parameter += 0.8 * torch.randn(parameter.shape, generator=generator)


def make_run(
    folder: Path, make_env: Any, traj_encoder: str | type[TrajEncoder], bindings: tuple[str, ...] = (), **settings: Any
) -> Experiment:
    """A run's folder as training leaves it, with the weights of an agent that has not been trained."""
    config.load([], [*SETTINGS, *bindings])
    if isinstance(traj_encoder, str):
        traj_encoder = getattr(__import__("amago_ray.nets.traj_encoders", fromlist=["x"]), traj_encoder)
    experiment = Experiment(
        run_name="run",
        ckpt_base_dir=folder,
        make_train_env=make_env,
        traj_encoder_type=traj_encoder,
        max_seq_len=MAX_SEQ_LEN,
        verbose=False,
        **settings,
    )
    agent = probe(experiment).build()
    create_folder(experiment, experiment.directory, check_data(experiment))
    for epoch in (2, 0):
        sharpen(agent.policy, epoch)
        torch.save(agent.state_dict(), experiment.directory.policy_epoch(epoch))
    torch.save(agent.state_dict(), experiment.directory.latest_policy)
    return experiment
