"""What is made of an Atari game, on a small machine of the same shape."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from amago_ray.envs.makers import tasks_of
from amago_ray.envs.suites import atari
from amago_ray.envs.suites.atari import ClippedRewards, LifeLoss, atari_games, make_atari


class FakeGame(gym.Env[np.ndarray, np.int64]):
    """Two lives of three steps each; rewards 7, -3 and 0 in turn. Observation: steps since the game began."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.observation_space = spaces.Box(0, 255, (1,), np.uint8)
        self.action_space = spaces.Discrete(18 if settings.get("full_action_space") else 4)
        self.games = 0
        self.actions: list[int] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.games += 1
        self.steps = 0
        return self._observe()

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.actions.append(int(action))
        self.steps += 1
        observation, info = self._observe()
        return observation, (0.0, 7.0, -3.0)[self.steps % 3], self.steps == 6, False, info

    def _observe(self) -> tuple[np.ndarray, dict[str, Any]]:
        return np.array([self.steps], dtype=np.uint8), {"lives": 2 - self.steps // 3}


def test_every_life_is_a_rollout_of_the_same_game() -> None:
    game = FakeGame()
    env = LifeLoss(game)
    assert env.reset(seed=0)[0].tolist() == [0]
    ends = [env.step(np.int64(1))[2] for _ in range(3)]
    assert ends == [False, False, True]
    assert env.reset()[0].tolist() == [4] and game.games == 1  # one step of doing nothing
    assert game.actions == [1, 1, 1, 0]
    assert [env.step(np.int64(1))[2] for _ in range(2)] == [False, True]
    assert env.reset()[0].tolist() == [0] and game.games == 2


def test_a_seed_begins_a_new_game() -> None:
    game = FakeGame()
    env = LifeLoss(game)
    env.reset(seed=0)
    env.step(np.int64(1))
    with warnings.catch_warnings(action="error"):
        assert env.reset(seed=1)[0].tolist() == [0] and game.games == 2 and game.actions == [1]


def test_a_seed_at_every_life_is_told() -> None:
    """As games get that take turns."""
    env = LifeLoss(FakeGame())
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.int64(1))
    with pytest.warns(UserWarning, match="make parallel_actors a multiple of the number of games"):
        assert env.reset(seed=1)[0].tolist() == [0]


def test_a_game_that_ends_in_the_unseen_step_is_begun_anew() -> None:
    game = FakeGame()
    env = LifeLoss(game)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.int64(1))
    game.steps = 5
    assert env.reset()[0].tolist() == [0] and game.games == 2
    assert env.step(np.int64(1))[2] is False


def test_rewards_are_signs_and_the_score_is_logged() -> None:
    env = ClippedRewards(FakeGame())
    for _ in range(2):
        env.reset(seed=0)
        steps = [env.step(np.int64(0)) for _ in range(6)]
        assert [reward for _, reward, *_ in steps] == [1, -1, 0, 1, -1, 0]
        assert "AMAGO_LOG_METRIC Score" not in steps[-2][4]
        assert steps[-1][4]["AMAGO_LOG_METRIC Score"] == 8.0


class FakePreprocessing(gym.Wrapper):
    """Keeps what it is told."""

    def __init__(self, env: gym.Env, **settings: Any) -> None:
        super().__init__(env)
        self.told = settings


@pytest.fixture
def fake_ale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", ModuleType("ale_py"))
    monkeypatch.setitem(sys.modules, "cv2", ModuleType("cv2"))
    monkeypatch.setattr(atari, "AtariPreprocessing", FakePreprocessing)
    for game in ("Pong", "Breakout"):
        spec = gym.envs.registration.EnvSpec(f"ALE/{game}-v5", entry_point=FakeGame)
        monkeypatch.setitem(gym.registry, spec.id, spec)


@pytest.mark.usefixtures("fake_ale")
def test_the_defaults_are_the_protocol_of_machado_et_al() -> None:
    env = make_atari("Breakout")
    game = env.unwrapped
    assert isinstance(game, FakeGame)
    assert game.settings == {
        "frameskip": 1,
        "repeat_action_probability": 0.25,
        "full_action_space": False,
        "max_num_frames_per_episode": 108_000,
    }
    assert isinstance(env, ClippedRewards) and isinstance(env.env, FakePreprocessing)
    assert env.env.told == {
        "noop_max": 0,
        "frame_skip": 4,
        "screen_size": 84,
        "grayscale_obs": True,
        "grayscale_newaxis": True,
    }


@pytest.mark.usefixtures("fake_ale")
def test_the_older_protocol() -> None:
    env = make_atari("Pong", sticky_actions=0.0, noop_max=30, life_loss=True, clip_rewards=False)
    assert isinstance(env, LifeLoss) and isinstance(env.env, FakePreprocessing) and env.env.told["noop_max"] == 30


@pytest.mark.usefixtures("fake_ale")
def test_many_games_share_all_18_actions_and_keep_their_names() -> None:
    games = atari_games(("Pong", "Breakout"))
    envs = [maker() for maker in tasks_of(games).makers]
    assert [env.action_space.n for env in envs] == [18, 18]
    assert [env.spec.id for env in envs] == ["ALE/Pong-v5", "ALE/Breakout-v5"]
    with pytest.raises(ValueError, match=r"atari_games.games=\[\]: it must name at least one game"):
        atari_games(())


@pytest.mark.parametrize(
    ("name", "value"),
    [("frame_skip", 0), ("sticky_actions", 1.5), ("screen_size", 0), ("max_frames", 0), ("life_loss", 1)],
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        make_atari(**{name: value})
