"""An environment of one's own, in which memory pays: find a hidden number in three guesses.

    python examples/custom_environment.py [--epochs 30]

An answer says "higher" or "lower". Who remembers all of them finds one number of seven in three guesses, by halving;
who guesses at random finds it in three of seven rollouts.
"""

import argparse

import gymnasium as gym

from amago_ray import Experiment, config
from amago_ray.nets.traj_encoders import GRUTrajEncoder

NOTHING, HIGHER, LOWER = range(3)


class GuessTheNumber(gym.Env):
    """Reward 1 for the number, which ends the rollout; else the third wrong guess ends it."""

    observation_space = gym.spaces.Discrete(3)
    action_space = gym.spaces.Discrete(7)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)  # seeds self.np_random
        self.number, self.guesses = int(self.np_random.integers(7)), 0
        return NOTHING, {}

    def step(self, action):
        self.guesses += 1
        found = bool(action == self.number)
        over = found or self.guesses == 3
        info = {"AMAGO_LOG_METRIC Guesses": self.guesses} if over else {}  # averaged and logged
        return HIGHER if action < self.number else LOWER, float(found), over, False, info


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args(arguments)
    # Settings of agents, encoders and heads are bound; those of `Experiment` may be arguments.
    config.bind(
        {
            "FFTstepEncoder.d_hidden": 64,
            "FFTstepEncoder.d_output": 64,
            "GRUTrajEncoder.d_hidden": 64,
            "GRUTrajEncoder.d_output": 64,
            "GRUTrajEncoder.n_layers": 1,
            "Actor.d_hidden": 64,
            "NCritics.d_hidden": 64,
            "Multigammas.discrete": (0.8,),
            "Agent.gamma": 0.95,
            "Agent.tau": 0.01,
            "EpsilonGreedy.steps_anneal": 500,
        }
    )
    with Experiment(
        run_name="guess_the_number",
        make_train_env=GuessTheNumber,
        max_seq_len=3,  # a whole rollout
        traj_encoder_type=GRUTrajEncoder,
        epochs=options.epochs,
        parallel_actors=16,
        train_timesteps_per_epoch=40,
        train_batches_per_epoch=60,
        batch_size=64,
        learning_rate=1e-3,
        lr_warmup_steps=50,
        sample_actions_val=False,
    ) as experiment:
        experiment.learn()
        results = experiment.evaluate_test(GuessTheNumber, episodes=200)
    found = results["Average Total Return in GuessTheNumber"]
    print(f"found in {found:.0%} of 200 rollouts, after {results['Average Guesses in GuessTheNumber']:.2f} guesses")
    print("guessing at random: 43%")
    return found


if __name__ == "__main__":
    main()
