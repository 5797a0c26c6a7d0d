"""POPGym itself: all its games pass the check of an experiment, and those of one run share spaces."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import popgym  # noqa: F401 (registers its ids)
import pytest

from amago_ray.envs.makers import check_env, tasks_of
from amago_ray.envs.suites.popgym import EASY_GAMES, make_popgym, popgym_games

IDS = sorted(name for name in gym.registry if name.startswith("popgym-"))


def test_all_games_are_tried() -> None:
    kinds = {name.removeprefix("popgym-").removesuffix("-v0") for name in IDS}
    assert kinds == {
        game + level
        for game in (
            *("Autoencode", "Battleship", "Concentration", "CountRecall", "HigherLower", "MineSweeper"),
            *(
                "LabyrinthEscape",
                "LabyrinthExplore",
                "MultiarmedBandit",
                "NoisyPositionOnlyCartPole",
                "NoisyPositionOnlyPendulum",
                "PositionOnlyCartPole",
            ),
            *("PositionOnlyPendulum", "RepeatFirst", "RepeatPrevious", "VelocityOnlyCartpole"),
        )
        for level in ("Easy", "Medium", "Hard")
    }


@pytest.mark.parametrize("env_id", IDS)
def test_a_game_runs_as_it_comes(env_id: str) -> None:
    obs_spec, action_spec, name = check_env((make_popgym, {"env_id": env_id}), num_steps=30)
    assert name == env_id
    env = make_popgym(env_id)
    assert sum(spec.num_features for spec in obs_spec.values()) == gym.spaces.flatdim(env.observation_space)
    assert action_spec.vector_size == gym.spaces.flatdim(env.action_space)


@pytest.mark.parametrize(
    ("settings", "ends"),
    [({}, (True, False)), ({"truncated_is_done": True}, (True, False)), ({"truncated_is_done": False}, (False, True))],
)
def test_a_game_whose_turns_are_used_up(settings: dict[str, bool], ends: tuple[bool, bool]) -> None:
    """14 turns, as many as there are squares without a mine."""
    env = make_popgym("popgym-MineSweeperEasy-v0", **settings)
    env.reset(seed=0)
    board = env.unwrapped.hidden_grid  # type: ignore[attr-defined]
    free = np.argwhere(board == 0)[0]
    steps = [env.step(free) for _ in range(14)]
    assert [step[2] or step[3] for step in steps] == [False] * 13 + [True]
    assert steps[-1][2:4] == ends


def test_a_timer_tells_the_part_of_the_turns_that_are_used_up() -> None:
    env = make_popgym("popgym-MineSweeperEasy-v0", timer=True)
    observation, _ = env.reset(seed=0)
    times = [observation["time"].item()]
    free = np.argwhere(env.unwrapped.hidden_grid == 0)[0]  # type: ignore[attr-defined]
    over = False
    while not over:
        observation, _, over, _, _ = env.step(free)
        times.append(observation["time"].item())
    assert times == pytest.approx([turn / 14 for turn in range(15)])
    with pytest.raises(ValueError, match="make_popgym.timer=True: .*HigherLower.* has no number of turns"):
        make_popgym("popgym-HigherLowerEasy-v0", timer=True)


@pytest.mark.parametrize("env_id", [name for name in IDS if name.endswith("Easy-v0")])
def test_every_game_ends_by_terminating(env_id: str) -> None:
    env = make_popgym(env_id)
    env.reset(seed=0)
    env.action_space.seed(0)
    over = False
    while not over:
        *_, over, truncated, _ = env.step(env.action_space.sample())
        assert not truncated


def test_easy_games_in_one_run() -> None:
    games = popgym_games()
    assert tasks_of(games).labels == ("",) * len(EASY_GAMES)
    obs_spec, action_spec, name = check_env(games, action_mask_key="legal")
    assert (obs_spec["observation"].shape, action_spec.nvec, name) == ((156,), (64,), EASY_GAMES[0])


def test_no_games() -> None:
    with pytest.raises(ValueError, match=r"popgym_games.env_ids=\[\]: it must name at least one game"):
        popgym_games([])
