"""AMAGOKeyDoor: the dark room with key and door exactly as in AMAGO's experiments, to compare with their numbers."""

from __future__ import annotations

from operator import index
from typing import Any

import gin
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.builtin.dark_key_door import DarkKeyDoor
from amago_ray.envs.builtin.grid import NUM_MOVES


@gin.configurable
class AMAGOKeyDoor(DarkKeyDoor):
    """`DarkKeyDoor` that shows what an attempt has come to, and whose start, key and door are independent draws.

    Cells may thus be the same. The observation after the end of an attempt is the last one of that attempt: the
    step after it, whatever its action, puts the agent back to the start for reward 0. The rollout terminates after
    `horizon` steps, of which those steps are a part.

    Observation, float32 in [0, 1]. Dark, (4,): x / size, y / size, 1 with the key and else 0, and the steps of this
    attempt / max_episode_steps. Not dark, (8,): then x / size and y / size of the door and of the key.

    Actions, arguments and `info` are those of `DarkKeyDoor`. Raises ValueError as it does.
    Source: Grigsby et al. 2023, AMAGO, arXiv 2310.09971, after Laskin et al. 2022, arXiv 2210.14215.
    """

    def __init__(
        self,
        size: int = 9,
        max_episode_steps: int = 50,
        horizon: int = 500,
        dark: bool = True,
        randomize_actions: bool = False,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(size, max_episode_steps, horizon, dark, randomize_actions, render_mode)
        self.observation_space = spaces.Box(0.0, 1.0, shape=(4 if self.dark else 8,), dtype=np.float32)

    @property
    def env_name(self) -> str:
        return "AMAGO" + super().env_name

    def step(self, action: int | np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        try:
            move = self._actions[index(action)]
        except KeyError:
            raise ValueError(f"action={action!r}: must be an integer from 0 to {NUM_MOVES - 1}") from None
        self._rollout_steps += 1
        reward = 0.0
        if self._attempt_over:
            self._start_attempt()
        else:
            reward = self._move(move)
        terminated = self._rollout_steps == self.horizon
        return self._observe(), reward, terminated, False, self._metrics() if terminated else {}

    def _move(self, move: int) -> float:
        """The reward of one step of an attempt."""
        self._cell = self._neighbours[self._cell][move]
        self._attempt_steps += 1
        self._attempt_over = self._attempt_steps == self.max_episode_steps
        if not self._has_key:
            if self._cell != self._key:
                return 0.0
            self._has_key = True
            self._keys_found += 1
            return 1.0
        if self._cell != self._door:
            return 0.0
        self._successes += 1
        self._attempt_over = True
        return 1.0

    def _draw_cells(self) -> list[int]:
        return self.np_random.integers(self.size**2, size=3).tolist()

    def _start_attempt(self) -> NDArray[np.float32]:
        self._cell = self._start
        self._has_key = self._attempt_over = False
        self._attempt_steps = 0
        return self._observe()

    def _observe(self) -> NDArray[np.float32]:
        x, y = self._cell % self.size / self.size, self._cell // self.size / self.size
        entries = [x, y, float(self._has_key), self._attempt_steps / self.max_episode_steps]
        if not self.dark:
            entries += [place / self.size for place in (*self.door_cell, *self.key_cell)]
        return np.array(entries, dtype=np.float32)
