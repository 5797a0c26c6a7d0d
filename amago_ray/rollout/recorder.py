"""Builds the row tables of `messages.Trajectory`: the timesteps of all environments one after the other, in a ring."""

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

    A column is a ring of timesteps (R, N, ...), so that a step is written at once, whatever the environments are at.
    An environment's rollout lies in consecutive ones: it steps whenever the others do, from its begin to its end. The
    ring grows with the longest piece, by doubling.
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
        self._obs_names = list(obs_spec)
        self._shortest_piece, self._longest_piece = max(max_transitions - stagger, 1), max_transitions + stagger
        self._size = min(self._longest_piece, FIRST_CAPACITY) + 1
        self._columns = {
            name: np.zeros((self._size, num_envs, *shape), dtype) for name, (shape, dtype) in shapes.items()
        }
        self._now = 0  # where the newest timestep is
        self._num_transitions = np.zeros(num_envs, dtype=np.int64)
        self._first_time_idx = np.zeros(num_envs, dtype=np.int64)
        self._weight_version = np.zeros(num_envs, dtype=np.int64)
        self._lengths = [
            PieceLengths(max_transitions, stagger, (seed, first_env + row, incarnation)) for row in range(num_envs)
        ]
        self._max_transitions = np.array([lengths.draw() for lengths in self._lengths], dtype=np.int64)
        self._begun = True  # whether a piece may have begun since the last step
        self._steps_to_look = 0  # for so many more steps no piece is full, and the ring has room
        self._worker, self._incarnation, self._numbers = worker, incarnation, numbers or Numbers()

    def begin(self, fresh: np.ndarray, obs: dict[str, np.ndarray]) -> None:
        """Start new rollouts in the environments of `fresh` (N,) bool; what they had unfinished is dropped."""
        rows = fresh.nonzero()[0]
        self._num_transitions[rows] = self._first_time_idx[rows] = 0
        for name, column in self._columns.items():
            column[self._now, rows] = obs[name.removeprefix(OBS_PREFIX)][rows] if name.startswith(OBS_PREFIX) else 0
        self._look_again()

    def add(
        self, transition: Transition, actions: np.ndarray, env_names: list[str], weight_version: int
    ) -> dict[int, Trajectory]:
        """Record one transition of every environment that stepped; returns what this finished, by environment.

        actions: (N, ...) as stored. weight_version: of the weights that chose them.
        """
        if self._steps_to_look == 0:
            self._look_ahead()
        self._steps_to_look -= 1
        self._now = now = (self._now + 1) % self._size
        columns = self._columns
        for name in self._obs_names:
            columns[OBS_PREFIX + name][now] = transition.obs[name]
        columns[ACTION][now] = actions
        columns[REWARD][now] = transition.rewards
        columns[TERMINATED][now] = transition.terminated
        self._num_transitions += transition.stepped  # the others have no rollout under way
        if self._begun:
            self._weight_version[self._num_transitions == 1] = weight_version
            self._begun = False
        ended = transition.terminated | transition.truncated
        if self._steps_to_look == 0:
            ended |= self._num_transitions == self._max_transitions
        if not np.count_nonzero(ended):
            return {}
        finished = {
            row: self._cut(row, env_names[row], bool(transition.truncated[row])) for row in ended.nonzero()[0].tolist()
        }
        self._look_again()
        return finished

    def cut_all(self, env_names: list[str]) -> list[Trajectory]:
        """What has been recorded of unfinished rollouts, as if they had been truncated here. `begin` must follow."""
        return [self._cut(row, env_names[row], True) for row in np.flatnonzero(self._num_transitions).tolist()]

    def _look_again(self) -> None:
        """Pieces have begun."""
        self._begun, self._steps_to_look = True, 0

    def _look_ahead(self) -> None:
        """For how many steps nothing has to be looked at: until a piece can be full, or the ring, which grows here."""
        longest = int(self._num_transitions.max())
        if longest + 1 == self._size:
            self._grow()
        until_full = int((self._max_transitions - self._num_transitions).min())
        self._steps_to_look = min(until_full, self._size - 1 - longest)

    def _grow(self) -> None:
        """Twice the transitions, or as many as a piece can have; the oldest timestep becomes the first."""
        before, self._size = self._size, min(2 * (self._size - 1), self._longest_piece) + 1
        for name, column in self._columns.items():
            grown = np.zeros((self._size, *column.shape[1:]), column.dtype)
            newer = self._now + 1
            grown[before - newer : before] = column[:newer]
            grown[: before - newer] = column[newer:]
            self._columns[name] = grown
        self._now = before - 1

    def _cut(self, row: int, env_name: str, truncated: bool) -> Trajectory:
        """The piece that ends with the newest timestep; the next one begins there, unless the rollout is over."""
        length = int(self._num_transitions[row])
        first, end = self._now - length, self._now + 1
        columns = {
            name: column[first:end, row].copy()
            if first >= 0
            else np.concatenate((column[first:, row], column[:end, row]))
            for name, column in self._columns.items()
        }
        trajectory = Trajectory(
            id=TrajectoryId(self._worker, self._incarnation, self._numbers.draw()),
            env_name=env_name,
            columns=columns,
            first_time_idx=int(self._first_time_idx[row]),
            truncated=truncated,
            weight_version=int(self._weight_version[row]),
        )
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

        Pieces have the lengths of these settings, also where the state is of others: the ring has room for no more.
        Raises ValueError where it is of another number of environments.
        """
        if len(state["max_transitions"]) != len(self._max_transitions):
            raise ValueError(
                f"it had {len(state['max_transitions'])} environments and has {len(self._max_transitions)} now"
            )
        self._incarnation, self._numbers.next = state["incarnation"], state["sequence"]
        np.clip(state["max_transitions"], self._shortest_piece, self._longest_piece, out=self._max_transitions)
        self._look_again()
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
