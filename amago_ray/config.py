"""gin: load configurations, answer mistakes with the nearest known name, carry settings to other processes."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin

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
    "amago_ray.replay.datasets",
    "amago_ray.replay.readers",
    "amago_ray.replay.sampling.relabeling",
)


def load(configs: Sequence[str | Path], bindings: Sequence[str] = ()) -> None:
    """Parse gin files in order, then single bindings such as "Agent.gamma = 0.99". Later ones win.

    Raises ValueError, in one line, for a missing file, a syntax error, or a name that is not configurable.
    """
    for module in CONFIGURABLE_MODULES:
        importlib.import_module(module)
    for path in configs:
        if not Path(path).is_file():
            raise ValueError(f"--config {path}: there is no such file")
    try:
        gin.parse_config_files_and_bindings([str(p) for p in configs], list(bindings), finalize_config=False)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(explain(error)) from error


def is_bound(owner: str, name: str) -> bool:
    """Whether the configuration gives setting `name` of configurable `owner` a value."""
    try:
        gin.query_parameter(f"{owner}.{name}")
    except ValueError:
        return False
    return True


def snapshot() -> str:
    """Everything that was bound, as text that `restore` understands in another process."""
    return gin.config_str(max_line_length=200)


def restore(text: str, driver: bool = False, modules: Sequence[str] | None = None) -> None:
    """Replace this process's configuration with another's `snapshot`.

    driver: this process configures an experiment. Elsewhere the modules for that are not imported.
    modules: all that this process configures; what the text says of others is passed over, and they are not imported.
    """
    needed = CONFIGURABLE_MODULES if driver else CONFIGURABLE_MODULES[len(DRIVER_MODULES) :]
    for module in needed if modules is None else modules:
        importlib.import_module(module)
    with gin.unlock_config():
        gin.clear_config()
        unknown: bool | list[str] = False if driver else ["Experiment", "Sweep"]
        gin.parse_config(text, skip_unknown=unknown if modules is None else True)


def record(owner: str, settings: Mapping[str, Any]) -> str:
    """A gin file that runs the same again: what was bound, what is in use (defaults included), and `owner`'s settings.

    Settings that were given in Python and have no name in gin (a lambda, say) are left as comments.
    """
    lines = []
    for name, value in settings.items():
        text = _literal(value)
        lines.append(f"{owner}.{name} = {text}" if text else f"# {owner}.{name} was given in Python: {value!r}")
    parts = {
        "As it was configured": snapshot(),
        "In use, with defaults": gin.operative_config_str(max_line_length=120),
        f"{owner} as it was started": "\n".join(lines) + "\n",
    }
    return "\n".join(f"# {'=' * 80}\n# {title}\n# {'=' * 80}\n\n{text}" for title, text in parts.items())


def _literal(value: Any) -> str | None:
    """`value` as gin writes it, or None where gin cannot."""
    if inspect.isclass(value) or inspect.isfunction(value):
        name = value.__name__
        return f"@{name}" if name in configurable_names() and gin.get_configurable(name) is value else None
    if isinstance(value, (list, tuple)):
        items = [text for item in value if (text := _literal(item)) is not None]
        opening, closing = ("[", "]") if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
        return f"{opening}{', '.join(items)}{closing}" if len(items) == len(value) else None
    if isinstance(value, dict):
        pairs = [(_literal(key), _literal(item)) for key, item in value.items()]
        entries = [f"{key}: {item}" for key, item in pairs if key is not None and item is not None]
        return f"{{{', '.join(entries)}}}" if len(entries) == len(pairs) else None
    return repr(value) if value is None or isinstance(value, (str, int, float, bool)) else None


def explain(error: Exception) -> str:
    """One line for a gin error: the offending name and the nearest known one."""
    text = str(error)
    if match := re.search(r"No configurable matching (?:reference )?'?@?(?:[\w.]+/)*([\w.]+)", text):
        name = match.group(1)
        return f"no configurable is named {name!r}{nearest(name.split('.')[-1], configurable_names())}"
    if match := re.search(r"Configurable '?([\w.]+)'? doesn't have a parameter named '?(\w+)'?", text):
        owner, name = match.groups()
        configurable = gin.get_configurable(owner)
        # Of a class that has a `__new__` of its own, the signature would be that one's.
        signature = inspect.signature(configurable.__init__ if inspect.isclass(configurable) else configurable)
        parameters = [known for known in signature.parameters if known != "self"]
        return f"{owner} has no setting {name!r}{nearest(name, parameters)}"
    if isinstance(error, SyntaxError) and error.text:
        text = f"{text}: {error.text.strip()!r}"
    return " ".join(text.split())


def configurable_names() -> list[str]:
    """Names of everything that gin can configure."""
    registry = gin.config._REGISTRY._selector_map  # gin offers no public list
    return [selector.rsplit(".", 1)[-1] for selector in registry]


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?", or the list of known names when none is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if len(known) < 60 else ""


def reject_unknown_arguments(function: Any, arguments: Iterable[str], owner: str) -> None:
    """Raises TypeError for arguments that `function` does not take, naming the nearest that it does."""
    parameters = [known for known in inspect.signature(function).parameters if known != "self"]
    for name in arguments:
        if name not in parameters:
            raise TypeError(f"{owner} has no setting {name!r}{nearest(name, parameters)}")
