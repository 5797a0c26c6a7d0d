"""`amago-ray export`: a policy as one file that acts where this package is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from amago_ray.commands.command_line import Mistake, Parser, check_kept, check_writable, in_one_line

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def run(arguments: Sequence[str]) -> int:
    """Write a run's policy, with its memory as inputs and outputs, once the file acts as the policy does."""
    parser = Parser(
        prog="amago-ray export",
        description="a policy as one file that acts, by its mode, where amago_ray is not installed",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a file of policy weights in it")
    parser.add_argument(
        "--format", choices=tuple(SUFFIXES), default="onnx", help="for onnxruntime and others, or for torch.export.load"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="by default policy.onnx or policy.pt2 in the run")
    parser.add_argument("--epoch", type=int, help="weights of that epoch, counted from 0; by default the latest")
    options = parser.parse_args(arguments)
    from amago_ray.rollout.acting import OnlyInPython, load_policy
    from amago_ray.rollout.portable import CHECKED_ENVS, CHECKED_STEPS, export_policy

    if (options.run / "config.txt").is_file():
        check_kept(options.run, options.epoch)
    with in_one_line():
        try:
            policy = load_policy(options.run, epoch=options.epoch, sample=False)
        except OnlyInPython as error:
            raise Mistake(
                f"{error.what}: export it in Python, by amago_ray.rollout.portable.export_policy(load_policy("
                f"{str(options.run)!r}, {error.argument}), FILE, {options.format!r})"
            ) from error
        folder = options.run if options.run.is_dir() else options.run.parent
        out = options.out or folder / f"policy{SUFFIXES[options.format]}"
        check_writable(out)
        worst = export_policy(policy, out, options.format)
    print(
        f"{out}: acts as the policy does over {CHECKED_STEPS} steps of {CHECKED_ENVS} environments "
        f"(largest difference {worst:.1g})"
    )
    return 0
