"""DarkKeyDoor: find an invisible key, then an invisible door, again and again inside a single rollout."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.builtin import grid
from amago_ray.envs.builtin.arguments import check_flag, check_integer, check_render_mode
from amago_ray.envs.builtin.grid import NUM_MOVES
from amago_ray.envs.together import StepTogether, Together

CELL_PX = 24
FLOOR: grid.Color = (238, 238, 232)
DOOR: grid.Color = (140, 90, 50)


@gin.configurable
class DarkKeyDoor(gym.Env[NDArray[np.float32], np.int64]):
    """A room with a key and a door; after one lucky attempt an agent with memory walks straight to both.

    `reset` draws the task: three different cells for start, key and door. Stepping onto the key takes it, for reward
    1; the door is worth reward 1 to an agent that has the key, and nothing before. The door with the key (success), or
    `max_episode_steps` steps (time-out), end an attempt, and the same task starts again at once: the step that ends an
    attempt returns the first observation of the next one. The rollout is truncated after `horizon` steps.

    Actions: 0 stay, 1 left, 2 down, 3 right, 4 up. Moves off the grid leave the agent where it is.
    Observation, float32 in [0, 1]. Dark, (3,): x / size, y / size, and 1 at the first reading of an attempt and else
    0. Not dark, (8,): these three, then x / size and y / size of the key and of the door, and 1 with the key, else 0.

    `info` at the end of a rollout has "AMAGO_LOG_METRIC Successes" and "AMAGO_LOG_METRIC Keys Found", both counts over
    the whole rollout.

    size: cells on each side, at least 2. max_episode_steps: steps in one attempt. horizon: steps in one rollout.
    dark: hide key and door. randomize_actions: `reset` draws a permutation of the five actions for the whole rollout.
    Raises ValueError for an argument out of range, and for an action that is not one of the five.
    Source: the Dark Key-to-Door task of Laskin et al. 2022, arXiv 2210.14215. It differs from AMAGO's version of it,
    which is `AMAGOKeyDoor`, so that every rollout can be solved and memory is what it takes: start, key and door are
    never the same, the observation does not show the key that the agent has, nor the time, and no step is lost between
    two attempts.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(
        self,
        size: int = 9,
        max_episode_steps: int = 50,
        horizon: int = 500,
        dark: bool = True,
        randomize_actions: bool = False,
        render_mode: str | None = None,
    ) -> None:
        # Start, key and door need three cells.
        self.size = check_integer("size", size, at_least=2)
        self.max_episode_steps = check_integer("max_episode_steps", max_episode_steps, at_least=1)
        self.horizon = check_integer("horizon", horizon, at_least=1)
        self.dark = check_flag("dark", dark)
        self.randomize_actions = check_flag("randomize_actions", randomize_actions)
        self.render_mode = check_render_mode(render_mode)
        self.observation_space = spaces.Box(0.0, 1.0, shape=(3 if self.dark else 8,), dtype=np.float32)
        self.action_space = spaces.Discrete(NUM_MOVES)
        self._neighbours = grid.neighbours(self.size)
        self._same_actions = dict(enumerate(range(NUM_MOVES)))
        self._cell = self._attempt_steps = 0
        self._has_key = False
        # One row per cell, so that a step copies an observation instead of making it.
        cells = np.arange(self.size**2)
        self._readings = np.zeros((self.size**2, *self.observation_space.shape), dtype=np.float32)
        self._readings[:, 0] = cells % self.size / self.size
        self._readings[:, 1] = cells // self.size / self.size

    @property
    def env_name(self) -> str:
        mode = ("Dark" if self.dark else "Light") + "KeyDoor"
        return f"{mode}-{self.size}x{self.size}" + ("-RandomActions" if self.randomize_actions else "")

    @property
    def key_cell(self) -> tuple[int, int]:
        """(x, y) of the key, wherever the agent is."""
        return self._key % self.size, self._key // self.size

    @property
    def door_cell(self) -> tuple[int, int]:
        """(x, y) of the door."""
        return self._door % self.size, self._door // self.size

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new task and its first attempt. `options` are not used."""
        super().reset(seed=seed)
        self._start, self._key, self._door = self._draw_cells()
        self._actions = self._same_actions
        if self.randomize_actions:
            self._actions = dict(enumerate(self.np_random.permutation(NUM_MOVES).tolist()))
        self._rollout_steps = self._successes = self._keys_found = 0
        if not self.dark:
            self._readings[:, 3:7] = np.array([*self.key_cell, *self.door_cell], dtype=np.float32) / self.size
        return self._start_attempt(), {}

    def step(self, action: int | np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        try:
            move = self._actions[index(action)]
        except KeyError:
            raise ValueError(f"action={action!r}: must be an integer from 0 to {NUM_MOVES - 1}") from None
        self._cell = self._neighbours[self._cell][move]
        self._attempt_steps += 1
        self._rollout_steps += 1

        reward = 0.0
        attempt_over = self._attempt_steps == self.max_episode_steps
        if self._cell == self._key and not self._has_key:
            self._has_key = True
            self._keys_found += 1
            reward = 1.0
        elif self._cell == self._door and self._has_key:
            self._successes += 1
            reward, attempt_over = 1.0, True

        observation = self._start_attempt() if attempt_over else self._observe()
        truncated = self._rollout_steps == self.horizon
        return observation, reward, False, truncated, self._metrics() if truncated else {}

    @staticmethod
    def together(envs: Sequence[DarkKeyDoor]) -> RoomsTogether | None:
        """See `envs.together`: of equal rooms. (Subclasses have rules of their own.)"""
        settings = [(env.size, env.max_episode_steps, env.horizon, env.dark) for env in envs]
        return RoomsTogether(envs) if settings == settings[:1] * len(envs) else None

    def render(self) -> grid.Image | None:
        """The room as nobody in it sees it: key gold, door brown, agent red, and gold inside once it has the key."""
        if self.render_mode is None:
            return None
        colors = np.empty((self.size, self.size, 3), dtype=np.uint8)
        colors[:] = FLOOR
        colors.reshape(-1, 3)[self._door] = DOOR
        image = grid.paint_cells(colors, CELL_PX)
        if not self._has_key:
            grid.paint_disk(image, self._key // self.size, self._key % self.size, grid.GOLD, CELL_PX, radius=0.2)
        row, col = self._cell // self.size, self._cell % self.size
        grid.paint_disk(image, row, col, grid.AGENT, CELL_PX)
        if self._has_key:
            grid.paint_disk(image, row, col, grid.GOLD, CELL_PX, radius=0.15)
        return image

    def _draw_cells(self) -> list[int]:
        """The cells of start, key and door."""
        return self.np_random.choice(self.size**2, size=3, replace=False).tolist()

    def _start_attempt(self) -> NDArray[np.float32]:
        self._cell = self._start
        self._has_key = False
        self._attempt_steps = 0
        observation = self._observe()
        observation[2] = 1.0
        return observation

    def _observe(self) -> NDArray[np.float32]:
        observation = self._readings[self._cell].copy()
        if self._has_key and not self.dark:
            observation[7] = 1.0
        return observation

    def _metrics(self) -> dict[str, float]:
        return _metrics_of(self._successes, self._keys_found)


def _metrics_of(successes: int, keys_found: int) -> dict[str, float]:
    return {"AMAGO_LOG_METRIC Successes": float(successes), "AMAGO_LOG_METRIC Keys Found": float(keys_found)}


class RoomsTogether(Together):
    """N rooms of equal settings."""

    def __init__(self, envs: Sequence[DarkKeyDoor]) -> None:
        super().__init__(envs)
        self._first, num = envs[0], len(envs)
        self._rows = np.arange(num)
        self._neighbours, self._readings = np.array(self._first._neighbours), self._first._readings[:, :3]
        self._moves = np.zeros((num, NUM_MOVES), np.int64)
        self._cell, self._start, self._key, self._door = np.zeros((4, num), np.int64)
        self._attempt_steps, self._rollout_steps, self._successes, self._keys_found = np.zeros((4, num), np.int64)
        self._has_key = np.zeros(num, bool)
        self._told = np.zeros((num, 0 if self._first.dark else 5), np.float32)  # beside the position

    def begin(self, row: int) -> None:
        env = self.envs[row]
        self._moves[row] = [env._actions[action] for action in range(NUM_MOVES)]
        self._start[row], self._key[row], self._door[row] = env._start, env._key, env._door
        self._told[row] = env._observe()[3:]
        self._cell[row], self._has_key[row] = env._start, False
        for counts in (self._attempt_steps, self._rollout_steps, self._successes, self._keys_found):
            counts[row] = 0

    def step(self, actions: np.ndarray) -> StepTogether:
        env = self._first
        self._cell = self._neighbours[self._cell, self._moves[self._rows, actions]]
        self._attempt_steps += 1
        self._rollout_steps += 1
        finds = (self._cell == self._key) & ~self._has_key
        enters = (self._cell == self._door) & self._has_key & ~finds
        self._has_key |= finds
        self._keys_found += finds
        self._successes += enters
        over = enters | (self._attempt_steps == env.max_episode_steps)
        self._cell[over] = self._start[over]
        self._has_key[over] = False
        self._attempt_steps[over] = 0
        obs = np.concatenate((self._readings[self._cell], self._told), axis=1)
        obs[over, 2] = 1.0
        if not env.dark:
            obs[:, 7] = self._has_key
        truncated = self._rollout_steps == env.horizon
        finished = np.flatnonzero(truncated).tolist()
        infos = {row: _metrics_of(self._successes[row], self._keys_found[row]) for row in finished}
        return StepTogether(obs, (finds | enters).astype(np.float32), np.zeros(len(obs), bool), truncated, infos)
