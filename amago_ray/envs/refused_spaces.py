"""What is said of spaces that are not supported."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


def observation_remedy(space: gym.Space) -> str:
    """How to get rid of an observation space that is not supported."""
    match space:
        case gym.Space() if space.dtype == np.dtype(str):  # MiniGrid's missions are no spaces.Text
            return (
                "turn the text into tokens with amago_ray.envs.suites.minigrid.MissionTokens(env, max_words, words) "
                "(MiniGrid as a whole: amago_ray.envs.suites.make_minigrid), or drop it with "
                "gymnasium.wrappers.FilterObservation(env, keys)"
            )
        case spaces.Sequence():
            return "pad it to a fixed length with gymnasium.wrappers.TransformObservation(env, func, space)"
        case spaces.Graph():
            return "pad nodes and edges into Boxes of a fixed size with gymnasium.wrappers.TransformObservation"
        case spaces.OneOf():
            return "write it as a Dict of a Discrete choice and every alternative, with a wrapper"
        case _:
            return "turn it into numbers with gymnasium.wrappers.TransformObservation(env, func, space)"


def action_remedy(space: gym.Space) -> str:
    """As `observation_remedy`, of actions."""
    match space:
        case spaces.Dict() | spaces.Tuple():
            remedy = "join its parts into one MultiDiscrete or Box"
        case spaces.Sequence() | spaces.Graph():
            remedy = "pad it to a fixed size as one MultiDiscrete or Box"
        case _:
            remedy = "make it one of these"
    return f"{remedy} with gymnasium.wrappers.TransformAction(env, func, space)"


def described(space: Any) -> str:
    return f"{space} (of {type(space).__module__})"
