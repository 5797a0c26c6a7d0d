"""Policies at work without training: a saved run, a random policy, and pictures of either."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import VectorEnv
from PIL import Image

from amago_ray.agent.flat_weights import flatten_state, load_weights
from amago_ray.agent.spec import AgentSpec
from amago_ray.envs.makers import EnvProcesses, MakeEnv, make_pool
from amago_ray.envs.pool import close_env, closing_env
from amago_ray.envs.spaces import sample_actions
from amago_ray.envs.tasks import (
    EnvMaker,
    RegisteredEnv,
    entries_of,
    entry_name,
    fixed_num_envs,
    maker_of,
    parameters_of,
)
from amago_ray.messages import EpisodeResult, Trajectory, Weights
from amago_ray.rollout.assignment import DEFAULT_ROLLOUT_LIMIT_S, Tally, assign, in_order
from amago_ray.rollout.halves import make_worker
from amago_ray.rollout.random_stream import RandomStream
from amago_ray.rollout.statistics import EpisodeStatistics
from amago_ray.rollout.worker import WHOLE_ROLLOUTS, RolloutConfig

GIF_FRAME_MS = 120
MAX_GIF_FRAMES = 1000
# Python, of a constructor that has no such parameter, and of a class that has none at all.
NO_RENDER_MODE = ("unexpected keyword argument 'render_mode'", "takes no arguments")


def random_policy(
    make_env: MakeEnv,
    episodes: int,
    seed: int = 0,
    num_envs: int = 8,
    max_timesteps: int | None = None,
    rollout_limit_s: float = DEFAULT_ROLLOUT_LIMIT_S,
    action_mask_key: str | None = None,
    env_processes: EnvProcesses | None = None,
) -> list[EpisodeResult]:
    """`episodes` rollouts of uniformly random actions: what any policy has to beat.

    num_envs: at most; a VectorEnv of a fixed size keeps its own. max_timesteps: over all environments; rollouts that
    begin later are left out (see `assignment`). action_mask_key: name of the observation that says which actions are
    legal. env_processes: as of `RolloutConfig`.
    Raises ValueError for a rollout that lasts longer than rollout_limit_s where there is no such limit.
    """
    num_envs = fixed_num_envs(make_env, env_processes) or min(num_envs, episodes)
    (assignment,) = assign([num_envs], episodes, timesteps_per_env(max_timesteps, num_envs), 0, rollout_limit_s)
    rng = np.random.default_rng(seed)
    with RandomStream(seed), closing(make_pool(make_env, num_envs, 0, seed, processes=env_processes)) as pool:
        statistics, tally = EpisodeStatistics(num_envs), Tally(assignment)
        obs = pool.reset()
        while not tally.done:
            legal = pool.legal_actions(obs, action_mask_key)
            transition = pool.step(sample_actions(pool.action_spec, num_envs, rng, legal))
            ended = transition.terminated | transition.truncated
            tally.add(statistics.add(transition, ended, pool.env_names), transition.stepped, pool.env_names)
            obs, fresh = pool.begin(ended)
            statistics.begin(fresh)
            tally.begin(fresh)
    return in_order(tally.take())


def timesteps_per_env(max_timesteps: int | None, num_envs: int) -> int | None:
    """A limit of timesteps over all environments as one of each, of 1 or more."""
    return None if max_timesteps is None else max(max_timesteps // num_envs, 1)


def load_policy_weights(spec: AgentSpec, path: Path) -> Weights:
    """The acting weights in a `policy_epoch_n.pt` or `latest/policy.pt` file.

    Raises ValueError when there is no such file or it is of another architecture than `spec`.
    """
    agent = spec.build()
    load_weights(agent, path)
    return Weights(0, flatten_state(agent.policy))


def evaluate_policy(
    spec: AgentSpec,
    weights: Weights,
    make_env: MakeEnv,
    episodes: int,
    seed: int = 0,
    sample_actions: bool = True,
    num_envs: int = 8,
    max_timesteps: int | None = None,
    rollout_limit_s: float = DEFAULT_ROLLOUT_LIMIT_S,
    temperature: float | None = None,
    write: Callable[[Trajectory], None] | None = None,
    env_processes: EnvProcesses | None = None,
) -> list[EpisodeResult]:
    """`episodes` rollouts of a policy in this process, without exploration.

    num_envs: at most; a VectorEnv of a fixed size keeps its own. max_timesteps, rollout_limit_s: as of `random_policy`.
    temperature: of sampled actions, in place of the policy's own. write: is given the rollouts that count, whole.
    env_processes: as of `RolloutConfig`.
    """
    num_envs = fixed_num_envs(make_env, env_processes) or min(num_envs, episodes)
    (assignment,) = assign([num_envs], episodes, timesteps_per_env(max_timesteps, num_envs), 0, rollout_limit_s)
    rollout = RolloutConfig(
        make_env,
        num_envs,
        0,
        seed,
        WHOLE_ROLLOUTS,
        None,
        sample_actions,
        temperature=temperature,
        env_processes=env_processes,
    )
    with closing(make_worker(rollout, spec, write=write)) as worker:
        worker.set_weights(weights)
        return in_order(worker.evaluate(assignment).episodes)


def final_test(
    evaluate_test: Callable[..., dict[str, float]],
    make_env: MakeEnv,
    episodes: int,
    max_timesteps: int | None,
    seed: int,
    num_envs: int,
    rollout_limit_s: float = DEFAULT_ROLLOUT_LIMIT_S,
    action_mask_key: str | None = None,
    env_processes: EnvProcesses | None = None,
) -> tuple[dict[str, float], list[EpisodeResult]]:
    """What a trained policy and a random one do at the end of a run: averages of the one, rollouts of the other.

    evaluate_test: `Experiment.evaluate_test`. episodes: of each. max_timesteps: of each, over all environments;
    rollouts that begin later are left out. Raises ValueError where not one rollout of the trained policy ends.
    """
    timesteps = timesteps_per_env(max_timesteps, fixed_num_envs(make_env, env_processes) or min(num_envs, episodes))
    trained = evaluate_test(make_env, timesteps=timesteps, episodes=episodes)
    random = random_policy(
        make_env, episodes, seed, num_envs, max_timesteps, rollout_limit_s, action_mask_key, env_processes
    )
    return trained, random


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
    spec: AgentSpec,
    weights: Weights,
    make_env: MakeEnv,
    out: Path,
    seed: int = 0,
    sample_actions: bool = True,
    temperature: float | None = None,
) -> Path:
    """One rollout of a policy, its first MAX_GIF_FRAMES timesteps at most, as an animated GIF.

    temperature: as of `evaluate_policy`.

    Raises ValueError when the environment cannot render.
    """
    frames: list[np.ndarray] = []

    def make() -> gym.Env:
        return FrameRecorder(renderable(make_env), frames)

    evaluate_policy(spec, weights, make, 1, seed, sample_actions, 1, MAX_GIF_FRAMES, temperature=temperature)
    first, *others = (Image.fromarray(frame) for frame in frames)
    out.parent.mkdir(parents=True, exist_ok=True)
    first.save(out, save_all=True, append_images=others, duration=GIF_FRAME_MS, loop=0)
    return out


def check_renderable(make_env: MakeEnv) -> None:
    """Build one environment as `record_gif` does and look at a picture. Raises ValueError when it cannot render."""
    with closing_env(renderable(make_env)) as env:
        env.reset(seed=0)
        picture = np.asarray(env.render())
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f"pictures of {entry_name(entries_of(make_env)[0])} have shape {picture.shape}: they must be (H, W, 3)"
        )


def renderable(make_env: MakeEnv) -> gym.Env:
    """An environment of the first entry that draws itself. Raises ValueError where it cannot."""
    entry = entries_of(make_env)[0]
    make, name = maker_of(entry), entry_name(entry)
    env = _drawing(make)
    if isinstance(env, VectorEnv):
        close_env(env)
        raise ValueError(f"{name} makes a VectorEnv, of which no single rollout can be rendered: name a plain Env")
    if env.render_mode != "rgb_array":
        close_env(env)
        raise ValueError(f"{name} does not render: it must take render_mode='rgb_array'")
    return env


def _drawing(make: EnvMaker) -> Any:
    """What `make` builds: with render_mode="rgb_array", unless that is what it does not take."""
    if not _takes_render_mode(make):
        return make()
    try:
        return make(render_mode="rgb_array")
    except (TypeError, AssertionError) as error:  # environments assert that they know a mode
        if isinstance(error, TypeError) and not any(text in str(error) for text in NO_RENDER_MODE):
            raise
    return make()


def _takes_render_mode(make: EnvMaker) -> bool:
    """Whether a parameter is named so, or all are taken, as by a function that hands them on: these may refuse it."""
    entry_point = make.spec.entry_point if isinstance(make, RegisteredEnv) else make
    if isinstance(entry_point, str):
        entry_point = load_env_creator(entry_point)
    if entry_point is None:  # which gymnasium has words for
        return True
    parameters = parameters_of(entry_point)
    return "render_mode" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
