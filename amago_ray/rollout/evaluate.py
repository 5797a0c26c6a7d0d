"""Policies at work without training: a saved run, a random policy, and pictures of either."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from amago_ray.agent.flat_weights import flatten_state, read_state_dict
from amago_ray.agent.spec import AgentSpec
from amago_ray.envs.makers import MakeEnv, make_pool
from amago_ray.envs.spaces import sample_actions
from amago_ray.messages import EpisodeResult, Weights
from amago_ray.rollout.statistics import EpisodeStatistics
from amago_ray.rollout.worker import RolloutConfig, RolloutWorker

GIF_FRAME_MS = 120
MAX_GIF_FRAMES = 1000


def random_policy(make_env: MakeEnv, episodes: int, seed: int = 0, num_envs: int = 8) -> list[EpisodeResult]:
    """`episodes` or more rollouts of uniformly random actions: what any policy has to beat."""
    rng = np.random.default_rng(seed)
    finished: list[EpisodeResult] = []
    with closing(make_pool(make_env, num_envs, 0, seed)) as pool:
        statistics = EpisodeStatistics(num_envs)
        pool.reset()
        while len(finished) < episodes:
            transition = pool.step(sample_actions(pool.action_spec, num_envs, rng))
            ended = transition.terminated | transition.truncated
            statistics.add(transition, ended, pool.env_names)
            _, fresh = pool.begin(ended)
            statistics.begin(fresh)
            finished += statistics.take()
    return finished


def load_policy_weights(spec: AgentSpec, path: Path) -> Weights:
    """The acting weights in a `policy_epoch_n.pt` or `latest/policy.pt` file.

    Raises ValueError when there is no such file or it is of another architecture than `spec`.
    """
    state, agent = read_state_dict(path), spec.build()
    try:
        agent.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this configuration: {' '.join(str(error).split())[:300]}") from error
    return Weights(0, flatten_state(agent.policy))


def evaluate_policy(
    spec: AgentSpec,
    weights: Weights,
    make_env: MakeEnv,
    episodes: int,
    seed: int = 0,
    sample_actions: bool = True,
    num_envs: int = 8,
) -> list[EpisodeResult]:
    """`episodes` or more rollouts of a policy in this process, without exploration."""
    num_envs = min(num_envs, episodes)
    rollout = RolloutConfig(make_env, num_envs, 0, seed, spec.max_seq_len, None, sample_actions)
    with closing(RolloutWorker(rollout, spec)) as worker:
        worker.set_weights(weights)
        return worker.evaluate(None, -(-episodes // num_envs)).episodes


class FrameRecorder(gym.Wrapper):
    """Keeps a picture of every timestep of its first rollout in `frames`: a list of (H, W, 3) uint8."""

    def __init__(self, env: gym.Env, frames: list[np.ndarray]):
        super().__init__(env)
        self._frames = frames
        self._finished = False  # an evaluation resets an environment once more after its last rollout

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**kwargs)
        self._keep()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._keep()
        self._finished |= bool(result[2] or result[3])
        return result

    def _keep(self) -> None:
        if not self._finished and len(self._frames) < MAX_GIF_FRAMES:
            self._frames.append(np.asarray(self.env.render(), dtype=np.uint8))


def record_gif(
    spec: AgentSpec, weights: Weights, make_env: MakeEnv, out: Path, seed: int = 0, sample_actions: bool = True
) -> Path:
    """One rollout of a policy as an animated GIF. Raises ValueError when the environment cannot render."""
    frames: list[np.ndarray] = []

    def make() -> gym.Env:
        return FrameRecorder(_renderable(make_env), frames)

    evaluate_policy(spec, weights, make, episodes=1, seed=seed, sample_actions=sample_actions)
    first, *others = (Image.fromarray(frame) for frame in frames)
    out.parent.mkdir(parents=True, exist_ok=True)
    first.save(out, save_all=True, append_images=others, duration=GIF_FRAME_MS, loop=0)
    return out


def check_renderable(make_env: MakeEnv) -> None:
    """Raises ValueError where `record_gif` could not draw what the environment looks like."""
    _renderable(make_env).close()


def _renderable(make_env: MakeEnv) -> gym.Env:
    one = make_env if isinstance(make_env, str) or callable(make_env) else make_env[0]
    if isinstance(one, str):
        env = gym.make(one, render_mode="rgb_array")
    else:
        env = _call_with_render_mode(one)
    if env.render_mode != "rgb_array":
        raise ValueError(f"--gif: {one!r} does not render: it must take render_mode='rgb_array'")
    return env


def _call_with_render_mode(make: Callable[..., Any]) -> gym.Env:
    accepts = "render_mode" in inspect.signature(make).parameters
    return make(render_mode="rgb_array") if accepts else make()
