"""Atari games as they are published on: frame skip, sticky actions, 84 x 84 greys; one game, or many in one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsFloat

import gin
import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AtariPreprocessing

from amago_ray.envs.builtin.arguments import check_flag, check_integer, check_number
from amago_ray.envs.suites.extras import require
from amago_ray.warned import warn

EXTRA = "atari"


class LifeLoss(gym.Wrapper):
    """Every life is a rollout: losing one terminates, and the next `reset` goes on with the same game.

    The step in between, of action 0, is not seen. The game itself is reset when it is over or truncated, and by a seed:
    where games take turns, that is at every reset. One warning then says what to change.

    env: one whose `info` has "lives". Use it for training only: returns are those of lives, not of games.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._lives = 0
        self._game_over, self._life_lost = True, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The next life, or with a seed or after the last one a new game."""
        if seed is not None and self._life_lost and not self._game_over:
            warn(
                "LifeLoss: every life begins a new game, since games that take turns are seeded at every reset; make "
                "parallel_actors a multiple of the number of games",
                stacklevel=2,
            )
        self._life_lost = False
        if not self._game_over and seed is None:
            observation, _, terminated, truncated, info = self.env.step(0)
            self._game_over = terminated or truncated
        if self._game_over or seed is not None:
            observation, info = self.env.reset(seed=seed, options=options)
            self._game_over = False
        self._lives = int(info["lives"])
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._game_over = terminated or truncated
        self._life_lost = int(info["lives"]) < self._lives
        self._lives = int(info["lives"])
        return observation, reward, terminated or self._life_lost, truncated, info


class ClippedRewards(gym.Wrapper):
    """Rewards are -1, 0 or 1, by their sign; at the end of a rollout `info` has "AMAGO_LOG_METRIC Score", unclipped."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._score = 0.0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._score += float(reward)
        if terminated or truncated:
            info = {**info, "AMAGO_LOG_METRIC Score": self._score}
        return observation, float(np.sign(float(reward))), terminated, truncated, info


@gin.configurable
def make_atari(
    game: str = "Pong",
    frame_skip: int = 4,
    sticky_actions: float = 0.25,
    noop_max: int = 0,
    life_loss: bool = False,
    clip_rewards: bool = True,
    full_action_space: bool = False,
    screen_size: int = 84,
    grayscale: bool = True,
    max_frames: int = 108_000,
    **kwargs: Any,
) -> gym.Env:
    """An Atari game: uint8 images (screen_size, screen_size, 1), or 3 in colour, and Discrete actions.

    game: as in the id ALE/<game>-v5; metrics are grouped by that id. frame_skip: frames for which an action is held;
    the image is the maximum of the last two. sticky_actions: probability, at each frame, that the action before goes
    on. noop_max: at most so many frames of doing nothing at the start. life_loss: see `LifeLoss`. clip_rewards: see
    `ClippedRewards`. full_action_space: all 18 actions instead of those that the game uses. max_frames: of one rollout.
    kwargs: as for `gymnasium.make`.

    The defaults are the evaluation protocol of Machado et al. 2018, arXiv 1709.06009: sticky actions and no other
    randomness, whole games, half an hour of 60 frames a second. Mnih et al. 2015 had noop_max 30, sticky_actions 0 and
    life_loss.

    Raises ModuleNotFoundError without the packages ale-py and opencv, ValueError for an argument out of range.
    """
    check_integer("frame_skip", frame_skip, at_least=1)
    check_integer("screen_size", screen_size, at_least=1)
    check_integer("max_frames", max_frames, at_least=1)
    check_number("sticky_actions", sticky_actions, 0.0, 1.0)
    for name, flag in (("life_loss", life_loss), ("clip_rewards", clip_rewards)):
        check_flag(name, flag)
    gym.register_envs(require("ale_py", EXTRA))
    require("cv2", EXTRA)
    env = gym.make(
        f"ALE/{game}-v5",
        frameskip=1,
        repeat_action_probability=sticky_actions,
        full_action_space=full_action_space,
        max_num_frames_per_episode=max_frames,
        **kwargs,
    )
    env = AtariPreprocessing(
        env,
        noop_max=noop_max,
        frame_skip=frame_skip,
        screen_size=screen_size,
        grayscale_obs=grayscale,
        grayscale_newaxis=True,
    )
    if life_loss:
        env = LifeLoss(env)
    return ClippedRewards(env) if clip_rewards else env


@gin.configurable
def atari_games(games: Sequence[str] = ("Pong", "Breakout", "SpaceInvaders")) -> list[tuple[Any, dict[str, Any]]]:
    """For `make_train_env`: these games, which take turns and share all 18 actions, each under its own name.

    With `make_atari.life_loss`, let `parallel_actors` be a multiple of their number (see `LifeLoss`).
    `make_atari` has the other settings. Raises ValueError for an empty list.
    """
    if not games:
        raise ValueError(f"atari_games.games={list(games)!r}: it must name at least one game")
    return [(make_atari, {"game": game, "full_action_space": True}) for game in games]
