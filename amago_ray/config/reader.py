"""Reading configurations. AMAGO's names are accepted wherever settings are given: `amago_names` has the table."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, TextIO, TypeVar

import gin
from gin import config_parser

from amago_ray.config import amago_names, shipped
from amago_ray.config.handed import refuse_calls, refuse_handed
from amago_ray.config.left_out import GivenInPython, stand_in
from amago_ray.config.mistakes import explain
from amago_ray.config.registry import matching, parameters_of
from amago_ray.config.text import DRIVER_CONFIGURABLES, has_no_text, is_record, literal
from amago_ray.config.unread import of_records
from amago_ray.config.unused import MACRO, Given
from amago_ray.config.value_types import check_argument

T = TypeVar("T")
logger = logging.getLogger("amago_ray")
DRIVER_MODULES = ("amago_ray.experiment", "amago_ray.tune.sweep")
CONFIGURABLE_MODULES = (
    *DRIVER_MODULES,
    "amago_ray.agent",
    "amago_ray.agent.optimizers",
    "amago_ray.nets.actors",
    "amago_ray.nets.attention",
    "amago_ray.nets.cnn",
    "amago_ray.nets.critics",
    "amago_ray.nets.mixed_encoder",
    "amago_ray.nets.policy_outputs",
    "amago_ray.nets.scaling",
    "amago_ray.nets.traj_encoders",
    "amago_ray.nets.tstep_encoders",
    "amago_ray.envs.builtin",
    "amago_ray.envs.exploration",
    "amago_ray.envs.suites",
    "amago_ray.replay.datasets",
    "amago_ray.replay.readers",
    "amago_ray.replay.sampling.instructions",
    "amago_ray.replay.sampling.relabeling",
    "amago_ray.watch.callbacks",
)


def load(configs: Sequence[str | Path], bindings: Sequence[str] = ()) -> None:
    """Parse gin files in order, then single bindings such as "Agent.gamma = 0.99". Later ones win.

    configs: files, or names of configurations that come along, such as "tmaze" or "tmaze/passive_50".
    Names of AMAGO are taken for what they are called here, and one line says so of each.
    Raises ValueError, in one line, for a missing file, a syntax error, a name that is not configurable, or a single
    binding that sets nothing, as a macro that nothing refers to; of one in a file a line is logged.
    """
    _read(configs, bindings).given.check()


def _read(configs: Sequence[str | Path], bindings: Sequence[str]) -> _Reader:
    """Parse as `load` does, without looking for what sets nothing."""
    _import_configurables(CONFIGURABLE_MODULES)
    files = [shipped.find(path) for path in configs]
    reader = _Reader()
    try:
        for file in files:
            reader.read_file(file)
        for binding in bindings:
            reader.read_single(binding)
    except (ValueError, SyntaxError, TypeError, TokenError) as error:
        raise ValueError(explain(error)) from error
    reader.tell()
    return reader


def bind(settings: Mapping[str, Any]) -> None:
    """Bind settings that are given in Python, such as {"Agent.gamma": 0.99, "CNNTstepEncoder.cnn_type": IMPALAishCNN}.

    Raises ValueError, in one line, for a name that is not configurable, and for a value that gin could not carry to the
    processes of a run.
    """
    bindings = []
    for name, value in settings.items():
        text = literal(value)
        if text is None:
            raise ValueError(has_no_text(name, value))
        bindings.append(f"{name} = {text}")
    _read([], bindings)  # files that are read later may take macros of these


def _import_configurables(modules: Iterable[str]) -> None:
    for module in modules:
        importlib.import_module(module)


class _Reader(gin.config.ParserDelegate):
    """Reads gin, with AMAGO's names where ours do not exist, and collects what to tell of them."""

    def __init__(self) -> None:
        super().__init__()
        self._notices: dict[str, None] = {}  # in order, each once
        self._open: list[Path] = []  # files that are being read, each included by the one before
        self._settings: list[str] = []  # that were bound, in order
        self._record = False  # whether it is a run's own that is being read, in which values win over macros
        self.given = Given()

    def tell(self) -> None:
        for notice in self._notices:
            logger.warning(notice)

    def read_file(self, path: Path) -> None:
        if path.resolve() in self._open:
            raise ValueError(f"{path} includes itself, or others that include it: leave one include out")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is damaged, or is no text: {error}") from error
        if "__gin__" in text:  # gin's dynamic registration looks names up in the file's own imports
            gin.parse_config_file(str(path))
            return
        file = io.StringIO(text)
        file.name = str(path)  # which gin names where something is wrong
        self._open.append(path.resolve())
        before, outer = len(self._settings), self._record
        self._record = is_record(text)
        self.read(file, path.parent)
        self._record = outer
        stand_in(text, str(path), self._settings[before:])
        self._open.pop()

    def read(self, source: str | TextIO, folder: Path | None = None) -> None:
        """folder: of the file, where its includes are looked for if they are not in the current folder."""
        for statement in config_parser.ConfigParser(source, self):
            with _at(statement.location):
                if isinstance(statement, config_parser.BindingStatement):
                    self._bind(statement)
                elif isinstance(statement, config_parser.BlockDeclaration):
                    gin.get_configurable(self._selector(statement.selector))
                elif isinstance(statement, config_parser.ImportStatement):
                    self._import(statement)
                else:
                    self._include(statement.filename, folder)

    def read_single(self, binding: str) -> None:
        """Read a single binding. What is no statement is named as a whole, for there may be others beside it."""
        try:
            self.read(binding)
        except (SyntaxError, TokenError) as error:
            text = explain(error)
            if binding.strip() in text:
                raise
            raise ValueError(f"{binding!r} is not NAME = VALUE: {text.replace(' (line 1)', '')}") from error

    def _bind(self, statement: config_parser.BindingStatement) -> None:
        scope, name, argument, value, location = statement
        setting = f"{scope}/{name}" if scope else name
        said = f"{setting}{'.' if argument else ''}{argument} = {value!r}", _place(location)
        refuse_calls(said[0].partition(" = ")[0], value)
        if not argument:
            if not self._record:
                self.given.macros[setting] = said
            gin.bind_parameter((setting, MACRO, "value"), value)
            return
        if scope and not self._record:
            self.given.scopes[scope] = said
        selector = self._selector(name)
        if not scope and not self._record:  # a scope is entered by code of one's own, and old records hold such lines
            refuse_handed(selector, argument, value)
        amago, here = name.rpartition(".")[2], selector.rpartition(".")[2]
        self._settings.append(f"{here}.{argument}")
        rule = amago_names.ARGUMENTS.get(f"{amago}.{argument}")
        if rule is None or (amago == here and matching(selector) and argument in parameters_of(selector)):
            self._bind_checked(scope, selector, argument, value)
            return
        for key, translated in self.translate(f"{amago}.{argument}", rule, value).items():
            here, argument = key.rsplit(".", 1)
            self._bind_checked(scope, here, argument, translated)

    def _bind_checked(self, scope: str, selector: str, argument: str, value: Any) -> None:
        """Bind a value. Raises ValueError, TypeError for an unknown name, and for a value of the wrong type."""
        gin.bind_parameter((scope, selector, argument), value)  # says what is wrong with a name
        full = matching(selector)[0]
        (of_records.add if self._record else of_records.discard)((full, argument))
        if (
            selector.rpartition(".")[2] not in DRIVER_CONFIGURABLES
        ):  # which look at their values more closely themselves
            check_argument(full, argument, value)

    def translate(self, name: str, rule: amago_names.Argument, value: Any) -> dict[str, Any]:
        """The settings that an argument of AMAGO stands for."""
        if isinstance(value, gin.config.ConfigurableReference) and not rule.takes_reference:
            raise ValueError(f"{name} = {value!r}: write the value itself, which is another one here")
        try:
            bindings = rule.bindings(value)
        except ValueError as error:
            raise ValueError(f"{name} = {value!r}: {error}") from error
        self._notices[f"{name} {rule.notice}"] = None
        return bindings

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Any:
        scope, slash, selector = scoped_selector.rpartition("/")
        return super().configurable_reference(scope + slash + self._selector(selector), evaluate)

    def _selector(self, name: str) -> str:
        """`name`, or what is called so in AMAGO by its name here."""
        if matching(name):
            return name
        module, _, amago = name.rpartition(".")
        here = amago_names.class_here(amago)
        found = [selector for selector in matching(here) if selector.startswith("amago_ray.")]
        if len(found) != 1 or (module and not amago_names.is_module_of_amago(module)):
            return name
        if here != amago:
            self._notices[f"{amago} is {here} here"] = None
        return found[0]

    def _import(self, statement: config_parser.ImportStatement) -> None:
        if statement.module.split(".")[0] == "amago":
            self._notices[f"import {statement.module} is not needed here: all of amago_ray is known"] = None
        else:
            gin.parse_config(statement.format())
            self.given.own_code |= statement.module.split(".")[0] != "amago_ray"

    def _include(self, filename: str, folder: Path | None) -> None:
        places = [Path(filename), *([folder / filename] if folder is not None else [])]
        path = next((place for place in places if shipped.is_readable(place)), None)
        if path is not None:
            self.read_file(path)
            return
        if any(os.path.isfile(os.path.join(prefix, filename)) for prefix in gin.config._LOCATION_PREFIXES):
            gin.parse_config_file(filename)  # from gin's own search paths
        elif (along := shipped.named(filename)) is not None:
            self.read_file(along)
        else:
            raise ValueError(f"include {filename!r}: there is no such file")


@contextmanager
def _at(location: config_parser.Location) -> Iterator[None]:
    """Errors of a statement in a file name the file and the line."""
    try:
        yield
    except ImportError:
        raise
    except (ValueError, TypeError) as error:
        raise ValueError(explain(error) + _place(location)) from error


def _place(location: config_parser.Location) -> str:
    """ " (file line 3)"; nothing of a single binding."""
    return f" ({location.filename} line {location.line_num})" if location.filename else ""


def accept_amago_arguments(cls: type[T]) -> type[T]:
    """Class decorator: `cls` can be made with AMAGO's names for its arguments, too."""
    init: Callable[..., None] = cls.__init__

    @functools.wraps(init)
    def translated(self: T, *args: Any, **settings: Any) -> None:
        init(self, *args, **arguments_here(cls.__name__, inspect.signature(init).parameters, settings))

    cls.__init__ = translated  # type: ignore[assignment,method-assign]
    return cls


def arguments_here(owner: str, parameters: Iterable[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `owner` that may be AMAGO's, in the names here; what other owners have here is bound in gin.

    Raises ValueError for a value that cannot be had here.
    """
    reader, parameters = _Reader(), set(parameters)
    found, elsewhere = {}, {}
    for name, value in arguments.items():
        rule = amago_names.ARGUMENTS.get(f"{owner}.{name}")
        if name in parameters or rule is None:
            found[name] = value
            continue
        for key, translated in reader.translate(f"{owner}.{name}", rule, value).items():
            of, argument = key.rsplit(".", 1)
            if of == owner:
                found[argument] = translated
            else:
                elsewhere[key] = translated
    reader.tell()
    if elsewhere:
        with gin.unlock_config():
            bind(elsewhere)
    return found


def is_bound(owner: str, name: str) -> bool:
    """Whether the configuration gives setting `name` of configurable `owner` a value."""
    try:
        return not isinstance(gin.query_parameter(f"{owner}.{name}"), GivenInPython)
    except ValueError:
        return False


def restore(text: str, driver: bool = False, modules: Sequence[str] | None = None) -> None:
    """Replace this process's configuration with another's `snapshot`.

    driver: this process configures an experiment. Elsewhere the modules for that are not imported.
    modules: all that this process configures; what the text says of others is passed over, and they are not imported.
    """
    needed = CONFIGURABLE_MODULES if driver else CONFIGURABLE_MODULES[len(DRIVER_MODULES) :]
    _import_configurables(needed if modules is None else modules)
    with gin.unlock_config():
        gin.clear_config()
        unknown: bool | Sequence[str] = False if driver else DRIVER_CONFIGURABLES
        gin.parse_config(text, skip_unknown=unknown if modules is None else True)
