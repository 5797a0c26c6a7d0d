"""`amago-ray inspect`: one rollout of a saved policy, step by step, as lines of JSON that the board shows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from amago_ray.commands.command_line import (
    OF_TRAINING,
    WITHOUT_DATA,
    Mistake,
    Parser,
    check_drawing,
    check_kept,
    check_seed,
    environment_bindings,
    in_one_line,
    latest_weights,
    load_experiment,
    override_options,
    own_output,
)
from amago_ray.watch.metrics import finite_json
from amago_ray.watch.run_status import config_of

DESCRIPTION = """\
play one rollout of a saved policy and print what it saw, thought and did: a line of JSON per step, as it is played

Pictures are PNGs in base 64. Values are in units of reward, one per discount factor. What the environment prints goes
to standard error. `amago-ray board` shows it as a page.

examples:
  amago-ray inspect runs/tmaze | jq -c '[.t, .action, .reward, .value]'
  amago-ray inspect runs/tmaze --epoch 20 --seed 3 --greedy > rollout.jsonl
"""


def run(arguments: Sequence[str]) -> int:
    """Play and print one rollout."""
    options = _parser().parse_args(arguments)
    check_seed(options.seed)
    if options.max_steps < 1:
        raise Mistake(f"--max-steps {options.max_steps}: it must be 1 or more")
    check_drawing(options.temperature, options.greedy)
    with in_one_line(), own_output() as out:
        config = config_of(options.run)
        bindings = [*WITHOUT_DATA, *options.set, *environment_bindings(options.env)]
        experiment = load_experiment([config], bindings, OF_TRAINING, env_option=True)
        from amago_ray.driver.plan import TEST_SEEDS
        from amago_ray.rollout.acting import AGENT_SETTINGS, load_agent
        from amago_ray.rollout.inspection import ThinkingPolicy, inspect_rollout

        check_kept(options.run, options.epoch)
        weights = latest_weights(options.run.resolve(), options.epoch)
        agent, spaces = load_agent(weights, settings={name: getattr(experiment, name) for name in AGENT_SETTINGS})
        sample = not options.greedy
        policy = ThinkingPolicy(agent, spaces, sample=sample, temperature=options.temperature, seed=options.seed)
        for line in inspect_rollout(policy, experiment.make_val_env, options.seed + TEST_SEEDS, options.max_steps):
            out.write(json.dumps(finite_json(line), allow_nan=False) + "\n")
            out.flush()  # whoever reads along sees a step when it is played
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="amago-ray inspect",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[override_options()],
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, such as runs/tmaze")
    parser.add_argument(
        "--epoch", type=int, metavar="N", help="weights of that epoch, counted from 0; by default the latest"
    )
    parser.add_argument("--env", help="gymnasium id or gin name; by default the run's first validation environment")
    parser.add_argument("--seed", type=int, default=0, help="of the environment and of drawn actions (default 0)")
    parser.add_argument("--greedy", action="store_true", help="take the policy's mode instead of drawing from it")
    parser.add_argument(
        "--temperature", type=float, help="of drawn actions: sharper below 1; by default the run's Agent.temperature"
    )
    parser.add_argument("--max-steps", type=int, default=1000, metavar="N", help="end it after this many (1000)")
    return parser
