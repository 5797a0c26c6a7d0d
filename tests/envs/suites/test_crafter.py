"""Crafter's own interface under gymnasium's, on a game of its shape."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from amago_ray.envs.makers import check_env
from amago_ray.envs.suites.crafter import Crafter, make_crafter


class FakeCrafter:
    """A world is a number drawn from its seed and the number of the rollout. Action 0 waits, 1 eats, 2 is fatal."""

    def __init__(self, size: tuple[int, int] = (9, 9), reward: bool = True, length: int = 4, seed: int = 0) -> None:
        self.settings = {"size": size, "reward": reward, "length": length}
        self._length, self._seed, self._episode = length, seed, 0
        self.observation_space = SimpleNamespace(shape=(*np.array(size), 3))
        self.action_space = SimpleNamespace(n=3)

    def reset(self) -> np.ndarray:
        self._episode += 1
        self.steps, self.eaten = 0, 0
        self.world = np.random.default_rng((self._seed, self._episode)).integers(256)
        return self.image()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        self.steps += 1
        self.eaten += action == 1
        dead = action == 2
        info = {"discount": 1 - float(dead), "achievements": {"eat_cow": self.eaten, "wake_up": 0}}
        return self.image(), 1.0, dead or self.steps >= self._length, info

    def image(self) -> np.ndarray:
        return np.full(self.observation_space.shape, self.world, dtype=np.uint8)


def test_worlds_follow_from_the_seed() -> None:
    first, second = Crafter(FakeCrafter()), Crafter(FakeCrafter())
    worlds = [env.reset(seed=seed)[0][0, 0, 0] for env in (first, second) for seed in (5, None, None)]
    assert worlds[:3] == worlds[3:] and len(set(worlds[:3])) == 3
    assert first.reset(seed=5)[0][0, 0, 0] == worlds[0] != first.reset(seed=6)[0][0, 0, 0]


def test_death_terminates_and_the_limit_truncates() -> None:
    env = Crafter(FakeCrafter())
    for actions, ends in (
        ((0, 2), [(False, False), (True, False)]),
        ((0, 1, 1, 0), [(False, False)] * 3 + [(False, True)]),
    ):
        env.reset(seed=0)
        steps = [env.step(np.int64(action)) for action in actions]
        assert [step[2:4] for step in steps] == ends
        assert all(info == {} for *_, info in steps[:-1])
        unlocked = float(1 in actions)
        assert steps[-1][4] == {
            "AMAGO_LOG_METRIC Unlocked eat_cow": unlocked,
            "AMAGO_LOG_METRIC Unlocked wake_up": 0.0,
            "AMAGO_LOG_METRIC Achievements": unlocked,
        }


def test_the_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("crafter")
    vars(module)["Env"] = FakeCrafter
    monkeypatch.setitem(sys.modules, "crafter", module)
    spec, action_spec, name = check_env((make_crafter, {"size": 10, "max_episode_steps": 6}))
    assert (spec["observation"].shape, action_spec.nvec, name) == ((10, 10, 3), (3,), "Crafter")
    env = make_crafter(reward=False)
    assert isinstance(env, Crafter) and env.game.settings == {"size": (64, 64), "reward": False, "length": 10_000}


@pytest.mark.parametrize(("name", "value"), [("size", 8), ("max_episode_steps", 0), ("reward", 1)])
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        make_crafter(**{name: value})
