"""Tasks of many spaces in one space, on small ones of the shapes that suites have."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from amago_ray.envs.makers import check_env, make_pool, tasks_of
from amago_ray.envs.suites.shared_spaces import SharedSpaces, num_features_and_actions, share_spaces


class Game(gym.Env[Any, Any]):
    """Draws observations, remembers its last action, ends after three steps."""

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions
        self.taken: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.taken, self.steps = action, self.steps + 1
        return self.observation_space.sample(), 0.5, self.steps == 3, False, {}


SPACES: dict[str, tuple[spaces.Space[Any], spaces.Space[Any]]] = {
    "Autoencode": (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(4))), spaces.Discrete(4)),
    "Battleship": (spaces.Discrete(2), spaces.MultiDiscrete([3, 4])),
    "Concentration": (spaces.MultiDiscrete([3] * 5), spaces.Discrete(5)),
    "CartPole": (spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(2)),
    "Pendulum": (spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-2, 2, (1,), np.float32)),
}
IDS = {name: f"Fake{name}-v0" for name in SPACES}


@pytest.fixture(autouse=True)
def games(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, id in IDS.items():
        observations, actions = SPACES[name]
        spec = gym.envs.registration.EnvSpec(
            id, entry_point=Game, kwargs={"observations": observations, "actions": actions}
        )
        monkeypatch.setitem(gym.registry, id, spec)


def test_sizes() -> None:
    found = {name: num_features_and_actions(Game(*SPACES[name])) for name in SPACES if name != "Pendulum"}
    assert found == {"Autoencode": (6, 4), "Battleship": (2, 12), "Concentration": (15, 5), "CartPole": (2, 2)}
    with pytest.raises(ValueError, match=r"actions of Box.*need actions to be counted"):
        num_features_and_actions(Game(*SPACES["Pendulum"]))


def test_observations_are_one_hots_and_then_zeros() -> None:
    game = Game(*SPACES["Autoencode"])
    env = SharedSpaces(game, num_features=10, num_actions=7)
    game.observation_space.sample = lambda **_: (np.int64(1), np.int64(2))  # type: ignore[method-assign]
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["observation"].tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 0]
    assert observation["legal"].tolist() == [1, 1, 1, 1, 0, 0, 0]


def test_actions_are_counted_in_row_major_order_and_from_0_again() -> None:
    game = Game(*SPACES["Battleship"])
    env = SharedSpaces(game, num_features=2, num_actions=20)
    env.reset(seed=0)
    taken = []
    for action in (0, 1, 4, 11, 12):
        env.step(np.int64(action))
        taken.append(game.taken.tolist())
    assert taken == [[0, 0], [0, 1], [1, 0], [2, 3], [0, 0]]


def test_too_few_features_or_actions() -> None:
    game = Game(*SPACES["Concentration"])
    with pytest.raises(ValueError, match="num_features=14: must be at least 15"):
        SharedSpaces(game, 14, 5)
    with pytest.raises(ValueError, match="num_actions=4: must be at least 5"):
        SharedSpaces(game, 15, 4)


def test_tasks_in_one_run_share_spaces_and_keep_their_names() -> None:
    tasks = share_spaces(
        [IDS["Autoencode"], (gym.make, {"id": IDS["Battleship"]}), IDS["Concentration"], "CartPole-v1"]
    )
    obs_spec, action_spec, _ = check_env(tasks, action_mask_key="legal")
    assert obs_spec["observation"].shape == (15,) and obs_spec["legal"].shape == (12,)
    assert action_spec.nvec == (12,)
    assert tasks_of(tasks).labels == ("",) * 4
    pool = make_pool(tasks, num_envs=4, first_env=0, seed=0)
    obs = pool.reset()
    assert obs["legal"].sum(axis=1).tolist() == [4, 12, 5, 2]
    assert pool.env_names == [IDS["Autoencode"], IDS["Battleship"], IDS["Concentration"], "CartPole-v1"]
    pool.close()


def test_tasks_that_cannot_share() -> None:
    with pytest.raises(ValueError, match=r"share_spaces.tasks=\[\]: it must name at least one task"):
        share_spaces([])
    with pytest.raises(ValueError, match=r"actions of Box.*need actions to be counted"):
        share_spaces(["CartPole-v1", IDS["Pendulum"]])
    with pytest.raises(ValueError, match="building the environment NoSuch-v0 failed with"):
        share_spaces(["NoSuch-v0"])
    texts = Game(spaces.Dict(graph=spaces.Graph(spaces.Discrete(2), None)), spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"observations of Dict.*have no flat form"):
        num_features_and_actions(texts)
