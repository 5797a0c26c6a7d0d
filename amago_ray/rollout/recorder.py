"""Builds the row tables of `messages.Trajectory`, one environment per row of arrays that grow with its rollouts."""

from __future__ import annotations

from typing import Any

import numpy as np

from amago_ray.envs.makers import Transition
from amago_ray.messages import ACTION, REWARD, TERMINATED, Trajectory, TrajectoryId
from amago_ray.specs import OBS_PREFIX, ActionSpec, ObsSpec

FIRST_CAPACITY = 64  # transitions for which there is room at first


class TrajectoryRecorder:
    """Writes the timesteps of N environments into columns and cuts finished trajectories out of them.

        recorder.begin(fresh, obs, ...)                    # row 0 of a rollout: what the policy sees first
        finished = recorder.add(transition, actions, ...)  # the next row of every environment

    num_envs: N. max_transitions: a longer rollout is cut; the next piece starts at the row where the last one ended.
    stagger: pieces of a long rollout have random lengths, uniform in max_transitions -+ stagger, instead of equal ones.
    worker, incarnation: name the trajectories, together with a running number. seed, first_env: of the random lengths,
    which environment first_env + i draws for itself. numbers: the running ones, where several recorders share them.

    The columns grow with the longest piece, by doubling: what is written is copied once more on average, and memory
    that no row has reached is asked for but not touched.
    """

    def __init__(
        self,
        obs_spec: ObsSpec,
        action_spec: ActionSpec,
        num_envs: int,
        max_transitions: int,
        worker: int,
        incarnation: int,
        stagger: int = 0,
        seed: int = 0,
        first_env: int = 0,
        numbers: Numbers | None = None,
    ):
        shapes = {OBS_PREFIX + name: (spec.shape, spec.dtype) for name, spec in obs_spec.items()} | {
            ACTION: (action_spec.shape, action_spec.dtype),
            REWARD: ((), "float32"),
            TERMINATED: ((), "bool"),
        }
        self._capacity = min(max_transitions + stagger, FIRST_CAPACITY)
        self._columns = {
            name: np.zeros((num_envs, self._capacity + 1, *shape), dtype) for name, (shape, dtype) in shapes.items()
        }
        self._num_transitions = np.zeros(num_envs, dtype=np.int64)
        self._first_time_idx = np.zeros(num_envs, dtype=np.int64)
        self._weight_version = np.zeros(num_envs, dtype=np.int64)
        self._lengths = [
            PieceLengths(max_transitions, stagger, (seed, first_env + row, incarnation)) for row in range(num_envs)
        ]
        self._max_transitions = np.array([lengths.draw() for lengths in self._lengths], dtype=np.int64)
        self._worker, self._incarnation, self._numbers = worker, incarnation, numbers or Numbers()

    def begin(self, fresh: np.ndarray, obs: dict[str, np.ndarray]) -> None:
        """Start new rollouts in the environments of `fresh` (N,) bool; what they had unfinished is dropped."""
        rows = np.flatnonzero(fresh)
        self._num_transitions[rows] = self._first_time_idx[rows] = 0
        for name, column in self._columns.items():
            column[rows, 0] = obs[name.removeprefix(OBS_PREFIX)][rows] if name.startswith(OBS_PREFIX) else 0

    def add(
        self, transition: Transition, actions: np.ndarray, env_names: list[str], weight_version: int
    ) -> dict[int, Trajectory]:
        """Record one transition of every environment that stepped; returns what this finished, by environment.

        actions: (N, ...) as stored. weight_version: of the weights that chose them.
        """
        stepped = transition.stepped
        rows = np.flatnonzero(stepped)
        self._weight_version[rows[self._num_transitions[rows] == 0]] = weight_version
        self._num_transitions[rows] += 1
        if self._num_transitions.max() > self._capacity:
            self._grow()
        at = (rows, self._num_transitions[rows])
        values = {ACTION: actions, REWARD: transition.rewards, TERMINATED: transition.terminated}
        for name, column in self._columns.items():
            source = values[name] if name in values else transition.obs[name.removeprefix(OBS_PREFIX)]
            column[at] = source[rows]
        full = self._num_transitions == self._max_transitions
        ended = stepped & (transition.terminated | transition.truncated | full)
        return {
            row: self._cut(row, env_names[row], bool(transition.truncated[row]))
            for row in np.flatnonzero(ended).tolist()
        }

    def cut_all(self, env_names: list[str]) -> list[Trajectory]:
        """What has been recorded of unfinished rollouts, as if they had been truncated here. `begin` must follow."""
        return [self._cut(row, env_names[row], True) for row in np.flatnonzero(self._num_transitions).tolist()]

    def _grow(self) -> None:
        """Twice the capacity."""
        self._capacity *= 2
        for name, column in self._columns.items():
            grown = np.zeros((len(column), self._capacity + 1, *column.shape[2:]), column.dtype)
            # A row's last transition may not be written yet; then it is not there to be copied either.
            for row, last in enumerate(self._num_transitions.tolist()):
                written = column[row, : last + 1]
                grown[row, : len(written)] = written
            self._columns[name] = grown

    def _cut(self, row: int, env_name: str, truncated: bool) -> Trajectory:
        length = self._num_transitions[row]
        trajectory = Trajectory(
            id=TrajectoryId(self._worker, self._incarnation, self._numbers.draw()),
            env_name=env_name,
            columns={name: column[row, : length + 1].copy() for name, column in self._columns.items()},
            first_time_idx=int(self._first_time_idx[row]),
            truncated=truncated,
            weight_version=int(self._weight_version[row]),
        )
        # Where the rollout goes on, its next piece starts at the very row at which this one ended.
        for column in self._columns.values():
            column[row, 0] = column[row, length]
        self._first_time_idx[row] += length
        self._num_transitions[row] = 0
        self._max_transitions[row] = self._lengths[row].draw()
        return trajectory

    def state_dict(self) -> dict[str, Any]:
        """What trajectories are named and cut by, but for rollouts that are unfinished; plain values."""
        return {
            "incarnation": self._incarnation,
            "sequence": self._numbers.next,
            "max_transitions": self._max_transitions.tolist(),
            "lengths": [lengths.rng.bit_generator.state for lengths in self._lengths],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Name and cut trajectories as from `state` on. `begin` must follow.

        Raises ValueError where it is of another number of environments.
        """
        if len(state["max_transitions"]) != len(self._max_transitions):
            raise ValueError(
                f"it had {len(state['max_transitions'])} environments and has {len(self._max_transitions)} now"
            )
        self._incarnation, self._numbers.next = state["incarnation"], state["sequence"]
        self._max_transitions[:] = state["max_transitions"]
        for lengths, rng in zip(self._lengths, state["lengths"], strict=True):
            lengths.rng.bit_generator.state = rng


class Numbers:
    """Running numbers. next: the one that comes."""

    def __init__(self) -> None:
        self.next = 0

    def draw(self) -> int:
        self.next += 1
        return self.next - 1


class PieceLengths:
    """The lengths at which the pieces of a rollout are cut: uniform in max_transitions -+ stagger, 1 at least."""

    def __init__(self, max_transitions: int, stagger: int, seed: tuple[int, ...]):
        self._max_transitions, self._stagger = max_transitions, stagger
        self.rng = np.random.default_rng(seed)

    def draw(self) -> int:
        return max(int(self.rng.integers(-self._stagger, self._stagger + 1)) + self._max_transitions, 1)
