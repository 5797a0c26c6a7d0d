"""Offline: learn CartPole from recorded rollouts alone, and do better than those who made them.

    python examples/offline.py [--rollouts 150] [--epochs 20]

A hand-written controller is recorded with half of its actions replaced by random ones. Nothing is collected afterwards.
"""

import argparse

import gymnasium as gym
import numpy as np

from amago_ray import Experiment, config
from amago_ray.replay.datasets import Episode
from amago_ray.replay.readers import EpisodeDataset


def record(rollouts: int, random_fraction: float = 0.5) -> list[Episode]:
    """What an `Episode` is: T actions and rewards, T + 1 observations, and whether the end was terminal."""
    env, rng, episodes = gym.make("CartPole-v1"), np.random.default_rng(0), []
    for i in range(rollouts):
        observations, actions, rewards, over = [env.reset(seed=i)[0]], [], [], False
        while not over:
            _, _, angle, angular_velocity = observations[-1]
            action = int(angle + 0.5 * angular_velocity > 0)
            if rng.random() < random_fraction:
                action = int(rng.integers(2))
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
            over = terminated or truncated
        episodes.append(Episode(observations, actions, rewards, terminated, env_name="CartPole-v1"))
    return episodes


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args(arguments)
    episodes = record(options.rollouts)
    recorded = float(np.mean([sum(episode.rewards) for episode in episodes]))
    # The algorithm's settings are those of the configuration that learns from a Minari data set; the data are ours.
    config.load(["offline_minari"], [f"Experiment.epochs = {options.epochs}", "Experiment.run_name = 'offline'"])
    with Experiment(dataset=EpisodeDataset(episodes)) as experiment:
        experiment.learn()
        results = experiment.evaluate_test("CartPole-v1", episodes=50)
    learned = results["Average Total Return in CartPole-v1"]
    print(f"mean return of the {len(episodes)} recorded rollouts: {recorded:.0f}, of the learned policy: {learned:.0f}")
    return recorded, learned


if __name__ == "__main__":
    main()
