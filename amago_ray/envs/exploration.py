"""Exploration: what happens to the policy's actions before the environments see them.

One wrapper serves all N environments of a worker at once:

    actions = explore(policy(obs), time_idx, legal)    # every step
    explore.begin(fresh)                               # where a rollout starts, before its first action

Validation never explores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gin
import numpy as np

from amago_ray.envs.spaces import BOUNDS_TOLERANCE, is_legal, sample_actions
from amago_ray.messages import CannotGoOn
from amago_ray.specs import ActionSpec


class BadExploration(CannotGoOn, ValueError):
    """What a class of one's own explores with are no actions."""


class ExplorationWrapper(ABC):
    """Base of all exploration. Override `explore`, and the rest only where there is more state.

    num_envs: N. action_spec: how actions are stored. seed: of this wrapper's own random stream, `self.rng`.
    steps: (N,) int64, actions taken so far in each environment; schedules anneal over it.
    legal: (N, vector_size), nonzero where a category of the coming action may be chosen; None where all may. What
    `explore` chooses against it is replaced by the policy's own choice.
    """

    def __init__(self, num_envs: int, action_spec: ActionSpec, seed: int) -> None:
        self.num_envs = num_envs
        self.action_spec = action_spec
        self.rng = np.random.default_rng(seed)
        self.steps = np.zeros(num_envs, np.int64)
        self.legal: np.ndarray | None = None

    @abstractmethod
    def explore(self, actions: np.ndarray, time_idx: np.ndarray) -> np.ndarray:
        """The actions to take, a new array. actions: (N, ...) in stored form. time_idx: (N,) step in the rollout.

        Stored are continuous actions as numbers between -1 and 1, all others as integers counted from 0.
        """

    def __call__(self, actions: np.ndarray, time_idx: np.ndarray, legal: np.ndarray | None = None) -> np.ndarray:
        """`explore` among the `legal` actions, and one more step counted in every environment.

        Raises BadExploration where `explore` of a class of one's own returns what are no stored actions.
        """
        self.legal = legal
        own_class = type(self).__module__ != __name__
        explored = self.explore(actions.copy() if own_class else actions, time_idx)  # one may write into what it gets
        if own_class:
            explored = _checked(type(self).__name__, explored, actions.shape, self.action_spec)
        self.steps += 1
        return explored if legal is None else np.where(is_legal(self.action_spec, explored, legal), explored, actions)

    def begin(self, fresh: np.ndarray) -> None:  # noqa: B027 (optional hook)
        """A new rollout starts where `fresh` (N,) is True."""

    def metrics(self) -> dict[str, float]:
        """Numbers worth logging about the last step."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, as plain Python values."""
        return {"steps": self.steps.tolist(), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, wholly or not at all. Raises ValueError if it is of another number of environments."""
        if len(state["steps"]) != self.num_envs:
            raise ValueError(f"the exploration state is of {len(state['steps'])} environments, not {self.num_envs}")
        rng = _stream(state["rng"])
        self.steps[:], self.rng = state["steps"], rng


class _EpsilonSchedule(ExplorationWrapper):
    """Explores with an amount eps in [0, 1] that `schedule` gives for each environment.

    Integer actions: uniform with probability eps. Continuous actions: a + eps * N(0, 1), clipped to [-1, 1].
    randomize_eps: scale eps by a factor drawn from [0, 1) for each rollout. Environments draw from streams of their
    own: that one of them begins a rollout more, because it broke down, changes nothing for the others.
    hold_steps: what is drawn (whether to explore and by which action; the noise) is drawn anew at a step with
    probability 1 / hold_steps, and where a rollout begins. So eps stays the part of the steps that explore, and what
    they do lasts: an action drawn at every step undoes what the last one did, and reaches nothing that is far
    (temporally extended eps-greedy, Dabney et al., arXiv 2006.01782).
    """

    def __init__(
        self,
        num_envs: int,
        action_spec: ActionSpec,
        seed: int,
        steps_anneal: int,
        randomize_eps: bool,
        hold_steps: float = 1.0,
    ) -> None:
        super().__init__(num_envs, action_spec, seed)
        if steps_anneal < 1:
            raise ValueError(f"steps_anneal={steps_anneal}: it must be at least 1")
        if not hold_steps >= 1.0:
            raise ValueError(f"hold_steps={hold_steps}: it must be at least 1, which holds nothing")
        self.steps_anneal = steps_anneal
        self._anneal_ends = np.array((0.0, steps_anneal))
        self.randomize_eps = randomize_eps
        self.hold_steps = hold_steps
        self._held: dict[str, np.ndarray] = {}
        self._stale = np.ones(num_envs, bool)  # what is held there ends with this step
        self._factor = np.ones(num_envs)
        streams = np.random.SeedSequence(seed).spawn(num_envs if randomize_eps else 0)
        self._factor_rngs = [np.random.default_rng(stream) for stream in streams]
        self._eps = np.zeros(num_envs)

    @abstractmethod
    def schedule(self, time_idx: np.ndarray) -> np.ndarray:
        """(N,) eps before the rollout's factor."""

    def annealed(self, start: float, end: float) -> np.ndarray:
        """(N,) linear from `start` to `end` over the first `steps_anneal` steps of each environment."""
        return np.interp(self.steps, self._anneal_ends, (start, end))

    def begin(self, fresh: np.ndarray) -> None:
        self._stale |= fresh
        if self.randomize_eps:
            for row in fresh.nonzero()[0].tolist():
                self._factor[row] = self._factor_rngs[row].random()

    def explore(self, actions: np.ndarray, time_idx: np.ndarray) -> np.ndarray:
        self._eps = self.schedule(time_idx) * self._factor
        eps = self._eps if actions.ndim == 1 else self._eps.reshape(-1, *[1] * (actions.ndim - 1))
        anew = self._anew()
        if self.action_spec.kind == "continuous":
            noise = self._hold("noise", self.rng.standard_normal(actions.shape), anew)
            return np.clip(actions + eps * noise, -1.0, 1.0).astype(actions.dtype)
        # Both are drawn at every step: what one environment does must not move the stream of the others.
        explores = self._hold("chance", self.rng.random(eps.shape), anew) < eps
        uniform = self._hold("action", sample_actions(self.action_spec, self.num_envs, self.rng, self.legal), anew)
        explored = actions.copy()
        np.copyto(explored, uniform, where=explores)
        return explored

    def _anew(self) -> np.ndarray | None:
        """(N,) where this step draws anew; None is everywhere."""
        if self.hold_steps == 1.0:
            return None
        anew = self._stale | (self.rng.random(self.num_envs) < 1.0 / self.hold_steps)
        self._stale[:] = False
        return anew

    def _hold(self, name: str, drawn: np.ndarray, anew: np.ndarray | None) -> np.ndarray:
        """`drawn` where it is `anew`, what was drawn before elsewhere."""
        if anew is None:
            return drawn
        if name in self._held:
            drawn = np.where(anew.reshape(-1, *[1] * (drawn.ndim - 1)), drawn, self._held[name])
        self._held[name] = drawn
        return drawn

    def metrics(self) -> dict[str, float]:
        return {"eps": float(self._eps.mean())}

    def state_dict(self) -> dict[str, Any]:
        streams = [rng.bit_generator.state for rng in self._factor_rngs]
        held = {name: drawn.tolist() for name, drawn in self._held.items()}
        return {
            **super().state_dict(),
            "factor": self._factor.tolist(),
            "factor_rngs": streams,
            "held": held,
            "stale": self._stale.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As above. The state may be of other settings, or another class: what it lacks for these is drawn anew."""
        streams = [_stream(stream) for stream in state.get("factor_rngs", ())]
        goes_on = self.randomize_eps and len(streams) == self.num_envs
        factor = np.array(state["factor"] if goes_on else np.ones(self.num_envs), np.float64)
        held = state.get("held", {}) if self.hold_steps > 1.0 else {}
        held = {name: np.array(drawn) for name, drawn in held.items()}
        stale = np.array(state.get("stale", np.ones(self.num_envs)), bool)
        super().load_state_dict(state)
        self._factor, self._held, self._stale = factor, held, stale
        if goes_on:
            self._factor_rngs = streams


@gin.configurable
class EpsilonGreedy(_EpsilonSchedule):
    """Explores by an eps that falls linearly from `eps_start` to `eps_end`.

    steps_anneal: steps of one environment that the fall takes. randomize_eps: scale eps by a factor drawn from [0, 1)
    for each rollout, so that the environments of a worker explore by different amounts. hold_steps: for how many
    steps, on average, an exploratory action or noise is held (at least 1, which draws at every step): more reaches
    what is far, such as the top of the hill that a car has to swing up to (arXiv 2006.01782).
    """

    def __init__(
        self,
        num_envs: int,
        action_spec: ActionSpec,
        seed: int,
        eps_start: float = 1.0,
        eps_end: float = 0.05,
        steps_anneal: int = 1_000_000,
        randomize_eps: bool = True,
        hold_steps: float = 1.0,
    ) -> None:
        super().__init__(num_envs, action_spec, seed, steps_anneal, randomize_eps, hold_steps)
        _check_fractions(eps_start=eps_start, eps_end=eps_end)
        self.eps_start, self.eps_end = eps_start, eps_end

    def schedule(self, time_idx: np.ndarray) -> np.ndarray:
        return self.annealed(self.eps_start, self.eps_end)


@gin.configurable
class BilevelEpsilonGreedy(_EpsilonSchedule):
    """Explores by an eps that falls over training and, linearly, within each rollout.

    rollout_horizon: steps over which it falls within a rollout. At a rollout's first step eps falls from
    `eps_start_start` to `eps_start_end` over training; at the horizon and after from `eps_end_start` to `eps_end_end`.
    steps_anneal, randomize_eps, hold_steps: as in `EpsilonGreedy`.
    """

    def __init__(
        self,
        num_envs: int,
        action_spec: ActionSpec,
        seed: int,
        rollout_horizon: int,
        eps_start_start: float = 1.0,
        eps_start_end: float = 0.05,
        eps_end_start: float = 0.8,
        eps_end_end: float = 0.01,
        steps_anneal: int = 1_000_000,
        randomize_eps: bool = True,
        hold_steps: float = 1.0,
    ) -> None:
        super().__init__(num_envs, action_spec, seed, steps_anneal, randomize_eps, hold_steps)
        _check_fractions(
            eps_start_start=eps_start_start,
            eps_start_end=eps_start_end,
            eps_end_start=eps_end_start,
            eps_end_end=eps_end_end,
        )
        if rollout_horizon < 1:
            raise ValueError(f"rollout_horizon={rollout_horizon}: it must be at least 1")
        self.rollout_horizon = rollout_horizon
        self.eps_start_start, self.eps_start_end = eps_start_start, eps_start_end
        self.eps_end_start, self.eps_end_end = eps_end_start, eps_end_end

    def schedule(self, time_idx: np.ndarray) -> np.ndarray:
        first = self.annealed(self.eps_start_start, self.eps_start_end)
        last = self.annealed(self.eps_end_start, self.eps_end_end)
        return first + (last - first) * np.minimum(time_idx / self.rollout_horizon, 1.0)


@gin.configurable
class TMazeExploration(EpsilonGreedy):
    """Explores as `EpsilonGreedy` at both ends of a T-Maze, and once in two rollouts on the way between (AMAGO).

    A corridor whose steps are all chosen at random is hardly ever passed; the cue and the junction need exploring.
    horizon: steps of a rollout. start_window, end_window: eps is 0.5 / horizon at the steps t with
    start_window < t < horizon - end_window. eps_start, eps_end, steps_anneal, randomize_eps, hold_steps: as in
    `EpsilonGreedy`.
    """

    def __init__(
        self,
        num_envs: int,
        action_spec: ActionSpec,
        seed: int,
        horizon: int,
        start_window: int = 0,
        end_window: int = 3,
        eps_start: float = 1.0,
        eps_end: float = 0.01,
        steps_anneal: int = 100_000,
        randomize_eps: bool = False,
        hold_steps: float = 1.0,
    ) -> None:
        super().__init__(num_envs, action_spec, seed, eps_start, eps_end, steps_anneal, randomize_eps, hold_steps)
        if horizon < 1:
            raise ValueError(f"horizon={horizon}: it must be at least 1")
        for name, window in (("start_window", start_window), ("end_window", end_window)):
            if window < 0:
                raise ValueError(f"{name}={window}: it must be at least 0")
        self.horizon, self.start_window, self.end_window = horizon, start_window, end_window

    def schedule(self, time_idx: np.ndarray) -> np.ndarray:
        between = (self.start_window < time_idx) & (time_idx < self.horizon - self.end_window)
        return np.where(between, 0.5 / self.horizon, super().schedule(time_idx))


def _stream(state: dict[str, Any]) -> np.random.Generator:
    """A random stream in this state. Raises ValueError or TypeError where it is none."""
    rng = np.random.default_rng(0)
    rng.bit_generator.state = state
    return rng


def _checked(name: str, explored: Any, shape: tuple[int, ...], spec: ActionSpec) -> np.ndarray:
    """What the class `name` returned as stored actions. Raises BadExploration, in one line, where it is none."""
    returned = f"{name}.explore returned"
    try:
        array = np.asarray(explored)
    except ValueError as error:  # lists of different lengths
        raise BadExploration(f"{returned} {explored!r:.80}, which is no array: it must have shape {shape}") from error
    continuous = spec.kind == "continuous"
    if array.dtype.kind not in ("biuf" if continuous else "biu"):
        what = repr(explored) if array.dtype == object else f"an array of dtype {array.dtype}"
        raise BadExploration(f"{returned} {what:.80}: {spec.kind} actions are of dtype {spec.dtype}")
    if array.shape != shape:
        raise BadExploration(f"{returned} an array of shape {array.shape}: these actions have shape {shape}")
    slack = BOUNDS_TOLERANCE if continuous else 0
    low, high = (-1, 1) if continuous else (0, np.subtract(spec.nvec or 2, 1))
    inside = (array >= low - slack) & (array <= high + slack)  # False for NaN
    if not inside.all():
        least = np.broadcast_to(high, array.shape)[~inside][0]
        remedy = ", as numpy.clip makes them" if continuous else ""
        raise BadExploration(
            f"{returned} {array[~inside][0]}: {spec.kind} actions are between {low} and {least} in stored form{remedy}"
        )
    return (np.clip(array, low, high) if continuous else array).astype(spec.dtype, copy=False)


def _check_fractions(**settings: float) -> None:
    for name, value in settings.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}={value}: it must be between 0 and 1")
