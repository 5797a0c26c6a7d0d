"""`amago-ray import-amago`: a run of policy weights that AMAGO 3.x saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from amago_ray.commands.command_line import (
    Parser,
    bindings_of,
    in_one_line,
    latest_weights,
    load_experiment,
    settings_options,
    short_name_options,
)


def run(arguments: Sequence[str]) -> int:
    """Make a run of policy weights that AMAGO saved."""
    parser = Parser(
        prog="amago-ray import-amago",
        description="make a run of policy weights that AMAGO 3.x saved, to evaluate it or to train on from it; "
        "--config describes the same agent",
        parents=[settings_options(), short_name_options()],
    )
    parser.add_argument("weights", type=Path, metavar="FILE", help="policy_epoch_N.pt of AMAGO's ckpts/policy_weights")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run to make")
    options = parser.parse_args(arguments)
    import torch

    from amago_ray.agent.amago_weights import convert_amago_weights
    from amago_ray.agent.flat_weights import read_state_dict
    from amago_ray.atomic_files import write_atomically
    from amago_ray.driver.probe import check_data, probe
    from amago_ray.driver.resume import create_folder

    out = options.out
    folder = [f"Experiment.run_name = {out.name!r}", f"Experiment.ckpt_base_dir = {str(out.parent)!r}"]
    with in_one_line():
        if out.exists():
            raise ValueError(f"--out {out}: this exists already; name a folder to be made")
        experiment = load_experiment(options.config, [*bindings_of(options), *folder])
        agent = probe(experiment).build()
        agent.load_state_dict(convert_amago_weights(read_state_dict(options.weights), agent))
        create_folder(experiment, experiment.directory, check_data(experiment))
        directory = experiment.directory
        for path in (directory.latest_policy, directory.policy_epoch(0)):
            write_atomically(path, lambda temporary: torch.save(agent.state_dict(), temporary))
    print(
        f"{out} is made. To evaluate it, and to train on from it:\n"
        f"  amago-ray evaluate {out}\n"
        f"  amago-ray --config {out / 'config.txt'} --init-from {latest_weights(out)}"
    )
    return 0
