"""A run's configuration for a moment: read where another one, or none, is in force."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import gin
from gin import config_parser

from amago_ray.config.reader import CONFIGURABLE_MODULES, DRIVER_MODULES, _import_configurables
from amago_ray.config.registry import matching
from amago_ray.config.text import DRIVER_CONFIGURABLES


@contextmanager
def apart(text: str, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Within, agents are built as the configuration in `text` says; afterwards this process's own is in force again.

    Yields the values that the text gives those settings of `Experiment`; what it leaves out is not there. What
    configures a driver is not read, and not imported: neither Ray nor the environments need be installed. Modules and
    names that are not known here are passed over, unless something that is built needs them.
    Raises ValueError where a setting among `names` refers to something unknown.
    """
    _import_configurables(CONFIGURABLE_MODULES[len(DRIVER_MODULES) :])
    stores = (gin.config._CONFIG, gin.config._OPERATIVE_CONFIG, gin.config._IMPORTS, gin.config._SINGLETONS)
    before = [copy.copy(store) for store in stores]  # gin has no public way to put a configuration by
    locked = gin.config_is_locked()
    gin.clear_config()
    try:
        given = _read(text)
        yield {name: _resolved(name, given[name]) for name in names if name in given}
    finally:
        gin.clear_config()
        for store, kept in zip(stores, before, strict=True):
            store.clear()
            store.update(kept)
        if locked:
            gin.config._set_config_is_locked(True)


def _read(text: str) -> dict[str, Any]:
    """Bind what the text says of agents; returns what it says of the experiment, unresolved."""
    given: dict[str, Any] = {}
    for statement in config_parser.ConfigParser(text, gin.config.ParserDelegate(skip_unknown=True)):
        if isinstance(statement, config_parser.ImportStatement):
            gin.parse_config(statement.format(), skip_unknown=True)
        elif isinstance(statement, config_parser.BindingStatement):
            scope, selector, argument, value, _ = statement
            owner = selector.rpartition(".")[2]
            if not argument:
                gin.bind_parameter((f"{scope}/{selector}" if scope else selector, "gin.macro", "value"), value)
            elif owner == "Experiment":
                given[argument] = value
            elif owner not in DRIVER_CONFIGURABLES and matching(selector):
                gin.bind_parameter((scope, selector, argument), value)
    return given


def _resolved(name: str, value: Any) -> Any:
    """A value as gin would hand it over: copying resolves references."""
    try:
        return copy.deepcopy(value)
    except ValueError as error:
        raise ValueError(f"Experiment.{name} = {value!r} is not known here: import its module first") from error
