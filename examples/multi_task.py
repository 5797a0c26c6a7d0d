"""Multi-task: one agent for T-mazes of three lengths, whose rewards differ by a factor of 100.

    python examples/multi_task.py [--epochs 40]

`MultiTaskAgent` classifies returns into bins and only clones what its critics approve of, so that no task's loss is
lost beside another's. Metrics are logged for each task by its name.
"""

import argparse
from functools import partial

import gymnasium as gym

from amago_ray import Experiment, config
from amago_ray.agent import MultiTaskAgent
from amago_ray.envs import AMAGOEnv
from amago_ray.envs.builtin import TMaze
from amago_ray.nets.traj_encoders import GRUTrajEncoder

SCALES = {4: 1.0, 7: 10.0, 10: 100.0}  # corridor -> what the right turn earns


def make_task(length: int) -> gym.Env:
    maze = TMaze(corridor_length=length)
    scaled = gym.wrappers.TransformReward(maze, lambda reward: SCALES[length] * reward)
    return AMAGOEnv(scaled, f"corridor of {length}")


def main(arguments: list[str] | None = None) -> dict[int, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args(arguments)
    config.load(["models/gru"], ["EpsilonGreedy.steps_anneal = 2000", "Agent.reward_multiplier = 1.0"])
    tasks = [partial(make_task, length) for length in SCALES]  # they take turns, from rollout to rollout
    with Experiment(
        run_name="multi_task",
        make_train_env=tasks,
        agent_type=MultiTaskAgent,
        traj_encoder_type=GRUTrajEncoder,
        max_seq_len=11,
        epochs=options.epochs,
        parallel_actors=12,
        train_timesteps_per_epoch=150,
        train_batches_per_epoch=60,
        learning_rate=1e-3,
        lr_warmup_steps=50,
        sample_actions_val=False,
    ) as experiment:
        experiment.learn()
        results = experiment.evaluate_test(tasks, episodes=150)
    returns = {length: results[f"Average Total Return in corridor of {length}"] for length in SCALES}
    for length, scale in SCALES.items():
        print(f"corridor of {length:2}: mean return {returns[length]:7.2f} of {scale:g}")
    return returns


if __name__ == "__main__":
    main()
