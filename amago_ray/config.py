"""gin: load configurations, answer mistakes with the nearest known name, carry settings to other processes.

AMAGO's names are accepted wherever settings are given: `amago_names` has the table.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import gin
import numpy as np
from gin import config_parser

from amago_ray import amago_names

T = TypeVar("T")

logger = logging.getLogger("amago_ray")

# gin has no literals of these: a configuration writes %inf, %minus_inf and %nan.
CONSTANTS = {"inf": math.inf, "minus_inf": -math.inf, "nan": math.nan}
for _name, _value in CONSTANTS.items():
    gin.constant(f"amago_ray.{_name}", _value)

UNKNOWN_NAME = re.compile(
    r"No configurable matching (?:reference )?'?@?(?:[\w.]+/)*([\w.]+)|Could not find ([\w.]+) in the Gin registry"
)
MISSING_VALUE = re.compile(r"Required bindings for `([\w.]+)` not provided in config: \[(.*?)\]")
# What gin adds to the messages of everything that it has called.
GIN_CALLS = re.compile(
    r"\s+No values supplied by Gin or caller for arguments: \[.*?\]"
    r"\s+Gin had values bound for: \[.*?\]\s+Caller supplied values for: \[.*?\]"
    r"|\s+In call to configurable '[^']*' \(<.*?>\)(?: in scope '[^']*')?"
)

DRIVER_MODULES = ("amago_ray.experiment", "amago_ray.tune.sweep")
DRIVER_CONFIGURABLES = ["Experiment", "Sweep"]
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
    "amago_ray.replay.datasets",
    "amago_ray.replay.readers",
    "amago_ray.replay.sampling.relabeling",
)


def load(configs: Sequence[str | Path], bindings: Sequence[str] = ()) -> None:
    """Parse gin files in order, then single bindings such as "Agent.gamma = 0.99". Later ones win.

    Names of AMAGO are taken for what they are called here, and one line says so of each.
    Raises ValueError, in one line, for a missing file, a syntax error, or a name that is not configurable.
    """
    _import_configurables(CONFIGURABLE_MODULES)
    for path in configs:
        if not Path(path).is_file():
            raise ValueError(f"--config {path}: there is no such file")
    reader = _Reader()
    try:
        for path in configs:
            reader.read_file(Path(path))
        reader.read("\n".join(bindings))
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(explain(error)) from error
    reader.tell()


def bind(settings: Mapping[str, Any]) -> None:
    """Bind settings that are given in Python, such as {"Agent.gamma": 0.99, "CNNTstepEncoder.cnn_type": IMPALAishCNN}.

    Raises ValueError, in one line, for a name that is not configurable, and for a value that gin could not carry to the
    processes of a run.
    """
    bindings = []
    for name, value in settings.items():
        text = literal(value)
        if text is None:
            raise ValueError(_has_no_text(name, value))
        bindings.append(f"{name} = {text}")
    load([], bindings)


def _has_no_text(name: str, value: Any) -> str:
    return (
        f"{name} = {' '.join(repr(value).split())}: gin has no text for this value, by which the processes of a run "
        "would know it; give plain values, or a class or function with @gin.configurable"
    )


def _import_configurables(modules: Iterable[str]) -> None:
    for module in modules:
        importlib.import_module(module)


class _Reader(gin.config.ParserDelegate):
    """Reads gin, with AMAGO's names where ours do not exist, and collects what to tell of them."""

    def __init__(self) -> None:
        super().__init__()
        self._notices: dict[str, None] = {}  # in order, each once

    def tell(self) -> None:
        for notice in self._notices:
            logger.warning(notice)

    def read_file(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        if "__gin__" in text:  # gin's dynamic registration looks names up in the file's own imports
            gin.parse_config_file(str(path))
            return
        with path.open(encoding="utf-8") as file:
            self.read(file, path.parent)

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

    def _bind(self, statement: config_parser.BindingStatement) -> None:
        scope, name, argument, value, _ = statement
        if not argument:
            gin.bind_parameter((f"{scope}/{name}" if scope else name, "gin.macro", "value"), value)
            return
        selector = self._selector(name)
        amago, here = name.rpartition(".")[2], selector.rpartition(".")[2]
        rule = amago_names.ARGUMENTS.get(f"{amago}.{argument}")
        if rule is None or (amago == here and _matching(selector) and argument in _parameters(selector)):
            gin.bind_parameter((scope, selector, argument), value)
            return
        for key, translated in self.translate(f"{amago}.{argument}", rule, value).items():
            gin.bind_parameter((scope, *key.rsplit(".", 1)), translated)

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
        if _matching(name):
            return name
        module, _, amago = name.rpartition(".")
        here = amago_names.class_here(amago)
        found = [selector for selector in _matching(here) if selector.startswith("amago_ray.")]
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

    def _include(self, filename: str, folder: Path | None) -> None:
        places = [Path(filename), *([folder / filename] if folder is not None else [])]
        path = next((place for place in places if place.is_file()), None)
        if path is not None:
            self.read_file(path)
            return
        try:
            gin.parse_config_file(filename)  # from gin's own search paths
        except OSError as error:
            raise ValueError(f"include {filename!r}: there is no such file") from error


@contextmanager
def _at(location: config_parser.Location) -> Iterator[None]:
    """Errors of a statement in a file name the file and the line."""
    try:
        yield
    except ImportError:
        raise
    except (ValueError, TypeError) as error:
        place = f" ({location.filename} line {location.line_num})" if location.filename else ""
        raise ValueError(explain(error) + place) from error


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
        gin.query_parameter(f"{owner}.{name}")
    except ValueError:
        return False
    return True


def snapshot() -> str:
    """Everything that was bound, as text that `restore` understands in another process.

    Raises ValueError for a value that was bound in Python and has no text, unless only the driver needs it.
    """
    with gin.unlock_config():
        _write_values_out()
    return gin.config_str(max_line_length=200)


def _write_values_out() -> None:
    """Bind anew what gin would leave out of its text, such as numbers of NumPy, as what it writes."""
    for (scope, selector), arguments in gin.config._CONFIG.items():  # gin offers no public list
        for name, value in list(arguments.items()):
            if gin.config._is_literally_representable(value):
                continue
            owner, text = selector.rpartition(".")[2], literal(value)
            if text is not None:
                gin.bind_parameter((scope, selector, name), gin.config.parse_value(text))
            elif owner not in DRIVER_CONFIGURABLES:
                raise ValueError(_has_no_text(f"{owner}.{name}", value))


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


def record(owner: str, settings: Mapping[str, Any]) -> str:
    """A gin file that runs the same again: what was bound, what is in use (defaults included), and `owner`'s settings.

    Settings that were given in Python and have no text in gin (a lambda, say) are left as comments.
    """
    lines = []
    for name, value in settings.items():
        text = literal(value)
        given = " ".join(repr(value).split())
        lines.append(f"{owner}.{name} = {text}" if text else f"# {owner}.{name} was given in Python: {given}")
    parts = {
        "As it was configured": snapshot(),
        "In use, with defaults": gin.operative_config_str(max_line_length=120),
        f"{owner} as it was started": "\n".join(lines) + "\n",
    }
    return "\n".join(f"# {'=' * 80}\n# {title}\n# {'=' * 80}\n\n{text}" for title, text in parts.items())


def literal(value: Any) -> str | None:
    """`value` as gin writes it, or None where gin cannot.

    Numbers of NumPy become Python's, paths become text, and what is configurable is written by its name.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if inspect.isclass(value) or inspect.isfunction(value):
        return _reference(value)
    if isinstance(value, gin.config.ConfigurableReference):
        return repr(value)
    if type(value) in (list, tuple, dict):
        return _container(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "%nan" if math.isnan(value) else "%inf" if value > 0 else "%minus_inf"
    # Of subclasses, such as enumerations, the text would be another's.
    return repr(value) if value is None or type(value) in (str, int, float, bool) else None


def _container(values: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> str | None:
    if isinstance(values, dict):
        pairs = [(literal(key), literal(value)) for key, value in values.items()]
        if any(text is None for pair in pairs for text in pair):
            return None
        return "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
    items = [literal(value) for value in values]
    if any(text is None for text in items):
        return None
    text = ", ".join(item for item in items if item is not None)
    if isinstance(values, list):
        return f"[{text}]"
    return f"({text},)" if len(items) == 1 else f"({text})"


def _reference(value: Any) -> str | None:
    """ "@Name" of a configurable class or function, as short as it is unique."""
    for selector, configurable in _registry().items():
        if configurable.wrapper is value:
            short = selector.rsplit(".", 1)[-1]
            return f"@{short if len(_matching(short)) == 1 else selector}"
    return None


def explain(error: Exception) -> str:
    """One line for somebody who did not write the code; of an error of gin, the name and the nearest known one."""
    text = str(error)
    if match := UNKNOWN_NAME.search(text):
        name = match.group(1) or match.group(2)
        return f"no configurable is named {name!r}{nearest(name.split('.')[-1], configurable_names())}"
    if match := re.search(r"Configurable '?([\w.]+)'? doesn't have a parameter named '?(\w+)'?", text):
        owner, name = match.groups()
        return f"{owner} has no setting {name!r}{nearest(name, _parameters(owner))}"
    if match := MISSING_VALUE.search(text):
        return f"{match.group(1)} needs a value of {match.group(2)}"
    if isinstance(error, SyntaxError) and error.text:
        text = f"{text}: {error.text.strip()!r}"
    return " ".join(without_gin_calls(text).split())


def without_gin_calls(text: str) -> str:
    """A message without the list of gin's calls at its end."""
    return GIN_CALLS.sub("", text)


def as_raised(error: Exception) -> Exception:
    """The error without the list of gin's calls in its message.

    With each call gin derives one more class, `ExceptionProxy`, of which only the text is another.
    """
    text = without_gin_calls(str(error))
    if text == str(error):
        return error
    original = next(cls for cls in type(error).__mro__ if "ExceptionProxy" not in cls.__str__.__qualname__)
    raised = original.__new__(original, text)  # its own __init__ may take something else
    assert isinstance(raised, Exception)
    return raised.with_traceback(error.__traceback__)


def _parameters(selector: str) -> list[str]:
    """Names of what can be set of a configurable."""
    configurable = gin.get_configurable(selector)
    # Of a class that has a `__new__` of its own, the signature would be that one's.
    signature = inspect.signature(configurable.__init__ if inspect.isclass(configurable) else configurable)
    return [known for known in signature.parameters if known != "self"]


def _registry() -> dict[str, Any]:
    """Everything that gin can configure, by its full name."""
    return gin.config._REGISTRY._selector_map  # gin offers no public list


def _matching(name: str) -> list[str]:
    """Full names of what gin could mean by `name`."""
    return [selector for selector in _registry() if selector == name or selector.endswith("." + name)]


def configurable_names() -> list[str]:
    """Names of everything that gin can configure."""
    return [selector.rsplit(".", 1)[-1] for selector in _registry()]


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?", or the list of known names when none is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if len(known) < 60 else ""


def reject_unknown_arguments(function: Any, arguments: Iterable[str], owner: str) -> None:
    """Raises TypeError for arguments that `function` does not take, naming the nearest that it does.

    Names that AMAGO has for arguments of `owner` pass: `accept_amago_arguments` translates them.
    """
    parameters = [known for known in inspect.signature(function).parameters if known != "self"]
    for name in arguments:
        if name not in parameters and f"{owner}.{name}" not in amago_names.ARGUMENTS:
            raise TypeError(f"{owner} has no setting {name!r}{nearest(name, parameters)}")
