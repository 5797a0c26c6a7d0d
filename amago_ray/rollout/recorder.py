"""Builds the row tables of `data.Trajectory`, one environment per row of preallocated arrays."""

from __future__ import annotations

import numpy as np

from amago_ray.envs.makers import Transition
from amago_ray.messages import ACTION, REWARD, TERMINATED, Trajectory, TrajectoryId
from amago_ray.specs import OBS_PREFIX, ActionSpec, ObsSpec


class TrajectoryRecorder:
    """Writes the timesteps of N environments into preallocated columns and cuts finished trajectories out of them.

        recorder.begin(fresh, obs, ...)                    # row 0 of a rollout: what the policy sees first
        finished = recorder.add(transition, actions, ...)  # the next row of every environment

    num_envs: N. max_transitions: a longer rollout is cut; the next piece starts at the row where the last one ended.
    worker, incarnation: name the trajectories, together with a running number.
    """

    def __init__(
        self,
        obs_spec: ObsSpec,
        action_spec: ActionSpec,
        num_envs: int,
        max_transitions: int,
        worker: int,
        incarnation: int,
    ):
        def column(shape: tuple[int, ...], dtype: str) -> np.ndarray:
            return np.zeros((num_envs, max_transitions + 1, *shape), dtype)

        self._obs = {OBS_PREFIX + name: column(spec.shape, spec.dtype) for name, spec in obs_spec.items()}
        self._action = column(action_spec.shape, action_spec.dtype)
        self._reward = column((), "float32")
        self._terminated = column((), "bool")
        self._columns = {**self._obs, ACTION: self._action, REWARD: self._reward, TERMINATED: self._terminated}
        self._num_transitions = np.zeros(num_envs, dtype=np.int64)
        self._first_time_idx = np.zeros(num_envs, dtype=np.int64)
        self._weight_version = np.zeros(num_envs, dtype=np.int64)
        self._max_transitions = max_transitions
        self._worker, self._incarnation, self._sequence = worker, incarnation, 0

    @property
    def time_idx(self) -> np.ndarray:
        """(N,) int64: index, within its rollout, of each environment's current timestep."""
        return self._first_time_idx + self._num_transitions

    def begin(self, fresh: np.ndarray, obs: dict[str, np.ndarray]) -> None:
        """Start new rollouts in the environments of `fresh` (N,) bool; what they had unfinished is dropped."""
        rows = np.flatnonzero(fresh)
        self._num_transitions[rows] = self._first_time_idx[rows] = 0
        for name, column in self._obs.items():
            column[rows, 0] = obs[name.removeprefix(OBS_PREFIX)][rows]
        self._action[rows, 0] = 0
        self._reward[rows, 0] = 0
        self._terminated[rows, 0] = False

    def add(
        self, transition: Transition, actions: np.ndarray, env_names: list[str], weight_version: int
    ) -> list[Trajectory]:
        """Record one transition of every environment that stepped; returns the trajectories that this finished.

        actions: (N, ...) as stored. weight_version: of the weights that chose them.
        """
        stepped = transition.stepped
        rows = np.flatnonzero(stepped)
        self._weight_version[rows[self._num_transitions[rows] == 0]] = weight_version
        self._num_transitions[rows] += 1
        at = (rows, self._num_transitions[rows])
        for name, column in self._obs.items():
            column[at] = transition.obs[name.removeprefix(OBS_PREFIX)][rows]
        self._action[at] = actions[rows]
        self._reward[at] = transition.rewards[rows]
        self._terminated[at] = transition.terminated[rows]
        full = self._num_transitions == self._max_transitions
        ended = stepped & (transition.terminated | transition.truncated | full)
        return [
            self._cut(row, env_names[row], bool(transition.truncated[row])) for row in np.flatnonzero(ended).tolist()
        ]

    def _cut(self, row: int, env_name: str, truncated: bool) -> Trajectory:
        length = self._num_transitions[row]
        trajectory = Trajectory(
            id=TrajectoryId(self._worker, self._incarnation, self._sequence),
            env_name=env_name,
            columns={name: column[row, : length + 1].copy() for name, column in self._columns.items()},
            first_time_idx=int(self._first_time_idx[row]),
            truncated=truncated,
            weight_version=int(self._weight_version[row]),
        )
        self._sequence += 1
        # Where the rollout goes on, its next piece starts at the very row at which this one ended.
        for column in self._columns.values():
            column[row, 0] = column[row, length]
        self._first_time_idx[row] += length
        self._num_transitions[row] = 0
        return trajectory
