"""XLand-MiniGrid and JAX themselves, on a benchmark of two goals that is written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from jax import numpy as jnp
from xminigrid.benchmarks import save_bz2_pickle
from xminigrid.core.constants import TILES_REGISTRY, Colors, Tiles
from xminigrid.core.goals import AgentNearGoal
from xminigrid.core.rules import EmptyRule

from amago_ray.envs.makers import check_env, make_pool
from amago_ray.envs.suites import make_xland


@pytest.fixture
def benchmark(tmp_path: Path) -> str:
    """Be near the red or near the blue ball, of which there is one each."""
    balls = [TILES_REGISTRY[Tiles.BALL, color] for color in (Colors.RED, Colors.BLUE)]
    content = {
        "goals": jnp.stack([AgentNearGoal(tile=ball).encode() for ball in balls]),
        "rules": jnp.stack([EmptyRule().encode()[None]] * 2),
        "init_tiles": jnp.stack([jnp.stack(balls)] * 2),
        "num_rules": jnp.zeros(2, dtype=jnp.uint8),
    }
    path = tmp_path / "two_goals"
    save_bz2_pickle(content, str(path))
    return str(path)


def test_trials_of_a_benchmark(benchmark: str) -> None:
    make = (make_xland, {"benchmark": benchmark, "num_trials": 2, "max_steps": 60})
    obs_spec, action_spec, name = check_env(make, num_steps=3)
    assert (obs_spec["view"].shape, action_spec.nvec, name) == ((50,), (6,), "XLand-MiniGrid-R1-9x9")
    pool = make_pool(make, num_envs=16, first_env=0, seed=0)
    pool.reset()
    rng = np.random.default_rng(0)
    logged, rewarded = [], 0
    for _ in range(120):
        made = pool.step(rng.integers(0, 3, size=16))
        assert ((made.rewards >= 0) & (made.rewards < 1)).all()
        rewarded += int((made.rewards > 0).sum())
        logged += list(made.infos.values())
        pool.begin(made.terminated | made.truncated)
    assert rewarded > 0 and logged and all(set(m) == {"Trial 1 Return", "Trial 2 Return"} for m in logged)


def test_levels_of_minigrid() -> None:
    assert check_env((make_xland, {"env_id": "MiniGrid-MemoryS8"}), num_steps=3)[2] == "MiniGrid-MemoryS8"
