"""Records a Minari dataset of CartPole to try the offline configurations on, and says how good its rollouts are.

    python configs/record_cartpole.py [--rollouts 150] [--random 0.5]

A hand-written controller pushes against the pole's fall; a part of its actions is replaced by random ones. The dataset
goes to Minari's own folder (MINARI_DATASETS_PATH) as amago_ray/cartpole-v0.
"""

import argparse
import shutil
import warnings

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.storage import get_dataset_path

DATASET = "amago_ray/cartpole-v0"


def record(env: gym.Env, rollouts: int, random_fraction: float) -> list[EpisodeBuffer]:
    """Rollouts of the controller, seeded with their numbers."""
    rng, played = np.random.default_rng(0), []
    for i in range(rollouts):
        rollout, over = EpisodeBuffer(id=i, seed=i, observations=[env.reset(seed=i)[0]], actions=[]), False
        while not over:
            _, _, angle, angular_velocity = rollout.observations[-1]
            action = rng.integers(2) if rng.random() < random_fraction else int(angle + 0.5 * angular_velocity > 0)
            observation, reward, terminated, truncated, _ = env.step(int(action))
            rollout.observations.append(observation)
            rollout.actions.append(int(action))
            rollout.rewards.append(reward)
            rollout.terminations.append(terminated)
            rollout.truncations.append(truncated)
            over = terminated or truncated
        played.append(rollout)
    return played


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=150)
    parser.add_argument("--random", type=float, default=0.5, help="fraction of random actions")
    options = parser.parse_args()
    rollouts = record(gym.make("CartPole-v1"), options.rollouts, options.random)
    shutil.rmtree(get_dataset_path(DATASET), ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each fact about the dataset that is not given
        minari.create_dataset_from_buffers(DATASET, rollouts, env="CartPole-v1")
    returns = [sum(rollout.rewards) for rollout in rollouts]
    print(f"{DATASET}: {len(returns)} rollouts, mean return {np.mean(returns):.1f}, best {max(returns):.0f}")


if __name__ == "__main__":
    main()
