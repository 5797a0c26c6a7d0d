"""What a hyperparameter sweep is: its settings, and its search space written as text."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import gin

from amago_ray.config import nearest, reject_unknown_arguments
from amago_ray.config.value_checks import LARGEST_SEED, whole_number
from amago_ray.config.value_types import plain

SchedulerName = Literal["fifo", "asha", "pbt"]
# What a trial gives its experiment itself, and what all trials share.
OF_THE_SWEEP = ("run_name", "ckpt_base_dir", "verbose", "ray_address")
# What "pbt" cannot change on the way: how long a trial is, and what its processes take, for which Tune finds room once.
FROM_THE_START_ON = (
    "epochs", "num_learners", "num_replay_shards", "num_rollout_workers", "learner_cpus", "learner_device",
    "rollout_device", "replay_capacity_gb",
)  # fmt: skip
# Names of `ray.tune` that a parameter may be drawn by, and how many arguments each takes at least.
DISTRIBUTIONS = {
    "uniform": 2,
    "quniform": 3,
    "loguniform": 2,
    "qloguniform": 3,
    "randn": 0,
    "randint": 2,
    "lograndint": 2,
    "choice": 1,
    "grid_search": 1,
}


@gin.configurable
@dataclass(frozen=True)
class Sweep:
    """Settings of `amago-ray tune`.

    params: name of a setting in gin -> how its values are drawn: "loguniform(0.9, 0.999)", "choice([16, 32])",
        "grid_search([0, 1, 2])" (every value), "uniform", "randint", ... (those of `ray.tune`). A value that begins
        with "@" is a configurable, as in gin.
    metric, mode: what trials are judged by, "max" or "min" of it: "val/return", "collect/return", or any name in
        `metrics.jsonl`.
    scheduler: "fifo" runs every trial to its end; "asha" stops those that are behind (arXiv 1810.05934); "pbt" lets
        those that are behind go on from a copy of one that is ahead, with changed parameters (arXiv 1711.09846).
    num_samples: how many trials, or how often the grid is gone through.
    max_concurrent: trials at a time; None for as many as there is room for.
    grace_epochs: "asha" stops no trial earlier; by default a ninth of the epochs. reduction_factor: of as many trials
        that come to a rung, it lets one go on.
    perturb_epochs: between two looks of "pbt", rounded up to whole val_intervals; by default a tenth of the epochs.
    synchronous: "pbt" compares trials when all have come to the same epoch, so that even those that take turns on one
        machine learn from one another; False compares with what the others last reported, and nobody waits.
    max_failures: how often a trial whose process dies is continued from its last checkpoint.
    seed: of the draws, from 0 to 2**32 - 1.
    """

    params: Mapping[str, str] = field(default_factory=dict)
    metric: str = "val/return"
    mode: Literal["max", "min"] = "max"
    scheduler: SchedulerName = "fifo"
    num_samples: int = 1
    max_concurrent: int | None = None
    grace_epochs: int | None = None
    reduction_factor: int = 3
    perturb_epochs: int | None = None
    synchronous: bool = True
    max_failures: int = 2
    seed: int = 0

    def __new__(cls, *args: Any, **settings: Any) -> Sweep:
        reject_unknown_arguments(cls.__init__, settings, "Sweep")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for one in fields(self):
            object.__setattr__(self, one.name, plain(getattr(self, one.name)))  # it is frozen
        _check_texts(self.params)
        if not self.params:
            raise ValueError("a sweep needs a parameter: --param 'Agent.gamma=loguniform(0.9, 0.999)', or Sweep.params")
        for name, value, choices in (
            ("mode", self.mode, ("max", "min")),
            ("scheduler", self.scheduler, get_args(SchedulerName)),
        ):
            if value not in choices:
                raise ValueError(f"Sweep.{name}={value!r}: use one of {', '.join(map(repr, choices))}")
        for name, least in (
            ("num_samples", 1), ("max_concurrent", 1), ("grace_epochs", 1), ("reduction_factor", 2),
            ("perturb_epochs", 1), ("max_failures", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            optional = name in ("max_concurrent", "grace_epochs", "perturb_epochs")
            if (value is None and optional) or (isinstance(value, int) and value >= least):
                continue
            raise ValueError(f"Sweep.{name}={value!r}: it must be an integer of {least} or more")
        if wrong := whole_number(0, maximum=LARGEST_SEED)(self.seed):
            raise ValueError(f"Sweep.seed={self.seed!r}: {wrong}")
        if self.scheduler == "pbt" and self.max_concurrent is not None and self.max_concurrent < self.num_samples:
            raise ValueError(
                f"Sweep.max_concurrent={self.max_concurrent}: scheduler 'pbt' compares all of its {self.num_samples} "
                "trials, and pauses those for which there is no room: leave it out"
            )
        for name, text in self.params.items():
            distribution, _ = parse(name, text)
            owner, _, setting = name.rpartition("/")[2].rpartition(".")
            of_experiment = owner.rpartition(".")[2] == "Experiment"
            if of_experiment and setting in OF_THE_SWEEP:
                raise ValueError(f"{name}={text}: the sweep sets it itself for every trial: vary another setting")
            if of_experiment and self.scheduler == "pbt" and setting in FROM_THE_START_ON:
                raise ValueError(
                    f"{name}={text}: scheduler 'pbt' changes parameters while trials run, which this one does not "
                    "allow: vary another setting, or take 'fifo' or 'asha'"
                )
            if self.scheduler == "pbt" and distribution == "grid_search":
                raise ValueError(
                    f"{name}={text}: scheduler 'pbt' changes parameters, which a grid does not allow: use choice"
                )


def _check_texts(params: Any) -> None:
    """Raises ValueError for parameters that are no texts by name."""
    example = "write {'Agent.gamma': 'loguniform(0.9, 0.999)'}, or --param 'Agent.gamma=loguniform(0.9, 0.999)'"
    if not isinstance(params, Mapping):
        raise ValueError(f"Sweep.params={params!r}: {example}")
    for name, text in params.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(f"Sweep.params[{name!r}]={text!r}: {example}")


def parse(name: str, text: str) -> tuple[str, Sequence[Any]]:
    """("loguniform", (0.9, 0.999)) of "loguniform(0.9, 0.999)". Raises ValueError, naming the parameter."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.keywords:
            raise ValueError("it is not a call of one of them with plain arguments")
        distribution = call.func.id
        if distribution not in DISTRIBUTIONS:
            raise ValueError(f"no distribution is named {distribution!r}{nearest(distribution, DISTRIBUTIONS)}")
        arguments = [_value_of(argument) for argument in call.args]
        if len(arguments) < DISTRIBUTIONS[distribution]:
            raise ValueError(f"{distribution} takes {DISTRIBUTIONS[distribution]} arguments or more")
        if distribution in ("choice", "grid_search") and not isinstance(arguments[0], (list, tuple)):
            raise ValueError(f"{distribution} takes one list of values")
        if distribution in ("choice", "grid_search") and not arguments[0]:
            raise ValueError(f"{distribution} takes a list with a value in it")
        return distribution, arguments
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"{name}={text}: {error if isinstance(error, ValueError) else 'this is no expression'}; write it like "
            f"'loguniform(0.9, 0.999)' or 'choice([16, 32])', with one of {', '.join(DISTRIBUTIONS)}"
        ) from error


def _value_of(argument: ast.expr) -> Any:
    try:
        return ast.literal_eval(argument)
    except ValueError:
        raise ValueError(f"{ast.unparse(argument)} is no value: put names and text in quotes") from None


def domain(name: str, text: str, tune: Any) -> Any:
    """The search space of a parameter, in the terms of `tune`, the module `ray.tune`.

    Raises ValueError, naming the parameter, for one that no value can be drawn from.
    """
    distribution, arguments = parse(name, text)
    make: Callable[..., Any] = getattr(tune, distribution)
    try:
        _check_range(distribution, arguments)
        values = make(*arguments)
        if not isinstance(values, dict):  # as a grid is
            drawn = values.sample()
            if isinstance(drawn, float) and not math.isfinite(drawn):
                raise ValueError(f"it draws {drawn}")
        return values
    except (TypeError, ValueError, AssertionError, ArithmeticError) as error:
        raise ValueError(f"{name}={text}: {' '.join(str(error).split())}") from error


def _check_range(distribution: str, arguments: Sequence[Any]) -> None:
    """Raises ValueError for bounds in the wrong order, and for steps that are none: Tune takes some of them."""
    if distribution in ("choice", "grid_search"):
        return
    for value in arguments:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{value!r} is no number")
    if DISTRIBUTIONS[distribution] >= 2 and not arguments[0] < arguments[1]:
        raise ValueError(f"{arguments[0]} is not below {arguments[1]}: write the lower bound first, then the upper one")
    if DISTRIBUTIONS[distribution] == 3 and not arguments[2] > 0:
        raise ValueError(f"values are rounded to multiples of {arguments[2]}, which must be above 0")


def binding(name: str, value: Any) -> str:
    """A line of gin that sets a parameter to a drawn value."""
    is_reference = isinstance(value, str) and value.startswith("@")
    plain = value.item() if hasattr(value, "item") else value  # NumPy's numbers do not read as Python's
    return f"{name} = {value if is_reference else repr(plain)}"


def split_param(argument: str) -> tuple[str, str]:
    """("Agent.gamma", "uniform(0.9, 0.99)") of "Agent.gamma=uniform(0.9, 0.99)". Raises ValueError."""
    name, equals, text = argument.partition("=")
    if not equals or not name.strip() or not text.strip():
        raise ValueError(f"--param {argument!r}: write NAME=DISTRIBUTION, such as 'Agent.gamma=loguniform(0.9, 0.999)'")
    return name.strip(), text.strip()
