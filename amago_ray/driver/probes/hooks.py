"""While a user's agent computes its first loss, what its hooks return is held to the shapes that they promise.

A wrong shape often broadcasts: such an agent trains, and on something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch import Tensor, nn

from amago_ray.agent import Agent
from amago_ray.cuda_graphs import is_known
from amago_ray.driver.probes.inputs import is_own, kind_of

Sizes = dict[str, int]  # of the letters of a shape; any other letter stands for any size

HOOKS: dict[str, tuple[str, ...]] = {  # shapes of what they return, in the letters of `agent.actor_critic`
    "td_target": ("1NG",),
    "judge": ("1NCGO", "K1NCG1"),
    "critic_error": ("1NCG",),
    "advantage": ("1NG",),
    "filter_weight": ("1NG",),
    "dpg_objective": ("1NG",),
    "actor_objective": ("1NG",),
}
METRICS = 3  # the argument of `actor_objective` that metrics go into


@contextmanager
def checked_hooks(agent: Agent, num_rows: int) -> Iterator[None]:
    """Within it the hooks of a user's agent, and the values of a user's critics, raise ValueError for a wrong shape.

    num_rows: N, transitions of the batch.
    """
    sizes, name = {"1": 1, "N": num_rows, "G": len(agent.gammas)}, type(agent).__name__
    with ExitStack() as stack:
        if not is_known(agent):
            for hook, shapes in HOOKS.items():
                stack.enter_context(_returning(agent, hook, f"{name}.{hook}", shapes, sizes))
            stack.enter_context(_adding(agent, f"{name}.extra_loss"))
            stack.enter_context(_logging(agent, f"{name}.actor_objective", num_rows))
        for critics in (agent.critics, agent.target_critics):
            if is_own(critics):
                called = f"{type(critics).__name__}.values"
                stack.enter_context(_returning(critics, "values", called, ("K1NCGO",), {"G": sizes["G"]}))
        yield


@contextmanager
def _in_place_of(module: nn.Module, method: str, other: Callable[..., Any]) -> Iterator[None]:
    before = vars(module).get(method)
    setattr(module, method, other)
    try:
        yield
    finally:
        if before is None:
            delattr(module, method)
        else:
            setattr(module, method, before)


def _returning(module: nn.Module, method: str, called: str, shapes: Sequence[str], sizes: Sizes) -> Any:
    function = getattr(module, method)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        answer = function(*args, **kwargs)
        parts = answer if len(shapes) > 1 else (answer,)
        if not isinstance(parts, tuple) or len(parts) != len(shapes):
            raise ValueError(f"{called}: it returned a {type(answer).__name__}; it must return {len(shapes)} tensors")
        for part, shape in zip(parts, shapes, strict=True):
            _check_shape(called, part, shape, sizes)
        return answer

    return _in_place_of(module, method, checked)


def _adding(agent: Agent, called: str) -> Any:
    function = agent.extra_loss

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        answer = function(*args, **kwargs)
        if answer is not None and not isinstance(answer, Tensor):
            raise ValueError(
                f"{called}: it returned a {kind_of(answer)}; it must return a tensor, of one number, or None"
            )
        return answer

    return _in_place_of(agent, "extra_loss", checked)


def _logging(agent: Agent, called: str, num_rows: int) -> Any:
    function = agent.actor_objective

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Tensor:
        answer = function(*args, **kwargs)
        metrics = kwargs["metrics"] if "metrics" in kwargs else args[METRICS]
        for name, value in metrics.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{called}: its metric {name!r} is a {type(value).__name__}; it must be a tensor")
            if value.dim() and value.shape[:2] != (1, num_rows):
                raise ValueError(
                    f"{called}: its metric {name!r} is of shape {tuple(value.shape)}; it must be one number, or "
                    f"(B, L), here (1, {num_rows}), for its mean over real transitions"
                )
        return answer

    return _in_place_of(agent, "actor_objective", checked)


def _check_shape(called: str, answer: Any, shape: str, sizes: Sizes) -> None:
    if not isinstance(answer, Tensor):
        raise ValueError(f"{called}: it returned a {type(answer).__name__}; it must return a tensor")
    fits = all(size == sizes.get(letter, size) for size, letter in zip(answer.shape, shape, strict=False))
    if answer.dim() != len(shape) or not fits:
        known = ", ".join(f"{letter}={sizes[letter]}" for letter in shape if letter in sizes and letter != "1")
        raise ValueError(
            f"{called}: it returned shape {tuple(answer.shape)}; it must be ({', '.join(shape)}), with {known}"
        )
