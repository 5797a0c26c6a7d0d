"""A configuration as text: what other processes are sent, and what runs a run again."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import gin

from amago_ray.config.registry import matching, registry
from amago_ray.config.value_types import plain

# gin has no literals of these: a configuration writes %inf, %minus_inf and %nan.
CONSTANTS = {"inf": math.inf, "minus_inf": -math.inf, "nan": math.nan}
for _name, _value in CONSTANTS.items():
    gin.constant(f"amago_ray.{_name}", _value)
SECRET = r"(?:\w*_)?(?:api_?key|password|passwd|secret|auth_?token|access_?token|api_?token|credentials?)"
SECRET_SETTING = re.compile(rf"^([\w./]+\.{SECRET}) = .*(?:\n[ \t]+.*)*", re.MULTILINE | re.IGNORECASE)
SECRET_IN_DICT = re.compile(rf"""(['"]{SECRET}['"]\s*:\s*)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", re.IGNORECASE)
DRIVER_CONFIGURABLES = ["Experiment", "Sweep"]
AS_CONFIGURED = "As it was configured"


def has_no_text(name: str, value: Any) -> str:
    return (
        f"{name} = {' '.join(repr(value).split())}: gin has no text for this value, by which the processes of a run "
        "would know it; give plain values, or a class or function with @gin.configurable"
    )


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
                raise ValueError(has_no_text(f"{owner}.{name}", value))


def record(owner: str, settings: Mapping[str, Any]) -> str:
    """A gin file that runs the same again: what was bound, what is in use (defaults included), and `owner`'s settings.

    Settings that were given in Python and have no text in gin (a lambda, say) are left as comments, in place of what
    gin held for them, and so are those whose names say that they are secret.
    """
    lines, overridden = [], []
    for name, value in settings.items():
        text = literal(value)
        given = " ".join(repr(value).split())
        lines.append(f"{owner}.{name} = {text}" if text else f"# {owner}.{name} was given in Python: {given}")
        if not text and not _came_from_gin(owner, name):
            overridden.append(name)
    parts = {
        AS_CONFIGURED: _without(owner, overridden, snapshot()),
        "In use, with defaults": _without(owner, overridden, gin.operative_config_str(max_line_length=120)),
        f"{owner} as it was started": "\n".join(lines) + "\n",
    }
    whole = "\n".join(f"# {'=' * 80}\n# {title}\n# {'=' * 80}\n\n{text}" for title, text in parts.items())
    return without_secrets(whole)


def is_record(text: str) -> bool:
    """Whether a file is a run's own record, by which nobody has set anything anew."""
    return f"# {AS_CONFIGURED}\n" in text


def _came_from_gin(owner: str, name: str) -> bool:
    """Whether gin has a value for a setting, and whoever made an `owner` took that."""
    configured, taken = (
        any(key.rpartition(".")[2] == owner and name in values for (_, key), values in store.items())
        for store in (gin.config._CONFIG, gin.config._OPERATIVE_CONFIG)  # gin offers no public lists
    )
    return configured and taken


def _without(owner: str, names: Sequence[str], text: str) -> str:
    """Gin's text without what it says of these settings."""
    if not names:
        return text
    statement = rf"^(?:[\w.]+\.)?{owner}\.(?:{'|'.join(names)}) = .*(?:\n[ \t]+.*)*\n"
    return re.sub(statement, "", text, flags=re.MULTILINE)


def literal(value: Any) -> str | None:
    """`value` as gin writes it, or None where gin cannot.

    Numbers of NumPy become Python's, paths become text, and what is configurable is written by its name.
    """
    value = plain(value)
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


def without_secrets(text: str) -> str:
    """A configuration in which values whose names say that they are secret are left out."""
    text = SECRET_IN_DICT.sub(r"\1'left out'", text)
    return SECRET_SETTING.sub(r"# \1 is left out: it is a secret", text)


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
    for selector, configurable in registry().items():
        if configurable.wrapper is value:
            short = selector.rsplit(".", 1)[-1]
            return f"@{short if len(matching(short)) == 1 else selector}"
    return None
