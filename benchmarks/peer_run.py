"""One training run of ours, of sb3-contrib's RecurrentPPO or of RLlib's PPO with an LSTM; `peers.py` starts it.

Prints a line of JSON when everything is ready, and one after every epoch: {"frames": ..., "return": ...}, the mean
return of the latest training rollouts, exploration included. Runs until it is ended.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NUM_ENVS = 16  # as in our configurations of these tasks
LSTM_WIDTH = 64  # likewise
TASKS = ("lake", "tmaze", "cartpole", "pendulum")
OUR_CONFIGS = {"lake": "meta_frozen_lake", "tmaze": "tmaze", "cartpole": "cartpole", "pendulum": "pendulum"}


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


class SeesLastStep(gym.ObservationWrapper):
    """Observations as vectors, with the last action (one-hot) and reward at their end, as in-context learning needs."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        discrete = isinstance(env.action_space, gym.spaces.Discrete)
        self._actions = int(env.action_space.n) if discrete else int(np.prod(env.action_space.shape))
        size = gym.spaces.flatdim(env.observation_space) + self._actions + 1
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self._discrete, self._last = discrete, np.zeros(self._actions + 1, np.float32)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._last[:] = 0.0
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._last[:-1] = np.eye(self._actions)[int(action)] if self._discrete else np.ravel(action)
        self._last[-1] = float(reward)
        return self.observation(observation), reward, terminated, truncated, info

    def observation(self, observation: Any) -> np.ndarray:
        flat = gym.spaces.flatten(self.env.observation_space, observation)
        return np.concatenate((flat, self._last)).astype(np.float32)


def make_env(task: str) -> gym.Env:
    """The task as our configuration has it, seen by peers with the last action and reward, as ours sees it."""
    if task == "lake":
        from amago_ray.envs.builtin.meta_frozen_lake import MetaFrozenLake

        return SeesLastStep(MetaFrozenLake(size=3, k_episodes=5))
    if task == "tmaze":
        from amago_ray.envs.builtin.tmaze import TMaze

        return SeesLastStep(TMaze(corridor_length=30))
    return SeesLastStep(gym.make({"cartpole": "CartPole-v1", "pendulum": "Pendulum-v1"}[task]))


def ours(task: str, seed: int) -> None:
    from amago_ray import Experiment, config
    from amago_ray.watch.callbacks import Callback, RunView, newest

    class Report(Callback):
        def on_start(self, view: RunView) -> None:
            say(ready=True)

        def after_collection(self, view: RunView) -> None:
            value = newest(view.metrics, "collect/return")
            if value is not None:
                say(frames=view.progress.total_frames, **{"return": value})

    with tempfile.TemporaryDirectory() as folder:
        bindings = (
            f"Experiment.ckpt_base_dir = {folder!r}",
            f"Experiment.seed = {seed}",
            "Experiment.epochs = 100_000",
            "Experiment.compile_acting = 'never'",  # runs end after seconds, not epochs
            "Experiment.compile_learning = 'never'",
            "Experiment.val_interval = 100_000",
            "Experiment.ckpt_interval = 100_000",
            "Experiment.verbose = False",
        )
        config.load([CONFIGS / f"{OUR_CONFIGS[task]}.gin"], bindings)
        experiment = Experiment(callbacks=[Report()])
        experiment.start()
        experiment.learn()


def sb3(task: str, seed: int) -> None:
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Report(BaseCallback):
        def _on_training_start(self) -> None:
            say(ready=True)

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            returns = [episode["r"] for episode in self.model.ep_info_buffer]
            if returns:
                say(frames=self.num_timesteps, **{"return": float(np.mean(returns))})

    envs = make_vec_env(lambda: make_env(task), n_envs=NUM_ENVS, seed=seed)
    # Widths of ours; everything else is the package's default.
    widths = {"lstm_hidden_size": LSTM_WIDTH, "net_arch": [LSTM_WIDTH]}
    model = RecurrentPPO("MlpLstmPolicy", envs, seed=seed, policy_kwargs=widths, device="cpu")
    model.learn(total_timesteps=10**12, callback=Report())


def rllib(task: str, seed: int) -> None:
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.tune.registry import register_env

    ray.init(address="local", include_dashboard=False, logging_level="error", log_to_driver=False)
    register_env("task", lambda _: make_env(task))
    model = DefaultModelConfig(use_lstm=True, max_seq_len=48, lstm_cell_size=LSTM_WIDTH, fcnet_hiddens=[LSTM_WIDTH])
    settings = (
        PPOConfig()
        .environment("task")
        .env_runners(num_env_runners=1, num_envs_per_env_runner=NUM_ENVS)
        .rl_module(model_config=model)
        .debugging(seed=seed)
    )
    algorithm = settings.build_algo()
    say(ready=True)
    while True:
        result = algorithm.train()["env_runners"]
        value = result.get("episode_return_mean")
        if value is not None and np.isfinite(value):
            say(frames=int(result["num_env_steps_sampled_lifetime"]), **{"return": float(value)})


SYSTEMS: dict[str, Callable[[str, int], None]] = {"ours": ours, "RecurrentPPO": sb3, "RLlib PPO-LSTM": rllib}


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("system", choices=SYSTEMS)
    arguments.add_argument("task", choices=TASKS)
    arguments.add_argument("seed", type=int)
    parsed = arguments.parse_args()
    SYSTEMS[parsed.system](parsed.task, parsed.seed)
