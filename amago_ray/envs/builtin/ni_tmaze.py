"""NiTMaze: the T-maze exactly as Ni et al. published it, for comparison with their numbers."""

from __future__ import annotations

from operator import index
from typing import Any

import gin
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.builtin.tmaze import DOWN, LEFT, NUM_ACTIONS, RIGHT, UP, TMaze


@gin.configurable
class NiTMaze(TMaze):
    """A corridor in which only being late is punished, and only the place at the very last step is rewarded.

    Corridor, cue and actions are those of `TMaze`. Every rollout lasts corridor_length + 1 steps, active
    corridor_length + 3, and terminates with reward 1 for an agent that stands in the arm that the cue said, else 0.
    Every step before costs `penalty` if the agent is farther from the junction after it than an agent on the shortest
    path, which visits the oracle in the active maze, could be. In an arm, the agent can go back to the junction.
    The best return is 1 in both mazes; without memory of the cue no policy expects more than 1/2.

    Observation, float32 (2,): 1 at the junction and in its arms, else 0; in an arm 1 (up) or -1 (down), at the cell of
    the cue 1 for up and -1 for down, the first time in a rollout that the agent is there, else 0.

    penalty: reward, 0 or below, of a step behind schedule; None for -1 / corridor_length.
    The other arguments and `info` are those of `TMaze`. Raises ValueError as it does.
    Source: Ni et al. 2023, arXiv 2307.03864, section 4.1.
    """

    def __init__(
        self,
        corridor_length: int = 50,
        active: bool = False,
        penalty: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(corridor_length, active, penalty, render_mode)
        if penalty is None:
            self.penalty = -1 / self.corridor_length
        self.observation_space = spaces.Box(
            np.array([0, -1], dtype=np.float32), np.array([1, 1], dtype=np.float32), dtype=np.float32
        )

    @property
    def env_name(self) -> str:
        return "Ni" + super().env_name

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The agent at the start, and a new cue. `options` are not used."""
        self._cue_seen = False
        return super().reset(seed=seed, options=options)

    def step(self, action: int | np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        action = index(action)
        if not 0 <= action < NUM_ACTIONS:
            raise ValueError(f"action={action!r}: must be an integer from 0 to {NUM_ACTIONS - 1}")
        self._steps += 1
        self._move(action)
        if self._steps < self.horizon:
            late = self._x < self._steps - self._start
            return self._observe(), self.penalty if late else 0.0, False, False, {}
        success = float(self._turn == self._goal)
        return self._observe(), success, True, False, {"AMAGO_LOG_METRIC Success": success}

    def _move(self, action: int) -> None:
        """A move into a wall leaves the agent where it is."""
        if self._turn is not None:
            if action == (DOWN if self._turn == UP else UP):
                self._turn = None
        elif action in (UP, DOWN):
            if self._x == self._junction:
                self._turn = action
        elif action == RIGHT:
            self._x = min(self._x + 1, self._junction)
        elif action == LEFT:
            self._x = max(self._x - 1, 0)

    def _observe(self) -> NDArray[np.float32]:
        side = 0
        if self._x == self._oracle and not self._cue_seen:
            self._cue_seen = True
            side = 1 if self._goal == UP else -1
        elif self._turn is not None:
            side = 1 if self._turn == UP else -1
        return np.array((self._x == self._junction, side), dtype=np.float32)
