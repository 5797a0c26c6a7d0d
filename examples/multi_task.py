"""Multi-task: one agent for three tasks whose rewards differ by a factor of 100.

    python examples/multi_task.py [--epochs 40]

A number is seen once and has to be said after 2, 4 or 6 steps; saying it earns 1, 10 or 100. `MultiTaskAgent`
classifies returns into bins and only clones what its critics approve of, so that no task's loss is lost beside
another's. Metrics are logged for each task by its name.
"""

import argparse
from functools import partial

import gymnasium as gym

from amago_ray import Experiment, config
from amago_ray.agent import MultiTaskAgent
from amago_ray.envs import AMAGOEnv
from amago_ray.nets.traj_encoders import GRUTrajEncoder

TASKS = {2: 1.0, 4: 10.0, 6: 100.0}  # delay -> what the right answer earns


class Recall(gym.Env):
    observation_space = gym.spaces.Discrete(4)  # 0, 1, 2, or 3 for "nothing to see"
    action_space = gym.spaces.Discrete(3)

    def __init__(self, delay: int, prize: float):
        self.delay, self.prize = delay, prize

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.time = int(self.np_random.integers(3)), 0
        return self.number, {}

    def step(self, action):
        self.time += 1
        over = self.time == self.delay
        return 3, self.prize * float(over and action == self.number), over, False, {}


def make_task(delay: int) -> gym.Env:
    return AMAGOEnv(Recall(delay, TASKS[delay]), f"delay of {delay}")


def main(arguments: list[str] | None = None) -> dict[int, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args(arguments)
    config.load(
        ["models/gru"],  # and then smaller
        [
            *(f"{name}.d_hidden = 64" for name in ("FFTstepEncoder", "GRUTrajEncoder", "Actor", "NCriticsTwoHot")),
            *(f"{name}.d_output = 64" for name in ("FFTstepEncoder", "GRUTrajEncoder")),
            "Agent.gamma = 0.98",
            "Agent.reward_multiplier = 1.0",
            "Agent.n_step = 3",
            "Agent.tau = 0.02",
            "EpsilonGreedy.steps_anneal = 1000",
            "Multigammas.discrete = [0.9]",
            "NCriticsTwoHot.min_return = -110.0",  # the bins' range: that of all tasks together
            "NCriticsTwoHot.max_return = 110.0",
        ],
    )
    tasks = [partial(make_task, delay) for delay in TASKS]  # they take turns, from rollout to rollout
    with Experiment(
        run_name="multi_task",
        make_train_env=tasks,
        agent_type=MultiTaskAgent,
        traj_encoder_type=GRUTrajEncoder,
        max_seq_len=6,
        epochs=options.epochs,
        parallel_actors=12,
        train_timesteps_per_epoch=100,
        train_batches_per_epoch=60,
        learning_rate=1e-3,
        lr_warmup_steps=50,
        sample_actions_val=False,
    ) as experiment:
        experiment.learn()
        results = experiment.evaluate_test(tasks, episodes=150)
    returns = {delay: results[f"Average Total Return in delay of {delay}"] for delay in TASKS}
    for delay, prize in TASKS.items():
        print(f"delay of {delay}: mean return {returns[delay]:6.2f} of {prize:g}")
    return returns


if __name__ == "__main__":
    main()
