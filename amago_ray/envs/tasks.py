"""From what users write for their environments to functions that build them, in this process or in another."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, cast

import cloudpickle
import gymnasium as gym
from gymnasium.envs.registration import EnvCreator, EnvSpec, load_env_creator
from gymnasium.vector import VectorEnv

from amago_ray.envs.amago_env import env_name_of, names_its_own_tasks
from amago_ray.envs.pool import FAILURES, closing_env, one_line, spaces_of
from amago_ray.envs.processes.options import EnvProcesses
from amago_ray.warned import warn

EnvMaker = Callable[..., Any]  # returns a gym.Env or a VectorEnv
Entry = str | EnvMaker | tuple[str | EnvMaker, Mapping[str, Any]]

_EVERYWHERE = ("gymnasium", "amago_ray")  # packages whose ids are registered in every process


@dataclass(frozen=True)
class RegisteredEnv:
    """Builds the environment of a gymnasium id, also in a process where nothing has registered it.

    kwargs: as for `gymnasium.make`, as are those of a call, which win.
    """

    spec: EnvSpec
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, **kwargs: Any) -> gym.Env:
        return gym.make(self.spec, **{**self.kwargs, **kwargs})


@dataclass(frozen=True)
class Tasks:
    """The environments of a run, in a form that other processes can build.

    makers: one function per task. labels: of each task, what is appended to the name of its environments. registered:
    gymnasium ids that other processes may lack, for functions that call `gymnasium.make`.
    """

    makers: tuple[EnvMaker, ...]
    labels: tuple[str, ...]
    registered: Mapping[str, EnvSpec] = field(default_factory=dict)

    def register(self) -> None:
        """Let `gymnasium.make` know, in this process, the ids of the process that this comes from."""
        for name, spec in self.registered.items():
            gym.registry.setdefault(name, spec)


MakeEnv = Entry | Sequence[Entry] | Tasks


def tasks_of(make_env: MakeEnv) -> Tasks:
    """`make_env` as functions and labels.

    Of a list, entries whose environments have the same fixed name are told apart by their place, as in "reach (2)",
    with a warning; to see that, an environment of each entry is built, unless `remember` was told of one.

    Raises ValueError for an environment that cannot be built, TypeError for what stands for no environment.
    """
    if isinstance(make_env, Tasks):
        return make_env
    entries = entries_of(make_env)
    return Tasks(tuple(maker_of(entry) for entry in entries), _labels(entries))


def sendable_tasks(make_env: MakeEnv) -> Tasks:
    """`tasks_of`, for other processes. Raises ValueError as well for an id that cannot be sent."""
    tasks = tasks_of(make_env)
    for maker in tasks.makers:
        if isinstance(maker, RegisteredEnv) and not _is_sendable(maker.spec):
            raise ValueError(
                f"the environment {maker.spec.id} cannot be sent to other processes: register it with an entry point "
                "that holds no locks, files or open connections"
            )
    return replace(tasks, registered={**tasks.registered, **_registered_here()})  # `tasks` may have come from elsewhere


def entries_of(make_env: MakeEnv) -> list[Entry]:
    """The entries of `make_env`, which may be a single one. Raises ValueError for an empty list."""
    if isinstance(make_env, Tasks):
        return list(make_env.makers)
    if not isinstance(make_env, (list, tuple)) or _is_pair(make_env):
        return [make_env]  # type: ignore[list-item]  # the pair of an id and its settings
    if not make_env:
        raise ValueError("make_env is an empty list: it needs at least one environment")
    return list(make_env)


def maker_of(entry: Entry) -> EnvMaker:
    """A function that builds what `entry` stands for. Raises TypeError if it stands for no environment."""
    _check_entry(entry)
    what, kwargs = _parts(entry)
    if isinstance(what, str):
        module, _, name = what.rpartition(":")
        if module:
            importlib.import_module(module)
        if name not in gym.registry:  # gymnasium knows what else it may mean, or says what is near
            return partial(gym.make, what, **kwargs)
        return RegisteredEnv(_with_own_entry_point(gym.registry[name]), kwargs)
    return partial(what, **kwargs) if kwargs else what


def entry_name(entry: Entry) -> str:
    """What messages call an entry whose environment is not there."""
    what, kwargs = _parts(entry)
    if kwargs:
        return f"{entry_name(what)} with {dict(kwargs)}"
    function = what.func if isinstance(what, partial) else what
    return what if isinstance(what, str) else getattr(function, "__qualname__", repr(what))


def build(entry: Entry, name: str | None = None) -> Any:
    """The environment, or VectorEnv of one, of `entry`. name: that messages call it by; None for that of the entry.

    Raises TypeError if it stands for no environment, and ValueError, in one line, for anything that building raises.
    """
    _check_entry(entry)
    try:
        return sized(maker_of(entry), 1, count())()
    except FAILURES as error:
        raise not_built(name or entry_name(entry), error) from error


def not_built(name: str, error: BaseException | None) -> ValueError:
    return ValueError(f"building the environment {name} failed with {one_line(error)}")


def sized(maker: EnvMaker, num_envs: int, seeds: Iterator[int]) -> EnvMaker:
    """`maker` without parameters: one of `num_envs` is given it, and one of `seed` besides the next of `seeds`."""
    if isinstance(maker, RegisteredEnv):
        return maker
    parameters = parameters_of(maker)
    if "num_envs" not in parameters:
        return maker
    if "seed" not in parameters:
        return partial(maker, num_envs=num_envs)
    return lambda: maker(num_envs=num_envs, seed=next(seeds))


def parameters_of(maker: EnvMaker) -> Mapping[str, inspect.Parameter]:
    """The parameters that `maker` takes; none where its arguments do not fit, which a call of it says best."""
    try:
        return inspect.signature(maker).parameters
    except (TypeError, ValueError):
        return {}


@dataclass(frozen=True)
class _Built:
    """What an environment that `entry` has built was.

    name: None for one that names its own tasks. num_envs: of a VectorEnv; None for a plain one. spaces: of observations
    and actions.
    """

    entry: Entry
    name: str | None
    num_envs: int | None
    spaces: tuple[gym.Space, gym.Space]


# By the identity of the entry, which is kept here so that it holds. Building an environment may take seconds: one
# process does it once.
_built: dict[int, _Built] = {}
_told: set[tuple[int, ...]] = (
    set()
)  # lists, by the identities of their entries, of which it was said who is named alike


def remember(entry: Entry, env: Any, name: str) -> None:
    """Keep what `tasks_of` and `fixed_num_envs` need of the environment that `entry` has built.

    name: that it has after a reset.
    """
    num_envs = env.num_envs if isinstance(env, VectorEnv) else None
    _built[id(entry)] = _Built(entry, None if names_its_own_tasks(env) else name, num_envs, spaces_of(env))


def remember_plain(entry: Entry, name: str | None, spaces: tuple[gym.Space, gym.Space]) -> None:
    """As `remember`, of an environment in another process. name: None for one that names its own tasks."""
    _built[id(entry)] = _Built(entry, name, None, spaces)


def remembered_spaces(entry: Entry) -> tuple[gym.Space, gym.Space] | None:
    """The spaces of the environment that `entry` has built when it was last tried."""
    return _built[id(entry)].spaces if id(entry) in _built else None


def fixed_num_envs(make_env: MakeEnv, processes: EnvProcesses | None = None) -> int | None:
    """How many environments a VectorEnv of a fixed size has; None where as many can be made as are wanted.

    processes: as of `make_pool`.
    """
    if processes is not None:  # they are plain ones, and to look would build one in this process
        return None
    entries = entries_of(make_env)
    make = maker_of(entries[0])
    if len(entries) > 1 or isinstance(make, RegisteredEnv) or "num_envs" in parameters_of(make):
        return None
    if id(entries[0]) in _built:
        return _built[id(entries[0])].num_envs
    with closing_env(make()) as env:
        return env.num_envs if isinstance(env, VectorEnv) else None


def distinct(entries: Sequence[Entry]) -> list[Entry]:
    """The entries without repetitions."""
    found: list[Entry] = []
    for entry in entries:
        if not any(_same(entry, other) for other in found):
            found.append(entry)
    return found


def _labels(entries: Sequence[Entry]) -> tuple[str, ...]:
    """ "" or " (2)", " (3)", ... for each entry; repetitions of an entry share its label."""
    different = distinct(entries)
    if len(different) == 1:
        return ("",) * len(entries)
    for entry in different:
        if id(entry) not in _built:
            with closing_env(build(entry)) as env:
                env.reset(seed=0)
                remember(entry, env, env_name_of(env))
    seen: Counter[str] = Counter()
    labels: list[str] = []
    for entry in different:
        name = _built[id(entry)].name
        if name is not None:
            seen[name] += 1
        labels.append(f" ({seen[name]})" if name is not None and seen[name] > 1 else "")
    repeated, identity = [name for name, times in seen.items() if times > 1], tuple(id(entry) for entry in different)
    if repeated and identity not in _told:
        _told.add(identity)
        warn(
            f"several tasks of the list are named {', '.join(repeated)}: by their place in it they are called "
            f"{repeated[0]}, {repeated[0]} (2) and so on; AMAGOEnv(env, env_name) gives them names of their own",
            stacklevel=2,
        )
    place = [next(i for i, other in enumerate(different) if _same(entry, other)) for entry in entries]
    return tuple(labels[i] for i in place)


def _same(entry: Entry, other: Entry) -> bool:
    """Whether two entries stand for one task: the same function, or equal ids with equal settings."""
    return entry is other or (not callable(entry) and not callable(other) and entry == other)


def _parts(entry: Entry) -> tuple[str | EnvMaker, Mapping[str, Any]]:
    """An id or function, and the arguments that it is given."""
    if isinstance(entry, str) or callable(entry):
        return entry, {}
    what, kwargs = entry
    return what, kwargs


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[1], Mapping)


def _check_entry(entry: Any) -> None:
    what = entry[0] if _is_pair(entry) else entry
    if not isinstance(what, str) and not callable(what):
        raise TypeError(
            f"make_env is {what!r}: it must be a gymnasium id, a function that returns an environment, a pair of "
            "either and a dict of its arguments, or a list of these"
        )


def _registered_here() -> dict[str, EnvSpec]:
    """The ids that scripts and other packages have registered in this process, less those that cannot be sent."""
    found = {}
    for name, spec in gym.registry.items():
        entry_point = spec.entry_point or spec.vector_entry_point
        if isinstance(entry_point, str) and entry_point.partition(":")[0].partition(".")[0] in _EVERYWHERE:
            continue
        own = _with_own_entry_point(spec)
        if _is_sendable(own):
            found[name] = own
    return found


def _with_own_entry_point(spec: EnvSpec) -> EnvSpec:
    """`spec` with what its entry point names where that lies in the script, which other processes cannot import."""
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith("__main__:"):
        return replace(spec, entry_point=cast(EnvCreator, load_env_creator(spec.entry_point)))
    return spec


def _is_sendable(spec: EnvSpec) -> bool:
    try:
        cloudpickle.dumps(spec)
    except Exception:  # whatever pickling a user's object may raise
        return False
    return True
