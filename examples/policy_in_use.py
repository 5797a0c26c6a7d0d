"""A policy in use: take it out of a run's folder and act with it, without Ray.

    python examples/policy_in_use.py runs/guess_the_number

It plays the game of custom_environment.py, which has to be trained first, and says what it guesses. The policy brings
its spaces along; the memory goes in and comes out.
"""

import argparse

from custom_environment import NOTHING, GuessTheNumber

from amago_ray import load_policy

ANSWERS = {NOTHING: "", 1: "higher", 2: "lower"}


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run's folder, or a file of weights in it")
    parser.add_argument("--rollouts", type=int, default=5)
    options = parser.parse_args(arguments)
    policy = load_policy(options.run, sample=False)  # its mode; sample=True draws, at a temperature
    env, found = GuessTheNumber(), 0.0
    for rollout in range(options.rollouts):
        obs, _ = env.reset(seed=0 if rollout == 0 else None)
        action, memory = policy.act(obs)  # no memory: a rollout begins
        said, over = [], False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            said.append(f"{action} ({'found' if reward else ANSWERS[obs]})")
            if not over:
                action, memory = policy.act(obs, memory, reward=reward)
        found += reward
        print(f"the number is {env.number}: {', '.join(said)}")
    return found / options.rollouts


if __name__ == "__main__":
    main()
