"""Hindsight: trajectories that are changed as they are sampled."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import gin
import numpy as np

from amago_ray.messages import ACTION, REWARD, TERMINATED
from amago_ray.specs import OBS_PREFIX, ActionSpec, ObsSpec

if TYPE_CHECKING:
    import gymnasium as gym

ACHIEVED, DESIRED = OBS_PREFIX + "achieved_goal", OBS_PREFIX + "desired_goal"

Strategy = Literal["future", "final"]
Categories = Mapping[str, tuple[int, ...]]  # of the columns that hold some: how many there are of each entry
RewardFunction = Callable[[np.ndarray, np.ndarray, dict[str, Any]], np.ndarray]


class Relabeler(ABC):
    """Changes a trajectory at sampling time, inside the shard.

    It is sent to the shards, so it must be picklable and small.
    """

    @abstractmethod
    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A trajectory's table after relabelling.

        columns: the whole stored trajectory, T + 1 rows of each column (see `data.Trajectory`). Other draws share them,
        so they are read-only, and the answer holds new arrays for what it changes.
        The answer has the same columns, and may end earlier, but has no fewer than two rows. Its row 0 is the given
        one: rows left out at the beginning cannot be told, and all later ones would count as earlier than they were. It
        is checked, and taken to the stored dtypes.

        A third parameter, `first_time_idx`, is optional: where there is one, it is given the index of row 0 within the
        rollout, above 0 for the later pieces of a rollout that was cut.
        """

    def check_spaces(self, observation_space: gym.Space) -> None:  # noqa: B027 (optional hook)
        """Raises ValueError for observations that cannot be relabelled. Called once, before anything starts.

        For what a table does not tell: categories are stored counted from 0, whatever the `start` of their space.
        """


def categories_of(obs_spec: ObsSpec, action_spec: ActionSpec) -> dict[str, tuple[int, ...]]:
    """`Categories` of stored columns; the bits of an action are two each."""
    found = {OBS_PREFIX + name: spec.nvec for name, spec in obs_spec.items() if spec.nvec}
    if action_spec.kind == "multibinary":
        return found | {ACTION: (2,) * action_spec.vector_size}
    return found | ({ACTION: action_spec.nvec} if action_spec.nvec else {})


def relabeled(
    relabeler: Relabeler,
    columns: dict[str, np.ndarray],
    rng: np.random.Generator,
    first_time_idx: int = 0,
    categories: Categories | None = None,
) -> dict[str, np.ndarray]:
    """A relabeler's answer, in the dtypes of `columns`. Raises ValueError for one that is no table of theirs.

    first_time_idx: of row 0 within its rollout. categories: see `categories_of`; columns without are not held to any.
    """
    where = {"first_time_idx": first_time_idx} if _takes_first_time_idx(type(relabeler)) else {}
    given = {name: _read_only(column) for name, column in columns.items()}
    try:
        answer = relabeler(dict(given), rng, **where)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise ValueError(
            f"Experiment.relabeler_type={type(relabeler).__name__}: it writes into a column that it was given "
            f"({error}), which other draws share: let it change a copy, column.copy()"
        ) from error
    try:
        _check_table(answer, given)
        stored = {name: _as_stored(name, answer[name], column.dtype) for name, column in given.items()}
        for name, column in given.items():
            if stored[name] is not column:
                _check_values(name, stored[name], column, (categories or {}).get(name))
        return stored
    except ValueError as error:
        raise ValueError(f"Experiment.relabeler_type={type(relabeler).__name__}: {error}") from None


def _read_only(column: np.ndarray) -> np.ndarray:
    """The column itself, and not a copy, through which it cannot be changed."""
    view = column.view()
    view.flags.writeable = False
    return view


@cache
def _takes_first_time_idx(kind: type[Relabeler]) -> bool:
    parameters = inspect.signature(kind.__call__).parameters.values()
    return any(p.name == "first_time_idx" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _check_table(answer: Any, columns: dict[str, np.ndarray]) -> None:
    """Raises ValueError unless the answer has the same columns, and as many rows in each: two to those given."""
    if not isinstance(answer, Mapping):
        raise ValueError(f"it answered {type(answer).__name__}; it must be a dict of the columns it was given")
    if answer.keys() != columns.keys():
        lacks, has = sorted(columns.keys() - answer.keys()), sorted(map(str, answer.keys() - columns.keys()))
        raise ValueError(f"its answer lacks the columns {lacks}, and has {has} in excess; it must have those given")
    most = len(columns[REWARD])
    shapes = {name: np.shape(answer[name]) for name in columns}
    num_rows = (shapes[REWARD] or (0,))[0]
    for name, column in columns.items():
        if shapes[name] != (num_rows, *column.shape[1:]):
            raise ValueError(
                f"column {name!r} of its answer has shape {shapes[name]}, which with {num_rows} rewards must be "
                f"{(num_rows, *column.shape[1:])}"
            )
    if not 2 <= num_rows <= most:
        raise ValueError(f"its answer has {num_rows} rows; it must have between 2 and the {most} that it was given")


def _check_values(name: str, values: np.ndarray, given: np.ndarray, nvec: tuple[int, ...] | None) -> None:
    """Raises ValueError for what is not finite, or no category, where what was given is, and for no stored action."""
    if values.dtype.kind == "f":
        wrong = values[~np.isfinite(values)]
        if wrong.size and np.isfinite(given).all():
            raise ValueError(f"column {name!r} of its answer holds {wrong[0]}, which is not finite")
    if nvec is not None:
        _check_categories(name, values, given, nvec)
    elif name == ACTION and values.dtype.kind in "if":
        low, high = (0, None) if values.dtype.kind == "i" else (-1.0, 1.0)
        wrong = values[(values < min(low, given.min())) | (high is not None and values > max(high, given.max()))]
        if wrong.size:
            asked = "integers counted from 0" if high is None else "from -1 to 1"
            raise ValueError(f"column {name!r} of its answer holds {wrong[0]}; stored actions are {asked}")


def _check_categories(name: str, values: np.ndarray, given: np.ndarray, nvec: tuple[int, ...]) -> None:
    limits = np.broadcast_to(np.reshape(nvec, values.shape[1:]), values.shape)
    wrong = (values < 0) | (values >= limits)
    if wrong.any() and ((given >= 0) & (given < limits[0])).all():
        raise ValueError(
            f"column {name!r} of its answer holds {values[wrong][0]}; its categories are stored as 0 to "
            f"{limits[wrong][0] - 1}"
        )


def _as_stored(name: str, values: Any, dtype: np.dtype) -> np.ndarray:
    """A column in its stored dtype. Raises ValueError for values that are no numbers, or become others in it."""
    given = np.asarray(values)
    if given.dtype == dtype:
        return given
    if given.dtype.kind not in "biuf":
        raise ValueError(f"column {name!r} of its answer has dtype {given.dtype}; it must be {dtype}")
    with np.errstate(invalid="ignore", over="ignore"):
        stored = given.astype(dtype)
    if dtype.kind != "f" and (stored != given).any():
        raise ValueError(f"column {name!r} of its answer holds {given[stored != given][0]}, which is no {dtype}")
    return stored


def check_held(relabeler: str, achieved: np.ndarray, dtype: np.dtype, goal: str) -> None:
    """Raises ValueError for achieved goals that become others in `dtype`: a trajectory would not reach its own goal.

    relabeler: its name. goal: that of the observation that is to hold them.
    """
    if achieved.dtype == dtype:
        return
    with np.errstate(invalid="ignore", over="ignore"):
        changed = achieved.astype(dtype) != achieved
    if changed.any():
        raise ValueError(
            f"Experiment.relabeler_type={relabeler}: an 'achieved_goal' of {achieved.dtype} holds "
            f"{achieved[changed][0]}, which is no {dtype} as {goal!r} has: give both the same dtype"
        )


def check_counted_alike(relabeler: str, observation_space: gym.Space, goal: str) -> None:
    """Raises ValueError where an achieved goal, as it is stored, is another one in the observation named `goal`.

    Categories are stored counted from 0. relabeler: its name. Says nothing where an observation is missing.
    """
    from gymnasium import spaces  # which shards, who do not ask this, do without

    from amago_ray.envs.spaces import ObsConverter

    stored = ObsConverter(observation_space).meaning
    if not isinstance(observation_space, spaces.Dict) or not {"achieved_goal", goal} <= stored.keys():
        return
    (_, _, achieved, start), (_, _, desired, begin) = stored["achieved_goal"], stored[goal]
    shifted = (start or [0] * len(begin)) != (begin or [0] * len(start))
    fewer = bool(desired) and any(n > there_are for n, there_are in zip(achieved, desired, strict=False))
    if shifted or fewer:
        raise ValueError(
            f"Experiment.relabeler_type={relabeler}: a goal that was achieved would become another, or none: "
            f"'achieved_goal' is {observation_space['achieved_goal']} and {goal!r} is {observation_space[goal]}; give "
            "both the same start, from which categories are counted, and the latter no fewer of them"
        )


@gin.configurable
class HindsightRelabeler(Relabeler):
    """Trains on some trajectories as if a goal that they came to reach had been desired from the start.

    For Dict observations with "achieved_goal" and "desired_goal", as in gymnasium-robotics. The goal is a part of every
    observation that the policy remembers, so a trajectory gets one goal for all its rows: the new goal replaces the
    desired one, all rewards are computed anew, those that the policy sees as previous rewards too, and the trajectory
    ends, terminated, with the first transition that reaches the goal.

    A goal that the first row has achieved already is not chosen: the trajectory would be over before it begins. Where
    none is left, the trajectory stays as it is. Of a rollout that was cut into pieces, each is relabelled by itself.

    strategy: "future" takes the goal of a uniformly drawn row after the first. Each transition before that row is thus
    trained towards a goal drawn uniformly from what was achieved after it, which is the strategy of that name for
    single transitions. "final" takes the goal of the last row.
    probability: of relabelling a sampled trajectory.
    tolerance: largest Euclidean distance at which a goal counts as reached; 0 for equality.
    reward_fn: (achieved goals (n, ...), desired goals (n, ...), {}) -> rewards (n,), like the `compute_reward` of
    goal-conditioned environments; None for 1 where the goal is reached and else 0.
    Raises ValueError for an argument out of range, for trajectories without goals, or with achieved ones that the dtype
    of desired ones cannot hold, and for categories that are counted otherwise, or are fewer, where they are desired.
    Source: Andrychowicz et al. 2017, arXiv 1707.01495, sections 3.2 and 4.5.
    """

    def __init__(
        self,
        strategy: Strategy = "future",
        probability: float = 0.8,
        tolerance: float = 0.0,
        reward_fn: RewardFunction | None = None,
    ):
        if strategy not in get_args(Strategy):
            raise ValueError(
                f"HindsightRelabeler.strategy={strategy!r}: use one of {', '.join(map(repr, get_args(Strategy)))}"
            )
        if not 0 <= probability <= 1:
            raise ValueError(f"HindsightRelabeler.probability={probability!r}: it must be between 0 and 1")
        if not tolerance >= 0:
            raise ValueError(f"HindsightRelabeler.tolerance={tolerance!r}: it must be a distance of 0 or more")
        self.strategy, self.probability, self.tolerance, self.reward_fn = strategy, probability, tolerance, reward_fn

    def __call__(
        self, columns: dict[str, np.ndarray], rng: np.random.Generator, first_time_idx: int = 0
    ) -> dict[str, np.ndarray]:
        """See `Relabeler`. first_time_idx: 0 for the start of a rollout, whose first row nothing led to."""
        achieved = self._achieved_goals(columns)
        if rng.random() >= self.probability:
            return columns
        candidates = np.flatnonzero(~self._reached(achieved, achieved[0]))
        if self.strategy == "final":
            candidates = candidates[candidates == len(achieved) - 1]
        if not len(candidates):
            return columns
        goal = achieved[rng.choice(candidates)]
        reached = self._reached(achieved, goal)
        num_rows = int(reached.argmax()) + 1
        relabeled = {name: column[:num_rows] for name, column in columns.items()}
        relabeled[DESIRED] = np.broadcast_to(goal, (num_rows, *goal.shape)).astype(columns[DESIRED].dtype)
        relabeled[REWARD] = self._rewards(relabeled, reached[:num_rows], first_time_idx)
        relabeled[TERMINATED] = reached[:num_rows]  # that is: in the last row
        return relabeled

    def check_spaces(self, observation_space: gym.Space) -> None:
        check_counted_alike(type(self).__name__, observation_space, "desired_goal")

    def _achieved_goals(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        if ACHIEVED not in columns or DESIRED not in columns or columns[ACHIEVED].shape != columns[DESIRED].shape:
            shapes = {k.removeprefix(OBS_PREFIX): c.shape[1:] for k, c in columns.items() if k.startswith(OBS_PREFIX)}
            raise ValueError(
                "Experiment.relabeler_type=HindsightRelabeler: observations need an 'achieved_goal' and a "
                f"'desired_goal' of the same shape, and they have {shapes}"
            )
        check_held(type(self).__name__, columns[ACHIEVED], columns[DESIRED].dtype, "desired_goal")
        return columns[ACHIEVED]

    def _reached(self, achieved: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """(n,) bool: which of the achieved goals (n, ...) count as `goal`."""
        if self.tolerance == 0:
            return (achieved == goal).reshape(len(achieved), -1).all(axis=1)
        apart = (achieved.astype(np.float64) - goal).reshape(len(achieved), -1)
        return (apart * apart).sum(axis=1) <= self.tolerance**2

    def _rewards(self, columns: dict[str, np.ndarray], reached: np.ndarray, first_time_idx: int) -> np.ndarray:
        if self.reward_fn is None:
            return reached.astype(np.float32)
        rewards = np.array(self.reward_fn(columns[ACHIEVED], columns[DESIRED], {}), dtype=np.float32)
        if rewards.shape != reached.shape:
            raise ValueError(
                f"HindsightRelabeler.reward_fn={self.reward_fn!r}: it gave rewards of shape {rewards.shape} for "
                f"{len(reached)} goals; it must give one for each"
            )
        if first_time_idx == 0:  # nothing leads to the first row of a rollout, whatever the goal
            rewards[0] = 0.0
        return rewards
