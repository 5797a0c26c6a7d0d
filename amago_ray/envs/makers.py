"""The environments of one worker, stepped together, whether they are plain ones or a user's VectorEnv.

    obs = pool.reset()
    while collecting:
        transition = pool.step(actions)                                     # what the actions led to
        obs, fresh = pool.begin(transition.terminated | transition.truncated)   # what the policy sees next

Broken environments are rebuilt, one at a time, without their siblings noticing. Rows of arrays are environments.
All arrays belong to the pool: they hold until its next call, `transition.obs` until `begin`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

import amago_ray.envs.builtin  # noqa: F401 (registers the gymnasium ids of the environments that ship with the package)
from amago_ray.envs.plain_pool import EnvPool
from amago_ray.envs.pool import EnvFailure, Transition, vector_env_in_list
from amago_ray.envs.spaces import sample_actions
from amago_ray.envs.vector_pool import VectorEnvPool
from amago_ray.specs import ActionSpec, ObsSpec

__all__ = [
    "EnvFailure",
    "EnvMaker",
    "EnvPool",
    "MakeEnv",
    "Transition",
    "VectorEnvPool",
    "check_env",
    "env_spaces",
    "make_pool",
]

EnvMaker = Callable[..., Any]  # returns a gym.Env or a VectorEnv
MakeEnv = str | EnvMaker | list[str | EnvMaker] | tuple[str | EnvMaker, ...]


def make_pool(
    make_env: MakeEnv, num_envs: int, first_env: int, seed: int, max_failures_in_a_row: int = 5
) -> EnvPool | VectorEnvPool:
    """The pool of the environments `first_env` ... `first_env + num_envs - 1` of a run.

    make_env: a gymnasium id, a function that returns a gymnasium Env or VectorEnv (one with a parameter `num_envs` is
    given it), or a list of ids and functions that return an Env: environment i of the run is entry i modulo its length.

    Raises ValueError or TypeError for environments that do not fit, and whatever the functions raise.
    """
    entries = _entries(make_env)
    makers = [_maker(entries[(first_env + index) % len(entries)], num_envs) for index in range(num_envs)]
    first = makers[0]()
    makers[0] = _reusing(first, makers[0])
    if not isinstance(first, VectorEnv):
        return EnvPool(makers, seed, max_failures_in_a_row, first_env)
    if len(entries) > 1:
        raise vector_env_in_list(first)
    if first.num_envs != num_envs:
        raise ValueError(
            f"make_env built a VectorEnv of {first.num_envs} environments where {num_envs} are needed "
            "(a worker's share of parallel_actors): give make_env a parameter num_envs"
        )
    return VectorEnvPool(makers[0], seed, max_failures_in_a_row, first_env)


def check_env(make_env: MakeEnv, seed: int = 0, num_steps: int = 20) -> tuple[ObsSpec, ActionSpec, str]:
    """Build every entry of `make_env` once and take a few random steps in it.

    Returns the specifications that all of them share and the first one's name. Raises ValueError or TypeError, in one
    line that names the environment, for anything that would stop a run.
    """
    entries = list({id(entry): entry for entry in _entries(make_env)}.values())
    found: list[tuple[ObsSpec, ActionSpec, str]] = []
    for entry in entries:
        try:
            env = _maker(entry, num_envs=1)()
        except Exception as error:  # anything that a user's function may raise
            raise ValueError(f"building the environment {_entry_name(entry)} failed with {_one_line(error)}") from error
        if isinstance(env, VectorEnv) and len(entries) > 1:
            raise vector_env_in_list(env)
        found.append(_try_out(env, seed, num_steps))
        (*first, first_name), (*this, name) = found[0], found[-1]
        if this != first:
            raise ValueError(f"environments must have the same spaces: {first_name} has {first}, {name} has {this}")
    return found[0]


def env_spaces(make_env: MakeEnv) -> tuple[gym.Space, gym.Space]:
    """Observation and action space of one environment of `make_env`, which all of them share (see `check_env`)."""
    with closing(_maker(_entries(make_env)[0], num_envs=1)()) as env:
        if isinstance(env, VectorEnv):
            return env.single_observation_space, env.single_action_space
        return env.observation_space, env.action_space


def _try_out(env: gym.Env | VectorEnv, seed: int, num_steps: int) -> tuple[ObsSpec, ActionSpec, str]:
    """Take random steps in `env`, and close it."""
    num_envs = env.num_envs if isinstance(env, VectorEnv) else 1
    pool = make_pool(lambda: env, num_envs, first_env=0, seed=seed, max_failures_in_a_row=1)
    rng = np.random.default_rng(seed)
    try:
        pool.reset()
        for _ in range(num_steps):
            transition = pool.step(sample_actions(pool.action_spec, num_envs, rng))
            pool.begin(transition.terminated | transition.truncated)
    except EnvFailure as failure:
        raise ValueError(f"environment {pool.env_names[0]} failed with {_one_line(failure.__cause__)}") from failure
    finally:
        pool.close()
    return pool.obs_spec, pool.action_spec, pool.env_names[0]


def _entries(make_env: MakeEnv) -> list[str | EnvMaker]:
    entries: list[str | EnvMaker] = list(make_env) if isinstance(make_env, (list, tuple)) else [make_env]
    if not entries:
        raise ValueError("make_env is an empty list: it needs at least one environment")
    return entries


def _maker(entry: str | EnvMaker, num_envs: int) -> EnvMaker:
    """A function without parameters that builds what `entry` stands for."""
    if isinstance(entry, str):
        return partial(gym.make, entry)
    if not callable(entry):
        raise TypeError(f"make_env is {entry!r}: it must be a gymnasium id, a function that returns one, or a list")
    if "num_envs" in inspect.signature(entry).parameters:
        return partial(entry, num_envs=num_envs)
    return entry


def _reusing(env: gym.Env | VectorEnv, maker: EnvMaker) -> EnvMaker:
    """`maker`, whose first call returns `env`, which it has built already."""
    built = [env]
    return lambda: built.pop() if built else maker()


def _entry_name(entry: str | EnvMaker) -> str:
    return entry if isinstance(entry, str) else getattr(entry, "__qualname__", repr(entry))


def _one_line(error: BaseException | None) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
