"""TMaze: a cue at the near end of a corridor says which way to turn at its far end."""

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
from amago_ray.envs.builtin.arguments import check_flag, check_integer, check_number, check_render_mode
from amago_ray.envs.together import StepTogether, Together

LEFT, DOWN, RIGHT, UP = range(4)
NUM_ACTIONS = 4

CELL_PX = 16
FLOOR: grid.Color = (238, 238, 232)


@gin.configurable
class TMaze(gym.Env[NDArray[np.float32], np.int64]):
    """Walk right for `corridor_length` steps, then turn up or down as a cue told long ago.

    Passive: the start cell shows the cue. Active: an oracle cell one step to the left of the start shows it, and the
    agent has to go there first. No other cell shows it. A step that does not move the agent right costs `penalty`,
    except the turn at the junction, which ends the rollout (terminated) with reward 1 if it is the way that the cue
    said, and 0 if it is the other. The rollout terminates, too, when only the shortest path has fitted: after
    corridor_length + 1 steps, active after corridor_length + 3. The best return is therefore 1 (passive), or
    1 + penalty (active, for the step to the oracle), and without memory of the cue no policy expects more than 1/2.

    Actions: 0 left, 1 down, 2 right, 3 up; a move into a wall leaves the agent where it is.
    Observation, float32 (3,): 1 at the start cell and else 0; 1 at the junction and else 0; the cue, 1 for up and -1
    for down where it is shown, else 0. All corridor cells look the same.

    `info` at the end of a rollout has "AMAGO_LOG_METRIC Success": 1 for the right turn, else 0.

    corridor_length: steps from the start to the junction. active: see above.
    penalty: reward, 0 or below, of a step not to the right; None for -1 / (steps in the rollout).
    Raises ValueError for an argument out of range, and for an action that is not one of the four.
    Source: Ni et al. 2023, "When Do Transformers Shine in RL?", arXiv 2307.03864. Theirs, to the letter, is `NiTMaze`,
    which differs in three things: -1 / corridor_length is the price of each step at which the agent is behind schedule,
    not of moves that do not lead right; a rollout does not end with the turn; and a start without a cue looks like the
    corridor. Here one wrong move costs as much early as late, and nothing is left to do after the turn.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(
        self,
        corridor_length: int = 30,
        active: bool = False,
        penalty: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.corridor_length = check_integer("corridor_length", corridor_length, at_least=1)
        self.active = check_flag("active", active)
        self.horizon = self.corridor_length + (3 if self.active else 1)
        self.penalty = -1 / self.horizon if penalty is None else check_number("penalty", penalty, float("-inf"), 0.0)
        self.render_mode = check_render_mode(render_mode)
        self.observation_space = spaces.Box(
            np.array([0, 0, -1], dtype=np.float32), np.array([1, 1, 1], dtype=np.float32), dtype=np.float32
        )
        self.action_space = spaces.Discrete(NUM_ACTIONS)
        self._oracle = 0
        self._start = 1 if self.active else 0
        self._junction = self._start + self.corridor_length

    @property
    def env_name(self) -> str:
        return f"TMaze-{'Active' if self.active else 'Passive'}-{self.corridor_length}"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The agent at the start, and a new cue. `options` are not used."""
        super().reset(seed=seed)
        self._goal = UP if self.np_random.random() < 0.5 else DOWN
        self._x = self._start
        self._turn: int | None = None
        self._steps = 0
        return self._observe(), {}

    def step(self, action: int | np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        action = index(action)
        if not 0 <= action < NUM_ACTIONS:
            raise ValueError(f"action={action!r}: must be an integer from 0 to {NUM_ACTIONS - 1}")
        self._steps += 1
        reward = 0.0
        if action == RIGHT and self._x < self._junction:
            self._x += 1
        elif action in (UP, DOWN) and self._x == self._junction:
            self._turn = action
            reward = 1.0 if action == self._goal else 0.0
        else:
            reward = self.penalty
            if action == LEFT and self._x > 0:
                self._x -= 1
        # The deadline is part of the task: a truncation would have critics hope for a turn that comes after it.
        terminated = self._turn is not None or self._steps == self.horizon
        info = {"AMAGO_LOG_METRIC Success": float(self._turn == self._goal)} if terminated else {}
        return self._observe(), reward, terminated, False, info

    @staticmethod
    def together(envs: Sequence[TMaze]) -> TMazesTogether | None:
        """See `envs.together`: of equal mazes."""
        settings = [(env.corridor_length, env.active, env.penalty) for env in envs]
        return TMazesTogether(envs) if settings == settings[:1] * len(envs) else None

    def render(self) -> grid.Image | None:
        """The maze from above: agent red, the arm that the cue means green, the cell that shows the cue gold."""
        if self.render_mode is None:
            return None
        colors = np.empty((3, self._junction + 1, 3), dtype=np.uint8)
        colors[:] = grid.BLACK
        colors[1] = FLOOR
        colors[[0, 2], self._junction] = FLOOR
        colors[1, self._oracle] = grid.GOLD
        colors[0 if self._goal == UP else 2, self._junction] = grid.GREEN
        image = grid.paint_cells(colors, CELL_PX)
        row = {None: 1, UP: 0, DOWN: 2}[self._turn]
        grid.paint_disk(image, row, self._x, grid.AGENT, CELL_PX)
        return image

    def _observe(self) -> NDArray[np.float32]:
        at_junction = self._x == self._junction and self._turn is None
        cue = 0 if self._x != self._oracle else 1 if self._goal == UP else -1
        return np.array((self._x == self._start, at_junction, cue), dtype=np.float32)


class TMazesTogether(Together):
    """N mazes of equal settings."""

    def __init__(self, envs: Sequence[TMaze]) -> None:
        super().__init__(envs)
        self._first = envs[0]
        self._x, self._steps, self._goal = np.zeros((3, len(envs)), np.int64)

    def begin(self, row: int) -> None:
        self._x[row], self._steps[row], self._goal[row] = self._first._start, 0, self.envs[row]._goal

    def step(self, actions: np.ndarray) -> StepTogether:
        env = self._first
        self._steps += 1
        at_junction = self._x == env._junction
        goes_on = (actions == RIGHT) & ~at_junction
        turns = ((actions == UP) | (actions == DOWN)) & at_junction
        success = turns & (actions == self._goal)
        rewards = np.where(goes_on | turns, success, env.penalty)
        self._x += goes_on
        self._x -= (actions == LEFT) & (self._x > 0)
        terminated = turns | (self._steps == env.horizon)
        obs = np.zeros((len(rewards), 3), np.float32)
        obs[:, 0] = self._x == env._start
        obs[:, 1] = (self._x == env._junction) & ~turns
        obs[:, 2] = np.where(self._x == env._oracle, np.where(self._goal == UP, 1, -1), 0)
        finished = np.flatnonzero(terminated).tolist()
        infos = {row: {"AMAGO_LOG_METRIC Success": float(success[row])} for row in finished}
        return StepTogether(obs, rewards, terminated, np.zeros(len(obs), bool), infos)
