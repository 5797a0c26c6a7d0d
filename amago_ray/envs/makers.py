"""The environments of one worker, stepped together: plain ones, here or in processes of their own, or a VectorEnv.

    obs = pool.reset()
    while collecting:
        transition = pool.step(actions)                                     # what the actions led to
        obs, fresh = pool.begin(transition.terminated | transition.truncated)   # what the policy sees next

Broken environments are rebuilt, one at a time, without their siblings noticing. Rows of arrays are environments.
All arrays belong to the pool: they hold until its next call, `transition.obs` until `begin`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

import amago_ray.envs.builtin  # noqa: F401 (registers the gymnasium ids of the environments that ship with the package)
from amago_ray.envs.amago_env import name_before_reset
from amago_ray.envs.first_rollout import FirstRollout
from amago_ray.envs.last_obs import check_last_obs
from amago_ray.envs.plain_pool import EnvPool, check_separate
from amago_ray.envs.pool import (
    FAILURES,
    MAX_FAILURES_IN_A_ROW,
    EnvFailure,
    Pool,
    Transition,
    check_same,
    check_same_spaces,
    close_env,
    closing_env,
    converters,
    env_seeds,
    one_line,
    spaces_of,
    vector_env_in_list,
)
from amago_ray.envs.processes import EnvProcesses
from amago_ray.envs.processes.pool import ProcessPool, start_pools
from amago_ray.envs.spaces import check_action_mask, sample_actions
from amago_ray.envs.tasks import (
    Entry,
    EnvMaker,
    MakeEnv,
    Tasks,
    build,
    distinct,
    entries_of,
    entry_name,
    not_built,
    remember,
    remember_plain,
    remembered_spaces,
    sendable_tasks,
    sized,
    tasks_of,
)
from amago_ray.envs.vector_pool import VectorEnvPool
from amago_ray.specs import ActionSpec, ObsSpec
from amago_ray.warned import warn

__all__ = [
    "EnvFailure",
    "EnvMaker",
    "EnvPool",
    "EnvProcesses",
    "MakeEnv",
    "Pool",
    "Tasks",
    "Transition",
    "VectorEnvPool",
    "check_env",
    "check_spaces",
    "env_spaces",
    "make_pool",
    "make_pools",
    "num_tasks",
    "sendable_tasks",
]

Tried = tuple[ObsSpec, ActionSpec, str]  # and the name of the environment
OTHER_SPACES = "{} has other spaces than make_train_env"
MAX_STEPS_TO_AN_END = 1000  # of the check where an end is awaited: that of VectorEnvs, and after a failure


def make_pool(
    make_env: MakeEnv,
    num_envs: int,
    first_env: int,
    seed: int,
    max_failures_in_a_row: int = MAX_FAILURES_IN_A_ROW,
    total_envs: int | None = None,
    processes: EnvProcesses | None = None,
) -> Pool:
    """The pool of the environments `first_env` ... `first_env + num_envs - 1` of a run of `total_envs`.

    make_env: a gymnasium id; a function that returns a gymnasium Env or VectorEnv (one with a parameter `num_envs` is
    given it, and one with `seed` besides a seed of its own); a pair of either and a dict of its arguments; or a list of
    any of these that return an Env, which take turns as `EnvPool` says.
    processes: environments run in processes of their own, as `processes.pool` says; None for in this one.

    Raises ValueError or TypeError for environments that do not fit, and whatever the functions raise.
    """
    if processes is not None:
        shares = [(first_env, num_envs)]
        return make_pools(make_env, shares, seed, processes, max_failures_in_a_row, total_envs)[0]
    tasks = tasks_of(make_env)
    tasks.register()
    makers = [sized(maker, num_envs, env_seeds(seed, first_env)) for maker in tasks.makers]
    total_envs = total_envs or first_env + num_envs
    try:
        first_task = first_env % len(makers)
        first = makers[first_task]()
        makers[first_task] = _reusing(first, makers[first_task])
        if isinstance(first, VectorEnv):
            _check_vector_env(first, num_envs, len(makers))
            return VectorEnvPool(makers[0], seed, max_failures_in_a_row, first_env)
        return EnvPool(makers, seed, max_failures_in_a_row, first_env, num_envs, total_envs, tasks.labels)
    except FAILURES as error:
        if isinstance(error, Exception):
            raise
        # Others would end this process without a word.
        raise RuntimeError(f"building the environments ended in {one_line(error)}") from error


def make_pools(
    make_env: MakeEnv,
    shares: Sequence[tuple[int, int]],
    seed: int,
    processes: EnvProcesses,
    max_failures_in_a_row: int = MAX_FAILURES_IN_A_ROW,
    total_envs: int | None = None,
) -> list[Pool]:
    """`make_pool` for each of `shares`, (first_env, num_envs), in processes of their own that start together."""
    total_envs = total_envs or sum(shares[-1])
    return [*start_pools(sendable_tasks(make_env), shares, total_envs, seed, processes, max_failures_in_a_row)]


def check_env(
    make_env: MakeEnv,
    seed: int = 0,
    num_steps: int = 20,
    action_mask_key: str | None = None,
    like: tuple[gym.Space, gym.Space] | None = None,
    processes: EnvProcesses | None = None,
    rollout: FirstRollout | None = None,
) -> tuple[ObsSpec, ActionSpec, str]:
    """Build every entry of `make_env` once and take a few random steps in it.

    action_mask_key: name of the observation that says which actions are legal. like: those of the training
    environments, if `make_env` is of validation environments. processes: as of `make_pool`; nothing is built here then.
    rollout: is filled with what came of the first steps.

    Returns the specifications that all of them share and the first one's name. Raises ValueError or TypeError, in one
    line that names the environment, for anything that would stop a run.
    """
    entries = distinct(entries_of(make_env))
    try_out = partial(_try_out, seed=seed, num_steps=num_steps, action_mask_key=action_mask_key, rollout=rollout)
    if processes is None:
        found = _try_here(entries, like, seed, try_out)
    else:
        found = _try_in_processes(entries, like, seed, try_out, processes)
    tasks_of(make_env)  # says which tasks are named alike
    return found


def _try_here(
    entries: Sequence[Entry], like: tuple[gym.Space, gym.Space] | None, seed: int, try_out: Callable[[Pool], Tried]
) -> Tried:
    envs: list[Any] = []
    found: list[Tried] = []
    for entry in entries:
        env = build(entry)
        envs.append(env)
        try:
            _check_fits(envs, len(entries), like)
        except (TypeError, ValueError):
            close_env(env)
            raise
        if isinstance(env, VectorEnv):
            check_last_obs(env)
        found.append(try_out(_pool_of(entry, env, seed)))
        remember(entry, env, found[-1][2])
        if not isinstance(env, VectorEnv):
            _check_builds_anew(entry, env)
    return found[0]


def _pool_of(entry: Entry, env: gym.Env | VectorEnv, seed: int) -> Pool:
    """A pool of this very environment, and of another of `entry` where it fails."""
    num_envs = env.num_envs if isinstance(env, VectorEnv) else 1
    return make_pool(_reusing(env, partial(build, entry)), num_envs, first_env=0, seed=seed)


def _try_in_processes(
    entries: Sequence[Entry],
    like: tuple[gym.Space, gym.Space] | None,
    seed: int,
    try_out: Callable[[Pool], Tried],
    processes: EnvProcesses,
) -> Tried:
    """As `_try_here`, but that each is built in a process of its own, which may end or hang."""
    found: list[Tried] = []
    first: tuple[tuple[gym.Space, gym.Space], str] | None = None
    for entry in entries:
        pool = _process_of(entry, seed, processes)
        name = pool.env_names[0]
        first = first or (pool.spaces, name)
        try:
            if like is not None:
                check_same(pool.spaces, name, like, "make_train_env", OTHER_SPACES.format("make_val_env"))
            check_same(pool.spaces, name, *first)
        except ValueError:
            pool.close()
            raise
        found.append(try_out(pool))
        remember_plain(entry, None if pool.names_its_own_tasks else found[-1][2], pool.spaces)
    return found[0]


def _process_of(entry: Entry, seed: int, processes: EnvProcesses) -> ProcessPool:
    """A pool of the environment of `entry`, in a process of its own.

    Raises ValueError or TypeError, in one line that names it, where it cannot be built, or that ends or hangs.
    """
    name = entry_name(entry)
    try:
        tasks = sendable_tasks(entry)
        tasks = replace(tasks, makers=tuple(partial(build, maker, name) for maker in tasks.makers))
        return start_pools(tasks, [(0, 1)], 1, seed, processes, MAX_FAILURES_IN_A_ROW)[0]
    except ImportError as error:
        raise not_built(name, error) from error
    except EnvFailure as failure:
        raise not_built(name, failure.__cause__) from failure


def env_spaces(make_env: MakeEnv, processes: EnvProcesses | None = None) -> tuple[gym.Space, gym.Space]:
    """Observation and action space of one environment of `make_env`, which all of them share (see `check_env`).

    processes: as of `make_pool`. What `check_env` has found then counts, and else one is built there.
    """
    entry = entries_of(make_env)[0]
    if processes is None:
        with closing_env(build(entry)) as env:
            return spaces_of(env)
    if (known := remembered_spaces(entry)) is not None:
        return known
    with closing(_process_of(entry, 0, processes)) as pool:
        return pool.spaces


def check_spaces(
    make_env: MakeEnv, like: tuple[gym.Space, gym.Space], what: str, processes: EnvProcesses | None = None
) -> None:
    """Build each entry of `make_env` once, where it was not tried before. Raises ValueError if it has other spaces.

    like: those of the training environments. what: `make_env` is in messages. processes: as of `make_pool`.
    """
    for entry in distinct(entries_of(make_env)):
        spaces = remembered_spaces(entry) or env_spaces(entry, processes)
        check_same(spaces, entry_name(entry), like, "make_train_env", OTHER_SPACES.format(what))


def num_tasks(make_env: MakeEnv) -> int:
    """How many tasks `make_env` lists; they take turns as `EnvPool` says."""
    return len(entries_of(make_env))


def _check_vector_env(env: VectorEnv, num_envs: int, num_entries: int) -> None:
    """Raises, after closing it, TypeError if it is one of a list, ValueError if it has another size."""
    fault: Exception | None = None
    if num_entries > 1:
        fault = vector_env_in_list(env)
    elif env.num_envs != num_envs:
        fault = ValueError(
            f"make_env built a VectorEnv of {env.num_envs} environments where {num_envs} are needed "
            "(a worker's share of parallel_actors): give make_env a parameter num_envs"
        )
    if fault is not None:
        close_env(env)
        raise fault


def _check_fits(envs: list[Any], num_entries: int, like: tuple[gym.Space, gym.Space] | None) -> None:
    """Raises ValueError or TypeError where the newest of `envs` cannot be stepped together with the others."""
    *others, env = envs
    converters(env)  # raises for what is no environment
    if isinstance(env, VectorEnv) and num_entries > 1:
        raise vector_env_in_list(env)
    for other in others:
        check_separate(env, other)
    if like is not None:
        check_same_spaces(env, like, "make_train_env", OTHER_SPACES.format("make_val_env"))
    check_same_spaces(env, spaces_of(envs[0]), name_before_reset(envs[0]))


def _check_builds_anew(entry: Entry, env: Any) -> None:
    """Raises ValueError where the function of `entry` hands out one object again and again."""
    what = entry.func if isinstance(entry, partial) else entry
    if not callable(what) or inspect.isclass(what):
        return
    again = build(entry)
    close_env(again)
    check_separate(again, env)


def _try_out(pool: Pool, seed: int, num_steps: int, action_mask_key: str | None, rollout: FirstRollout | None) -> Tried:
    """Take random steps in the environments of `pool`, and close it.

    It is as patient as a run: where one fails it goes on until that has finished a rollout, or has failed too often.
    """
    rng = np.random.default_rng(seed)
    try:
        if action_mask_key is not None:
            check_action_mask(action_mask_key, pool.obs_spec, pool.action_spec)
        obs, warned_of = pool.reset(), set[str]()
        if rollout is not None:
            rollout.begin(obs)
        for step in range(max(num_steps, MAX_STEPS_TO_AN_END)):
            if step >= num_steps and not pool.awaits_last_obs and not pool.is_failing:
                break
            _warn_of_images_out_of_bounds(pool, obs, warned_of)
            legal = pool.legal_actions(obs, action_mask_key)
            actions = sample_actions(pool.action_spec, pool.num_envs, rng, legal)
            transition = pool.step(actions)
            if rollout is not None:
                rollout.step(actions, transition)
            obs, _ = pool.begin(transition.terminated | transition.truncated)
            if rollout is not None and not rollout.has_begun:
                rollout.begin(obs)
    except EnvFailure as failure:
        raise ValueError(f"environment {pool.env_names[0]} failed with {failure.last}") from failure
    finally:
        pool.close()
    if failed := pool.take_failure():
        times = f" ({pool.failures} times)" if pool.failures > 1 else ""
        warn(f"before the start {failed}{times}: the rollout is lost, and it was built anew", stacklevel=2)
    return pool.obs_spec, pool.action_spec, pool.env_names[0]


def _warn_of_images_out_of_bounds(pool: Pool, obs: dict[str, np.ndarray], warned_of: set[str]) -> None:
    """Encoders of images scale by the bounds that their space declares."""
    from amago_ray.nets.tstep_encoders import is_image  # PyTorch, which the processes of environments do without

    for name, spec in pool.obs_spec.items():
        if len(spec.shape) != 3 or spec.bounds is None or name in warned_of or not is_image(spec):
            continue
        low, high = (np.reshape(x, spec.bounds.shape) for x in (spec.bounds.low, spec.bounds.high))
        if obs[name].dtype.kind == "f":
            with np.errstate(over="ignore"):
                low, high = (x.astype(obs[name].dtype) for x in (low, high))  # rounded as what is stored
        if (obs[name] < low).any() or (obs[name] > high).any():
            warned_of.add(name)
            found, declared = (f"{x.min():g} to {y.max():g}" for x, y in ((obs[name], obs[name]), (low, high)))
            warn(
                f"environment {pool.env_names[0]}: its image {name!r} has values of {found}, and its space declares "
                f"{declared}, by which images are scaled unless an encoder is told otherwise (img_range): let the "
                "space declare what the environment returns",
                stacklevel=2,
            )


def _reusing(env: gym.Env | VectorEnv, maker: EnvMaker) -> EnvMaker:
    """`maker`, whose first call returns `env`, which it has built already."""
    built = [env]
    return lambda: built.pop() if built else maker()
