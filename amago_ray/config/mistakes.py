"""What a mistake in a configuration is answered with: one line, with the nearest known name."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable
from tokenize import TokenError
from typing import Any

import gin

from amago_ray.config import amago_names
from amago_ray.config.registry import configurable_names, parameters_of

MACRO = "gin.macro"
UNKNOWN_NAME = re.compile(
    r"No configurable matching (?:reference )?'?@?(?:[\w.]+/)*([\w.]+)|Could not find ([\w.]+) in the Gin registry"
)
NOT_A_SETTING = re.compile(r"Configurable '([\w.]+)' (?:has denylisted|doesn't include) kwarg '(\w+)'")
MISSING_VALUE = re.compile(r"Required bindings for `([\w.]+)` not provided in config: \[(.*?)\]")
UNKNOWN_MACRO = re.compile(
    r"macro\(\) missing 1 required positional argument.*In call to configurable 'macro' .*? in scope '([^']*)'",
    re.DOTALL,
)
ABSTRACT = re.compile(
    r"Can't instantiate abstract class (\w+) (?:with|without an implementation for) abstract methods? ([\w', ]+)"
)
NO_VALUE = re.compile(r"malformed node or string.*Failed to parse token '([^']*)'(?: (\(.*line \d+\)))?", re.DOTALL)
# What gin adds to the messages of everything that it has called.
GIN_CALLS = re.compile(
    r"\s+No values supplied by Gin or caller for arguments: \[.*?\]"
    r"\s+Gin had values bound for: \[.*?\]\s+Caller supplied values for: \[.*?\]"
    r"|\s+In call to configurable '[^']*' \(<.*?>\)(?: in scope '[^']*')?"
)

GIN_CALL = re.compile(r"In call to configurable '([^']*)'")


def explain(error: Exception) -> str:
    """One line for somebody who did not write the code; of an error of gin, the name and the nearest known one."""
    text = str(error)
    if match := UNKNOWN_NAME.search(text):
        name = match.group(1) or match.group(2)
        return f"no configurable is named {name!r}{nearest(name.split('.')[-1], configurable_names())}"
    if match := re.search(r"Configurable '?([\w.]+)'? doesn't have a parameter named '?(\w+)'?", text):
        owner, name = match.groups()
        return f"{owner} has no setting {name!r}{nearest(name, parameters_of(owner))}"
    if match := NOT_A_SETTING.search(text):
        return f"{match.group(1)} has no setting {match.group(2)!r}: the package gives it that"
    if match := UNKNOWN_MACRO.search(text):
        return no_macro(match.group(1))
    if match := ABSTRACT.search(text):
        missing = match.group(2).replace("'", "").strip()
        return f"{match.group(1)}: a subclass has to define {missing}, which it does not"
    if isinstance(error, TokenError):
        what, (line, _) = error.args
        return f"the configuration ends within a bracket or a text ({what}, line {line}): close it"
    if match := MISSING_VALUE.search(text):
        return f"{match.group(1)} needs a value of {match.group(2)}"
    if isinstance(error, SyntaxError) and error.text and (match := NO_VALUE.search(text)):
        word, place = match.groups()
        return f"{error.text.strip()}: {no_value(word)}{f' {place}' if place else ''}"
    if isinstance(error, SyntaxError) and error.text:
        text = f"{text}: {error.text.strip()!r}"
    return " ".join(without_gin_calls(text).split())


def no_macro(name: str) -> str:
    """What is said of a macro that nothing binds."""
    close = closest(name, (scope for scope, kind in gin.config._CONFIG if kind == MACRO))  # gin has no public list
    return f"no macro is named %{name}" + (
        f"; did you mean %{close}?" if close else ": a line that binds it is missing"
    )


def no_value(word: str) -> str:
    """What is said of a word that stands where a value should."""
    constant = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(word.lower())
    if constant is not None:
        return f"{word} is no value; did you mean {constant}?"
    return f"{word} is no value: write @X for a class or function, quotes for text"


def explain_call(error: Exception, otherwise: str) -> str:
    """One line for an error of code that did not expect such values: its kind, and what was configured of its caller.

    otherwise: what to name where no configurable has called that code.
    """
    if UNKNOWN_MACRO.search(str(error)) or ABSTRACT.search(str(error)):  # the code was not reached
        return explain(error)
    callers = GIN_CALL.findall(str(error))  # the innermost comes first
    for caller in callers:
        bound = [values for (_, selector), values in gin.config._CONFIG.items() if selector.endswith(caller)]
        given = ", ".join(f"{argument}={value!r}" for values in bound for argument, value in values.items())
        if given:
            otherwise = f"{caller.rpartition('.')[2]} with {given}"
            break
    else:
        otherwise = callers[0].rpartition(".")[2] if callers else otherwise
    return f"{otherwise}: {type(error).__name__}: {explain(error)}"


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


def closest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known name that is most like `name`; None where none is like it. likeness: the least, of 1 at most."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return close[0] if close else None


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?", or the list of known names when none is close."""
    known = list(known)
    close = closest(name, known)
    if close is not None:
        return f"; did you mean {close!r}?"
    return f"; known: {', '.join(sorted(known))}" if len(known) < 60 else ""


def reject_unknown_arguments(function: Any, arguments: Iterable[str], owner: str) -> None:
    """Raises TypeError for arguments that `function` does not take, naming the nearest that it does.

    Names that AMAGO has for arguments of `owner` pass: `accept_amago_arguments` translates them.
    """
    parameters = [known for known in inspect.signature(function).parameters if known != "self"]
    for name in arguments:
        if name not in parameters and f"{owner}.{name}" not in amago_names.ARGUMENTS:
            raise TypeError(f"{owner} has no setting {name!r}{nearest(name, parameters)}")
