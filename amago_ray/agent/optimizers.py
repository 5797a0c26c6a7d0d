"""The optimiser of an agent: AdamW, AdamW on local time, or any other of PyTorch's kind."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import gin
import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

OptimizerType = Callable[..., torch.optim.Optimizer]


@gin.configurable
class AdamWRel(torch.optim.AdamW):
    """AdamW on local time: its step count starts again at 0 every `reset_interval` updates (Ellis et al. 2024).

    (Adam on Local Time, arXiv 2412.17113.) Moments are kept; only their bias correction starts again, which makes the
    steps after a reset smaller, as they are at the start of training: an update is m / (1 - beta1^t) over
    sqrt(v / (1 - beta2^t)), with t counted from the last reset. It suits targets that jump, as they do when a policy
    or a target network changes.

    The other arguments are those of `torch.optim.AdamW`; `fused` and `foreach` work as they do there. Raises ValueError
    where reset_interval is not given, or below 1.
    """

    def __init__(
        self,
        params: ParamsT,
        reset_interval: int | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        fused: bool | None = None,
    ):
        if not isinstance(reset_interval, int) or reset_interval < 1:
            raise ValueError(f"AdamWRel.reset_interval={reset_interval!r}: it must be 1 or more updates")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, fused=fused)
        self.defaults.update(reset_interval=reset_interval, updates_since_reset=0)
        self._count_from_where_it_stands()

    def _count_from_where_it_stands(self) -> None:
        # In the groups, so that a state dict carries it: where in its interval a run was saved is where it goes on.
        for group in self.param_groups:
            group.setdefault("updates_since_reset", 0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._count_from_where_it_stands()

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            if group["updates_since_reset"] >= self.defaults["reset_interval"]:
                for parameter in group["params"]:
                    if "step" in self.state[parameter]:
                        self.state[parameter]["step"].zero_()
                group["updates_since_reset"] = 0
            group["updates_since_reset"] += 1
        return super().step(closure)


def build_optimizer(
    optimizer_type: OptimizerType | None, params: Iterable[Tensor], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser of a learner; AdamW where no type is given. It is fused where it knows how to be.

    Raises TypeError, naming the setting, for what cannot be called with `lr` and `weight_decay` or makes no optimiser.
    """
    make: OptimizerType = torch.optim.AdamW if optimizer_type is None else optimizer_type
    fused = {"fused": True} if "fused" in inspect.signature(make).parameters else {}
    try:
        optimizer = make(list(params), lr=lr, weight_decay=weight_decay, **fused)
    except TypeError as error:
        raise TypeError(f"Agent.optimizer_type={make!r} must take lr and weight_decay: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"Agent.optimizer_type={make!r}: it must make a torch.optim.Optimizer, not {optimizer!r}")
    return optimizer


def configured_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Of each group, what a constructor takes. What else there is in a group is how far it has come."""
    kinds: Any = type(optimizer).__mro__
    names = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters} | {"lr", "weight_decay"}
    return [
        {name: value for name, value in group.items() if name in names - {"params"}} for group in optimizer.param_groups
    ]


def going_on(optimizer: torch.optim.Optimizer, saved: dict[str, Any], options: list[dict[str, Any]]) -> dict[str, Any]:
    """A state dict for `optimizer`: what one of a run had of each weight, by the `configured_options` of now.

    AMSGrad that is switched on begins with the moments there are. Raises ValueError, naming the setting, where the run
    had an optimiser of another kind.
    """
    groups, kind = saved["param_groups"], f"Agent.optimizer_type={type(optimizer).__name__}"
    back = "set it back, or begin from the weights alone (--init-from) under another run_name"
    if len(groups) != len(options):
        raise ValueError(f"resume: {kind} has {len(options)} groups, and had {len(groups)} in the run; {back}")
    state = {weight: dict(kept) for weight, kept in saved["state"].items()}
    if any(group.get("amsgrad") for group in options):
        for kept in state.values():
            if "exp_avg_sq" in kept:
                kept.setdefault("max_exp_avg_sq", kept["exp_avg_sq"].clone())
    needed = _kept_of_a_weight(optimizer)
    for kept in filter(None, state.values()):
        if lacks := sorted(needed - kept.keys()):
            raise ValueError(
                f"resume: {kind} keeps {', '.join(lacks)} of each weight, and the optimiser of the run kept "
                f"{', '.join(sorted(kept))}; {back}"
            )
    merged = [group | now for group, now in zip(groups, options, strict=True)]
    return saved | {"state": state, "param_groups": merged}


def _kept_of_a_weight(optimizer: torch.optim.Optimizer) -> set[str]:
    """The names of what it keeps, by a step of one like it over a single number; none where that cannot be told."""
    first = optimizer.param_groups[0]
    number = torch.nn.Parameter(torch.zeros_like(first["params"][0].detach().reshape(-1)[:1]))
    number.grad = torch.zeros_like(number)
    try:
        like = copy.copy(optimizer)
        like.param_groups, like.state = [{**first, "params": [number]}], defaultdict(dict)
        like.step()
    except Exception:  # of an optimiser of one's own that needs more
        return set()
    return set(like.state[number])
