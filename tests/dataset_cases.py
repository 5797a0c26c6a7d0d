"""What the tests of datasets share: Minari datasets made here, and a test of distributions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from amago_ray.replay.datasets.dataset import Episode


def play(env: gym.Env, act: Callable[[Any], Any], rollouts: int) -> list[Episode]:
    """Rollouts of `act`, which takes an observation, seeded with their numbers."""
    played = []
    for i in range(rollouts):
        observation, _ = env.reset(seed=i)
        observations, actions, rewards, terminated, truncated = [observation], [], [], False, False
        while not (terminated or truncated):
            actions.append(act(observations[-1]))
            observation, reward, terminated, truncated, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
        played.append(Episode(observations, np.array(actions), rewards, terminated))
    return played


def write_minari(env: gym.Env, episodes: list[Episode], dataset_id: str) -> None:
    """Make a Minari dataset of the episodes, in the folder that MINARI_DATASETS_PATH names."""
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for i, e in enumerate(episodes):
        last = np.arange(len(e.rewards)) == len(e.rewards) - 1
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=stacked(env.observation_space, e.observations),
                actions=list(e.actions),
                rewards=e.rewards,
                terminations=(last & e.terminated).tolist(),
                truncations=(last & (not e.terminated)).tolist(),
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each fact about the dataset that is not given
        minari.create_dataset_from_buffers(
            dataset_id, buffers, env=env.spec, observation_space=env.observation_space, action_space=env.action_space
        )


def stacked(space: gym.Space, values: list[Any]) -> Any:
    """Observations as the structure of their space, with a leading axis on every array."""
    if isinstance(space, gym.spaces.Dict):
        return {key: stacked(part, [value[key] for value in values]) for key, part in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(stacked(part, [value[i] for value in values]) for i, part in enumerate(space.spaces))
    return [np.asarray(value) for value in values]


def assert_distribution(counts: Mapping[int, int], weights: Mapping[int, float]) -> None:
    """Chi-square: the counts are those of draws in proportion to the weights (five standard deviations)."""
    assert set(counts) == set(weights), "everything that has a weight was drawn, and nothing besides"
    total = sum(weights.values())
    expected = {name: sum(counts.values()) * weight / total for name, weight in weights.items()}
    assert min(expected.values()) >= 20, "too few draws for the test to mean anything"
    statistic = sum((counts[name] - n) ** 2 / n for name, n in expected.items())
    df = len(weights) - 1
    assert statistic < df + 5 * np.sqrt(2 * df), f"chi-square {statistic:.1f} with {df} degrees of freedom"
