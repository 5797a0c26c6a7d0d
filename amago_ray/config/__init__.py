"""gin: load configurations, answer mistakes with the nearest known name, carry settings to other processes."""

from amago_ray.config.apart import apart
from amago_ray.config.left_out import do_without, left_out, refuse, refuse_left_out
from amago_ray.config.mistakes import (
    as_raised,
    explain,
    explain_call,
    nearest,
    reject_unknown_arguments,
    without_gin_calls,
)
from amago_ray.config.reader import accept_amago_arguments, bind, is_bound, load, restore
from amago_ray.config.registry import configurable_names
from amago_ray.config.text import literal, record, snapshot
from amago_ray.config.unread import tell_unread
from amago_ray.config.unused import refuse_unknown_macros

__all__ = [
    "accept_amago_arguments",
    "apart",
    "as_raised",
    "bind",
    "configurable_names",
    "do_without",
    "explain",
    "explain_call",
    "is_bound",
    "left_out",
    "literal",
    "load",
    "nearest",
    "record",
    "refuse",
    "refuse_left_out",
    "refuse_unknown_macros",
    "reject_unknown_arguments",
    "restore",
    "snapshot",
    "tell_unread",
    "without_gin_calls",
]
