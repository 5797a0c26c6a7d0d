"""GridReach: walk to a far cell that the observation names, in a room where nothing but arriving is rewarded."""

from __future__ import annotations

from operator import index
from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.builtin import grid
from amago_ray.envs.builtin.arguments import check_integer, check_render_mode
from amago_ray.envs.builtin.grid import NUM_MOVES

CELL_PX = 16
FLOOR: grid.Color = (238, 238, 232)

Observation = dict[str, Any]  # of float32 arrays (2,)


@gin.configurable
class GridReach(gym.Env[Observation, np.int64]):
    """A goal-conditioned room: reward 1 for arriving at the goal, which ends the rollout (terminated), and else 0.

    `reset` draws start and goal uniformly from all pairs of cells at least `min_distance` moves apart. The rollout is
    truncated after `horizon` steps. Random moves come nowhere near a far goal, so that there is next to nothing to
    learn from, unless trajectories are relabelled in hindsight.

    Actions: 0 stay, 1 left, 2 down, 3 right, 4 up. Moves off the grid leave the agent where it is.
    Observation, a Dict after the convention of goal-conditioned environments in gymnasium-robotics: "observation" and
    "achieved_goal", the agent's cell, and "desired_goal", each float32 (2,), x and y in [-1, 1].

    `info` at the end of a rollout has "AMAGO_LOG_METRIC Success": 1 at the goal, else 0.

    size: cells on each side, at least 2. min_distance: in moves; None for `size`. horizon: steps in one rollout; None
    for 2 * size + 2, which is enough for every goal.
    Raises ValueError for an argument out of range, and for an action that is not one of the five.
    Source: the multi-goal setting of Andrychowicz et al. 2017, arXiv 1707.01495, section 3.1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(
        self,
        size: int = 15,
        min_distance: int | None = None,
        horizon: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.size = check_integer("size", size, at_least=2)
        self.min_distance = check_integer("min_distance", size if min_distance is None else min_distance, at_least=1)
        farthest = 2 * (self.size - 1)
        if self.min_distance > farthest:
            raise ValueError(f"min_distance={min_distance!r}: must be at most {farthest}, from corner to corner")
        self.horizon = check_integer("horizon", 2 * size + 2 if horizon is None else horizon, at_least=1)
        self.render_mode = check_render_mode(render_mode)
        place = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
        self.observation_space = spaces.Dict(observation=place, achieved_goal=place, desired_goal=place)
        self.action_space = spaces.Discrete(NUM_MOVES)
        self._neighbours = grid.neighbours(self.size)
        cells = np.arange(self.size**2)
        xy = np.stack([cells % self.size, cells // self.size], axis=1)
        self._places = (2 * xy / (self.size - 1) - 1).astype(np.float32)
        apart = np.abs(xy[:, None] - xy).sum(axis=2)
        self._pairs = np.argwhere(apart >= self.min_distance)

    @property
    def env_name(self) -> str:
        return f"GridReach-{self.size}x{self.size}"

    def compute_reward(
        self, achieved_goal: NDArray[np.float32], desired_goal: NDArray[np.float32], info: Any
    ) -> NDArray[np.float32]:
        """1 where the goals (..., 2) are the same cell, else 0: (...,) float32."""
        return (achieved_goal == desired_goal).all(axis=-1).astype(np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Another start and goal. `options` are not used."""
        super().reset(seed=seed)
        self._cell, self._goal = self._pairs[self.np_random.integers(len(self._pairs))].tolist()
        self._steps = 0
        return self._observe(), {}

    def step(self, action: int | np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        move = index(action)
        if not 0 <= move < NUM_MOVES:
            raise ValueError(f"action={action!r}: must be an integer from 0 to {NUM_MOVES - 1}")
        self._cell = self._neighbours[self._cell][move]
        self._steps += 1
        arrived = self._cell == self._goal
        truncated = not arrived and self._steps == self.horizon
        info = {"AMAGO_LOG_METRIC Success": float(arrived)} if arrived or truncated else {}
        return self._observe(), float(arrived), arrived, truncated, info

    def render(self) -> grid.Image | None:
        """The room: goal green, agent red."""
        if self.render_mode is None:
            return None
        colors = np.empty((self.size, self.size, 3), dtype=np.uint8)
        colors[:] = FLOOR
        colors.reshape(-1, 3)[self._goal] = grid.GREEN
        image = grid.paint_cells(colors, CELL_PX)
        grid.paint_disk(image, self._cell // self.size, self._cell % self.size, grid.AGENT, CELL_PX)
        return image

    def _observe(self) -> Observation:
        place, goal = self._places[self._cell], self._places[self._goal]
        return {"observation": place.copy(), "achieved_goal": place.copy(), "desired_goal": goal.copy()}
