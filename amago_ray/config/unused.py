"""What a configuration says and nothing takes: macros that no %name stands for, scopes that no reference has.

gin takes both in silence. A macro is what a setting becomes whose class was forgotten, `batch_size = 64`. And the other
way round: %names that no macro has, of which gin says something only when it hands them over, in four lines.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import gin

from amago_ray.config.mistakes import MACRO, closest, nearest, no_macro
from amago_ray.config.registry import parameters_of, registry
from amago_ray.config.text import DRIVER_CONFIGURABLES

logger = logging.getLogger("amago_ray")
CONSTANT = "gin.constant"


@dataclass
class Given:
    """What was bound of macros and scopes: name or scope -> (the statement, its file and line or "" of a single one).

    own_code: a module that is not this package's was imported, which may enter scopes itself.
    """

    macros: dict[str, tuple[str, str]] = field(default_factory=dict)
    scopes: dict[str, tuple[str, str]] = field(default_factory=dict)
    own_code: bool = False

    def check(self) -> None:
        """Raises ValueError for single bindings that set nothing. Those in files may be meant for others: a warning."""
        _reject_endless_macros()
        macros, parts = _macros_in_use(), _parts_of_scopes_in_use()
        for name, (statement, place) in self.macros.items():
            if name not in macros:
                answer = f"{statement} sets nothing: no %{name} stands for it anywhere{_setting_called(name)}"
                _answer(answer, place, refuse=not place)
        for scope, (statement, place) in self.scopes.items():
            if not set(scope.split("/")) <= parts:
                near = nearest(scope, parts) if parts else ""
                answer = f"{statement} sets nothing: no reference has the scope {scope!r}, as @{scope}/Name would{near}"
                _answer(answer, place, refuse=not place and not self.own_code)


def refuse_unknown_macros(owner: str) -> None:
    """Raises ValueError, naming the setting and the nearest macro, for one that `owner` needs and nothing binds.

    Asked of what is made next: macros may be bound after what refers to them, and what nobody makes needs none.
    """
    bound = {name: values["value"] for (name, kind), values in gin.config._CONFIG.items() if kind == MACRO}
    waiting = [
        (f"{owner}.{argument} = {value!r}", value)
        for (_, selector), values in gin.config._CONFIG.items()
        if selector.rpartition(".")[2] == owner
        for argument, value in values.items()
    ]
    seen: set[str] = set()
    for setting, value in waiting:  # which grows by the macros that macros stand for
        for name in [scope for scope, kind in _keys([value]) if kind == MACRO and scope not in seen]:
            seen.add(name)
            known = next((known for known in bound if name == known or name.startswith(f"{known}/")), None)
            if known is None:
                raise ValueError(f"{setting}: {no_macro(name)}")
            waiting.append((setting, bound[known]))


def _answer(text: str, place: str, refuse: bool) -> None:
    if refuse:
        raise ValueError(text)
    logger.warning(text + place)


def _references() -> Iterator[tuple[str, str]]:
    """(scope, full name) of everything that is referred to; the scope of a macro is its name."""
    yield from _keys(gin.config._CONFIG)  # gin offers no public list


def _macros_in_use() -> set[str]:
    return {scope for scope, selector in _references() if selector == MACRO}


def _parts_of_scopes_in_use() -> set[str]:
    scopes = {scope for scope, selector in _references() if selector not in (MACRO, CONSTANT)}
    return {part for scope in scopes for part in scope.split("/")} - {""}


def _reject_endless_macros() -> None:
    """Raises ValueError for a macro that stands for itself, by way of others or not."""
    macros = {name: values["value"] for (name, kind), values in gin.config._CONFIG.items() if kind == MACRO}
    refers = {name: [scope for scope, kind in _keys([value]) if kind == MACRO] for name, value in macros.items()}
    for name in macros:
        seen: set[str] = set()
        waiting = list(refers[name])
        while waiting and name not in waiting:
            other = waiting.pop()
            waiting += refers.get(other, []) if other not in seen else []
            seen.add(other)
        if waiting:
            raise ValueError(f"{name} = {macros[name]!r}: a macro cannot stand for itself")


def _keys(values: object) -> list[tuple[str, str]]:
    return [reference.config_key for reference in gin.config.iterate_references(values)]


def _setting_called(name: str) -> str:
    """ "; did you mean 'Class.argument'?", of the argument whose name is closest; those of the experiment first."""
    owners: dict[str, list[str]] = {}
    for selector in registry():
        owner = selector.rpartition(".")[2]
        try:
            arguments = [] if selector.startswith("gin.") else parameters_of(selector)
        except ValueError:  # of what is written in C
            continue
        for argument in arguments:
            owners.setdefault(argument, []).append(owner)
    found = closest(name.rpartition("/")[2], owners)
    if found is None:
        return "; a setting is written with its class, as Agent.gamma"
    owner = min(owners[found], key=lambda owner: owner not in (*DRIVER_CONFIGURABLES, "Agent"))
    return f"; did you mean '{owner}.{found}'?"
