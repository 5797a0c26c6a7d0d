"""XLand-MiniGrid: grid worlds whose rules and goals are hidden, and several trials to find them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gin
import numpy as np
from gymnasium import spaces

from amago_ray.envs.builtin.arguments import check_integer
from amago_ray.envs.suites.extras import require
from amago_ray.envs.suites.jax_vector import JaxStep, JaxVectorEnv

EXTRA = "xland"


@gin.configurable
def make_xland(
    env_id: str = "XLand-MiniGrid-R1-9x9",
    benchmark: str | None = None,
    num_trials: int = 3,
    max_steps: int | None = None,
    view_size: int = 5,
    num_envs: int = 1,
    seed: int = 0,
) -> JaxVectorEnv:
    """XLand-MiniGrid as a VectorEnv whose rollouts are `num_trials` trials with one set of rules and one goal.

    Observation, a Dict. "view": MultiDiscrete (view_size * view_size * 2,), thing and colour of every cell that the
    agent sees, row by row. "begins": MultiBinary (1,), 1 at the first reading of a trial. A trial ends with its goal,
    which is worth 1 - 0.9 times the part of `max_steps` that it took, or after `max_steps`. The step that ends one
    returns the first view of the next, on a new grid with the same rules; the end of the last one truncates the
    rollout. "Trial i Return" is logged of every trial.

    env_id: XLand-MiniGrid's; metrics are grouped by it. benchmark: where rollouts draw rules and goal from: a name,
    such as "trivial-21k", which XLand-MiniGrid downloads once, or a file of such; None takes those of the id, which
    only "MiniGrid-..." has. max_steps: of a trial; None takes the id's. num_envs, seed: a worker gives its own.

    Raises ModuleNotFoundError without the package xminigrid, ValueError for an argument out of range.
    Source: Nikulin et al. 2024, arXiv 2312.12044.
    """
    for name, value in (("num_trials", num_trials), ("view_size", view_size), ("num_envs", num_envs)):
        check_integer(name, value, at_least=1)
    xminigrid, jax = require("xminigrid", EXTRA), require("jax", EXTRA)
    if benchmark is None and env_id.startswith("XLand-"):
        raise ValueError(f"benchmark=None: must be a benchmark for {env_id}, which has no goal of its own")
    env, params = xminigrid.make(env_id)
    params = params.replace(view_size=view_size)
    if max_steps is not None:
        params = params.replace(max_steps=check_integer("max_steps", max_steps, at_least=1))
    rulesets = None if benchmark is None else _rulesets(benchmark)
    trials = _Trials(jax, env, params, rulesets, num_trials)
    constants = require("xminigrid.core.constants", EXTRA)
    cells = np.tile([constants.NUM_TILES, constants.NUM_COLORS], view_size * view_size)
    observed = spaces.Dict(view=spaces.MultiDiscrete(cells), begins=spaces.MultiBinary(1))
    shown = (observed, spaces.Discrete(int(env.num_actions(params))))
    return JaxVectorEnv(jax, trials.reset, trials.step, shown, env_id, num_envs, seed)


def _rulesets(benchmark: str) -> Any:
    benchmarks = require("xminigrid.benchmarks", EXTRA)
    if Path(benchmark).is_file():
        return benchmarks.load_benchmark_from_path(benchmark)
    known = benchmarks.registered_benchmarks()
    if benchmark not in known:
        raise ValueError(f"benchmark={benchmark!r}: must be a file or one of {', '.join(known)}")
    return benchmarks.load_benchmark(benchmark)


class _Trials:
    """Pure functions of one environment, whose state is (timestep, ruleset, trial, returns (num_trials,))."""

    def __init__(self, jax: Any, env: Any, params: Any, rulesets: Any, num_trials: int) -> None:
        self._jax, self._env, self._params, self._rulesets = jax, env, params, rulesets
        self._num_trials = num_trials

    def reset(self, key: Any) -> tuple[Any, dict[str, Any]]:
        np_jax = self._jax.numpy
        draw, begin = self._jax.random.split(key)
        ruleset = None if self._rulesets is None else self._rulesets.sample_ruleset(draw)
        timestep = self._env.reset(self._with(ruleset), begin)
        state = (timestep, ruleset, np_jax.int32(0), np_jax.zeros(self._num_trials, np_jax.float32))
        return state, self._observe(timestep, True)

    def step(self, key: Any, state: Any, action: Any) -> JaxStep:
        jax, (timestep, ruleset, trial, returns) = self._jax, state
        timestep = self._env.step(self._with(ruleset), timestep, action)
        reward, ended = timestep.reward, timestep.last()
        returns = returns + reward * (jax.numpy.arange(self._num_trials) == trial)
        trial = trial + ended
        over = trial == self._num_trials
        fresh = self._env.reset(self._with(ruleset), key)
        timestep = jax.tree.map(lambda new, old: jax.numpy.where(ended & ~over, new, old), fresh, timestep)
        metrics = {f"Trial {i + 1} Return": returns[i] for i in range(self._num_trials)}
        state = (timestep, ruleset, trial, returns)
        return JaxStep(state, self._observe(timestep, ended), reward, False, over, metrics)

    def _with(self, ruleset: Any) -> Any:
        return self._params if ruleset is None else self._params.replace(ruleset=ruleset)

    def _observe(self, timestep: Any, begins: Any) -> dict[str, Any]:
        np_jax = self._jax.numpy
        view = timestep.observation.reshape(-1).astype(np_jax.int32)
        return {"view": view, "begins": np_jax.full(1, begins, np_jax.int8)}
