"""Pure functions as a VectorEnv, on a numpy that is called as JAX is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from gymnasium import spaces

from amago_ray.envs.makers import check_env, make_pool
from amago_ray.envs.suites.gymnax import make_gymnax
from amago_ray.envs.suites.jax_vector import JaxStep, JaxVectorEnv
from amago_ray.envs.suites.xland import make_xland


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    if isinstance(tree, dict):
        return {key: tree_map(function, tree[key], *(other[key] for other in others)) for key in tree}
    if isinstance(tree, tuple):
        parts = [tree_map(function, *leaves) for leaves in zip(tree, *others)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return None if tree is None else function(tree, *others)


def vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    def of_rows(*arguments: Any) -> Any:
        rows = range(len(arguments[0]))
        results = [function(*(tree_map(lambda leaf, i=row: leaf[i], part) for part in arguments)) for row in rows]
        return tree_map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *results)

    return of_rows


FAKE_JAX = SimpleNamespace(
    random=SimpleNamespace(
        key=lambda seed: np.uint64(seed),
        split=lambda key, num=2: np.random.default_rng(int(key)).integers(2**32, size=num, dtype=np.uint64),
    ),
    vmap=vmap,
    jit=lambda function: function,
    numpy=np,
    tree=SimpleNamespace(map=tree_map),
    device_get=lambda tree: tree,
)


def reset(key: Any) -> tuple[Any, Any]:
    length = int(key) % 3 + 1
    return (length, 0), np.array([length, 0], dtype=np.float32)


def step(key: Any, state: Any, action: Any) -> JaxStep:
    length, steps = int(state[0]), int(state[1]) + 1
    return JaxStep(
        (length, steps),
        np.array([length, steps], dtype=np.float32),
        float(action),
        steps == length,
        False,
        {"Steps": steps},
    )


def make_counts(num_envs: int = 1, seed: int = 0) -> JaxVectorEnv:
    """Rollouts of 1 to 3 steps. Observation: their length, the steps made. Reward: the action."""
    shown = (spaces.Box(0, 3, (2,), np.float32), spaces.Discrete(5))
    return JaxVectorEnv(FAKE_JAX, reset, step, shown, "Counts", num_envs, seed)


def test_only_rows_that_ended_begin_anew() -> None:
    pool = make_pool(make_counts, num_envs=6, first_env=0, seed=1)
    obs = {key: value.copy() for key, value in pool.reset().items()}["observation"]
    assert len(set(obs[:, 0].tolist())) > 1, "all rollouts are alike"
    for action in range(1, 5):
        before = obs
        made = pool.step(np.full(6, action))
        assert made.rewards.tolist() == [action] * 6
        ended = made.terminated.copy()
        np.testing.assert_array_equal(ended, before[:, 1] + 1 == before[:, 0])
        assert {row: metrics["Steps"] for row, metrics in made.infos.items()} == {
            row: before[row, 0] for row in np.flatnonzero(ended)
        }
        obs = pool.begin(ended)[0]["observation"].copy()
        assert (obs[ended, 1] == 0).all()
        np.testing.assert_array_equal(obs[~ended], before[~ended] + [0, 1])
    assert pool.env_names == ["Counts"] * 6


def test_a_seed_begins_the_same_rollouts() -> None:
    env = make_counts(8)
    first, again, other = (env.reset(seed=seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (env.reset()[0] != other).any()


class FakeGymnax:
    """gymnax's shape of an environment: as many steps as `limit`, each worth the action."""

    def reset_env(self, key: Any, params: Any) -> tuple[Any, Any]:
        return np.zeros(2, np.float32), np.int32(0)

    def step_env(self, key: Any, state: Any, action: Any, params: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return np.full(2, state + 1, np.float32), state + 1, action, state + 1 == params.limit, {}

    def observation_space(self, params: Any) -> Any:
        return type("Box", (), {"low": 0, "high": np.array([9, 9]), "shape": (2,)})()

    def action_space(self, params: Any) -> Any:
        return type("Discrete", (), {"n": 2})()


class Params(SimpleNamespace):
    def replace(self, **changes: Any) -> Params:
        return Params(**{**vars(self), **changes})


def test_gymnax_takes_parameters_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    gymnax = ModuleType("gymnax")
    vars(gymnax)["make"] = lambda env_id: (FakeGymnax(), Params(limit=3))
    monkeypatch.setitem(sys.modules, "gymnax", gymnax)
    monkeypatch.setitem(sys.modules, "jax", FAKE_JAX)  # type: ignore[arg-type]
    obs_spec, action_spec, name = check_env((make_gymnax, {"env_id": "Fake-misc"}))
    assert (obs_spec["observation"].shape, action_spec.nvec, name) == ((2,), (2,), "Fake-misc")
    env = make_gymnax("Fake-misc", num_envs=2, limit=2)
    assert env.single_observation_space.high.tolist() == [9, 9]  # type: ignore[attr-defined]
    env.reset(seed=0)
    assert [env.step(np.array([0, 1]))[2].tolist() for _ in range(2)] == [[False, False], [True, True]]
    with pytest.raises(ValueError, match="^size=3: must be one of limit, which Fake-misc has"):
        make_gymnax("Fake-misc", size=3)


class TimeStep(NamedTuple):
    """XLand-MiniGrid's, of a trial that ends after as many steps as its ruleset says. It sees one cell."""

    steps: Any
    ruleset: Any
    reward: Any

    @property
    def observation(self) -> Any:
        return np.array([[[self.steps, self.ruleset]]], dtype=np.uint8)

    def last(self) -> Any:
        return self.steps == self.ruleset


class FakeXLand:
    """XLand-MiniGrid's shape of an environment. Reward: the action."""

    def num_actions(self, params: Any) -> int:
        return 6

    def reset(self, params: Any, key: Any) -> Any:
        return TimeStep(np.int32(0), params.ruleset, np.float32(0))

    def step(self, params: Any, timestep: Any, action: Any) -> Any:
        return TimeStep(np.int32(timestep.steps + 1), params.ruleset, np.float32(action))


@pytest.fixture
def fake_xland(monkeypatch: pytest.MonkeyPatch) -> None:
    package, constants = ModuleType("xminigrid"), ModuleType("xminigrid.core.constants")
    benchmarks = ModuleType("xminigrid.benchmarks")
    vars(package)["make"] = lambda env_id: (FakeXLand(), Params(view_size=1, max_steps=9, ruleset=np.int32(2)))
    vars(constants).update(NUM_TILES=13, NUM_COLORS=12)
    vars(benchmarks).update(
        registered_benchmarks=lambda: ("small", "large"),
        load_benchmark=lambda name: SimpleNamespace(sample_ruleset=lambda key: np.int32(int(key) % 3 + 1)),
    )
    for module in (package, benchmarks, constants, ModuleType("xminigrid.core")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "jax", FAKE_JAX)  # type: ignore[arg-type]


@pytest.mark.usefixtures("fake_xland")
def test_trials_of_one_ruleset_make_a_rollout() -> None:
    env = make_xland("XLand-Fake", benchmark="small", num_trials=2, view_size=1, num_envs=5, seed=1)
    first, _ = env.reset(seed=1)
    rulesets = first["view"][:, 1].tolist()
    assert len(set(rulesets)) > 1 and first["begins"].all()
    for row, length in enumerate(rulesets):
        env.reset(seed=1)
        steps = [env.step(np.full(5, 1 + (made >= length))) for made in range(2 * length)]
        seen = [(*o["view"][row].tolist(), int(o["begins"][row, 0])) for o, *_ in steps]
        inside = [(step, length, 0) for step in range(1, length)]
        assert seen == [*inside, (0, length, 1), *inside, (length, length, 1)]
        assert [bool(truncated[row]) for *_, truncated, _ in steps] == [False] * (2 * length - 1) + [True]
        assert not any(terminated.any() for _, _, terminated, _, _ in steps)
        logged = {key: value[row] for key, value in steps[-1][4].items() if key.startswith("AMAGO_LOG_METRIC")}
        assert logged == {"AMAGO_LOG_METRIC Trial 1 Return": length, "AMAGO_LOG_METRIC Trial 2 Return": 2 * length}
        assert steps[-1][4]["_AMAGO_LOG_METRIC Trial 1 Return"][row]


@pytest.mark.usefixtures("fake_xland")
def test_the_check_of_an_experiment_passes() -> None:
    obs_spec, action_spec, name = check_env((make_xland, {"env_id": "MiniGrid-Fake", "view_size": 1}))
    assert (obs_spec["view"].nvec, action_spec.nvec, name) == ((13, 12), (6,), "MiniGrid-Fake")


@pytest.mark.usefixtures("fake_xland")
def test_benchmarks_of_xland() -> None:
    with pytest.raises(ValueError, match="^benchmark=None: must be a benchmark for XLand-Fake, which has no goal"):
        make_xland("XLand-Fake")
    with pytest.raises(ValueError, match="^benchmark='huge': must be a file or one of small, large"):
        make_xland("XLand-Fake", benchmark="huge")
    for name in ("num_trials", "view_size", "num_envs", "max_steps"):
        with pytest.raises(ValueError, match=f"^{name}=0: must be"):
            make_xland("MiniGrid-Fake", **{name: 0})
