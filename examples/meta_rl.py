"""Meta-RL: learn to learn a new frozen lake within one rollout, from a configuration that comes along.

    python examples/meta_rl.py [--epochs 60]

The lake is another one in every rollout, and the agent has five attempts on it. What it learns in training is how to
find out; what it finds out, it remembers.
"""

import argparse

from amago_ray import Experiment, config
from amago_ray.envs.builtin import MetaFrozenLake


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args(arguments)
    config.load(["meta_frozen_lake"], [f"Experiment.epochs = {options.epochs}", "Experiment.run_name = 'meta_rl'"])
    with Experiment() as experiment:  # the configuration has all that it needs
        experiment.learn()
        results = experiment.evaluate_test(MetaFrozenLake, episodes=100)
    name = MetaFrozenLake().env_name  # metrics are grouped by it
    success = [results[f"Average Attempt {attempt} Success in {name}"] for attempt in range(1, 6)]
    for attempt, fraction in enumerate(success, 1):
        print(f"attempt {attempt} on a new lake: {fraction:.0%} get across")
    return success


if __name__ == "__main__":
    main()
