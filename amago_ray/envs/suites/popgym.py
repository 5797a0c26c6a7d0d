"""POPGym: one game as it comes, or many of them in one run, with one observation space and one action space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gin
import gymnasium as gym
from gymnasium.wrappers import TimeAwareObservation, TimeLimit

from amago_ray.envs.builtin.arguments import check_flag
from amago_ray.envs.deadline import DeadlineTerminates
from amago_ray.envs.suites.extras import require
from amago_ray.envs.suites.shared_spaces import share_spaces
from amago_ray.envs.tasks import Entry

EXTRA = "popgym"

# Of every kind of game the easy form whose actions can be counted.
EASY_GAMES: tuple[str, ...] = (
    "popgym-AutoencodeEasy-v0",
    "popgym-BattleshipEasy-v0",
    "popgym-ConcentrationEasy-v0",
    "popgym-CountRecallEasy-v0",
    "popgym-HigherLowerEasy-v0",
    "popgym-MineSweeperEasy-v0",
    "popgym-MultiarmedBanditEasy-v0",
    "popgym-NoisyPositionOnlyCartPoleEasy-v0",
    "popgym-PositionOnlyCartPoleEasy-v0",
    "popgym-RepeatFirstEasy-v0",
    "popgym-RepeatPreviousEasy-v0",
    "popgym-VelocityOnlyCartpoleEasy-v0",
)


@gin.configurable
def popgym_games(env_ids: Sequence[str] = EASY_GAMES, truncated_is_done: bool = True) -> list[Entry]:
    """For `make_train_env`: these games, which take turns and share their spaces (see `share_spaces`).

    truncated_is_done: see `make_popgym`. Raises ModuleNotFoundError without the package popgym, ValueError for a game
    whose actions cannot be counted.
    Source: "multi-domain POPGym" of Grigsby et al. 2024, AMAGO-2, arXiv 2411.11188.
    """
    if not env_ids:
        raise ValueError(f"popgym_games.env_ids={list(env_ids)!r}: it must name at least one game")
    require("popgym", EXTRA)
    return share_spaces(
        [(make_popgym, {"env_id": env_id, "truncated_is_done": truncated_is_done}) for env_id in env_ids]
    )


@gin.configurable
def make_popgym(
    env_id: str = "popgym-RepeatPreviousEasy-v0", truncated_is_done: bool = True, timer: bool = False, **kwargs: Any
) -> gym.Env:
    """One game of POPGym by its gymnasium id.

    truncated_is_done: a game that is over because its turns are used up terminates, as in the paper, whose version had
        no truncation yet, and as in AMAGO; False leaves the truncation, from whose last state values go on.
    timer: observations become a Dict of the game's own, "obs", and of "time", the part of its turns that are used up. A
        value that ends with them depends on their number, which a GRU would have to learn to count; AMAGO had one.
    kwargs: as for `gymnasium.make`.

    Raises ModuleNotFoundError without the package popgym, ValueError for the timer of a game without a number of turns.
    Source: Morad et al. 2023, arXiv 2303.01859.
    """
    require("popgym", EXTRA)
    check_flag("truncated_is_done", truncated_is_done)
    # gymnasium's checker objects to the one `info` that some games return at every step, which nobody changes here.
    game = gym.make(env_id, **{"disable_env_checker": True, **kwargs})
    if check_flag("timer", timer):
        game = TimeAwareObservation(TimeLimit(game, _turns(game)), flatten=False, normalize_time=True)
    return DeadlineTerminates(game) if truncated_is_done else game


def _turns(game: gym.Env) -> int:
    """After how many turns `game` is over."""
    for name in ("max_episode_length", "episode_length"):
        if hasattr(game.unwrapped, name):
            return int(getattr(game.unwrapped, name))
    raise ValueError(f"make_popgym.timer=True: {game} has no number of turns; leave it out")
