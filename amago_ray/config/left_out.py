"""What a run's config.txt names and has no value of: it was given in Python, and gin has no text for it.

A default in its place would be another run, or another network whose weights have the same shapes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import gin

from amago_ray.config.registry import parameters_of

logger = logging.getLogger("amago_ray")
COMMENT = re.compile(r"^# Experiment\.(\w+) was given in Python: (.*)$", re.MULTILINE)
ENVIRONMENTS = ("make_train_env", "make_val_env")
ONLOOKERS = ("callbacks",)  # a run is the same without them


@dataclass(frozen=True)
class GivenInPython:
    """Stands in gin for such a setting, until it is given again. text: how Python prints it. source: the file."""

    text: str
    source: str


def stand_in(text: str, source: str, bound: Collection[str]) -> None:
    """Bind what the comments of a config.txt name, unless the file binds it as well: then that value is what was used.

    Validation environments that are those of training, for want of others, follow them.
    """
    found = dict(COMMENT.findall(text))
    if found.get("make_val_env") == found.get("make_train_env"):
        found.pop("make_val_env", None)
    for name, given in found.items():
        if f"Experiment.{name}" not in bound and name in parameters_of("Experiment"):
            gin.bind_parameter(f"Experiment.{name}", GivenInPython(given, source))


def left_out() -> dict[str, GivenInPython]:
    """Setting of `Experiment` -> what stands for it, of those that nothing has given again."""
    return {name: value for values in _bound() for name, value in values.items() if isinstance(value, GivenInPython)}


def do_without(names: Iterable[str]) -> None:
    """Let those of these settings that are left out have their defaults: nothing depends on them."""
    for name in left_out().keys() & set(names):
        for values in _bound():
            values.pop(name, None)


def refuse_left_out(settings: Any) -> None:
    """Of an experiment that is made: without callbacks where those are left out, and a line says so.

    Raises ValueError for other settings that are.
    """
    known = {one.name: one for one in fields(settings)}
    found = {name: value for name in known if isinstance(value := getattr(settings, name), GivenInPython)}
    for name in ONLOOKERS:
        if name in found and known[name].default is not MISSING:
            logger.warning(f"Experiment.{name} is left out: {found[name].source} has no text for what Python gave it")
            setattr(settings, name, known[name].default)
    refuse(found)


def refuse(found: Mapping[str, GivenInPython], env_option: bool = False) -> None:
    """Raises ValueError, in one line that says what helps, where more than onlookers is left out.

    env_option: whether there is a --env that names environments.
    """
    found = {name: given for name, given in found.items() if name not in ONLOOKERS}
    if not found:
        return
    source = next(iter(found.values())).source
    named = " and ".join(f"Experiment.{name} ({_short(given.text)})" for name, given in found.items())
    environments, others = ([name for name in found if (name in ENVIRONMENTS) == kind] for kind in (True, False))
    advice = ["--env NAME, an id of gymnasium"] if environments and env_option else []
    if environments and not env_option:
        advice.append(f"--set \"Experiment.{environments[0]} = 'NAME'\", an id of gymnasium.register")
    if others:
        call = "()" if others[0] == "dataset" else ""
        advice.append(f"--set 'Experiment.{others[0]} = @NAME{call}', of what has @gin.configurable")
    were, they = ("was", "it") if len(found) == 1 else ("were", "them")
    raise ValueError(
        f"{source} does not say what {named} {were}, because Python gave {they} and gin has no name for {they}: give "
        f"{they} again ({'; '.join(advice)}), or use the script that made the run"
    )


def _bound() -> list[dict[str, Any]]:
    """What gin holds for `Experiment`; it has no public way to take something out."""
    return [values for (_, name), values in gin.config._CONFIG.items() if name.rpartition(".")[2] == "Experiment"]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
