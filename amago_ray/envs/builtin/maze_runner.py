"""MazeRunner: visit an ordered list of places in a maze; the instruction is a part of the observation."""

from __future__ import annotations

from operator import index
from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.builtin import grid
from amago_ray.envs.builtin.arguments import check_flag, check_integer, check_number, check_render_mode
from amago_ray.envs.builtin.grid import DOWN, LEFT, NUM_MOVES, RIGHT, UP

CELL_PX = 20
FLOOR: grid.Color = (238, 238, 232)

Neighbours = tuple[tuple[int, ...], ...]
Observation = dict[str, Any]  # of float32 arrays


@gin.configurable
class MazeRunner(gym.Env[Observation, np.int64]):
    """An instruction of several goals, in order; reward 1 for each, if those before it have been reached.

    `reset` draws a maze, in which there is a way from everywhere to everywhere, the start, and the goals: each uniform
    among the cells at least `min_distance` moves from the place before it. The last goal terminates the rollout, which
    is truncated after `horizon` steps. Moves chosen at random reach few goals, the more so in order; hindsight makes
    every rollout an example of some instruction (`InstructionRelabeler`).

    Actions: 0 stay, 1 left, 2 down, 3 right, 4 up. Moves into a wall leave the agent where it is.
    Observation, a Dict of float32. "observation" (6,): x and y in [-1, 1]; how far the way leads left, down, right and
    up, 0 for a wall and 1 for the length of a side. "achieved_goal" (2,): x and y again. "instruction" (num_goals, 3):
    x, y and 1 for each goal that is still to be reached, the next one first, and zeros to the end.

    `info` at the end of a rollout has "AMAGO_LOG_METRIC Goals Reached", and "AMAGO_LOG_METRIC Success", 1 if it was all
    of them and else 0.

    size: cells on each side, at least 2. num_goals: goals of an instruction. fewer_goals: instructions of 1, ...,
    num_goals goals, equally likely. min_distance: in moves, along the way; where no cell is so far off, the farthest is
    taken. horizon: steps in one rollout; None for 4 * size * num_goals. loops: share of the walls of a maze with one
    way between any two cells that are taken away; 1 for no walls. maze_seed: one maze, drawn from this seed, for all
    rollouts; None for another one at each reset.
    Raises ValueError for an argument out of range, and for an action that is not one of the five.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(
        self,
        size: int = 9,
        num_goals: int = 3,
        fewer_goals: bool = False,
        min_distance: int = 1,
        horizon: int | None = None,
        loops: float = 0.2,
        maze_seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.size = check_integer("size", size, at_least=2)
        self.num_goals = check_integer("num_goals", num_goals, at_least=1)
        self.fewer_goals = check_flag("fewer_goals", fewer_goals)
        self.min_distance = check_integer("min_distance", min_distance, at_least=1)
        self.horizon = check_integer("horizon", 4 * size * num_goals if horizon is None else horizon, at_least=1)
        self.loops = check_number("loops", loops, 0.0, 1.0)
        self.maze_seed = None if maze_seed is None else check_integer("maze_seed", maze_seed, at_least=0)
        self.render_mode = check_render_mode(render_mode)
        place = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
        low = np.array([-1, -1, 0, 0, 0, 0], dtype=np.float32)
        self.observation_space = spaces.Dict(
            observation=spaces.Box(low, np.ones(6, dtype=np.float32), dtype=np.float32),
            achieved_goal=place,
            instruction=spaces.Box(
                np.tile(np.array([-1, -1, 0], dtype=np.float32), (self.num_goals, 1)), 1.0, dtype=np.float32
            ),
        )
        self.action_space = spaces.Discrete(NUM_MOVES)
        cells = np.arange(self.size**2)
        self._places = (2 * np.stack([cells % size, cells // size], axis=1) / (size - 1) - 1).astype(np.float32)
        if self.maze_seed is not None:
            self._enter(random_maze(self.size, self.loops, np.random.default_rng(self.maze_seed)))

    @property
    def env_name(self) -> str:
        return f"MazeRunner-{self.size}x{self.size}-k{self.num_goals}"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Another maze, start and instruction. `options` are not used."""
        super().reset(seed=seed)
        if self.maze_seed is None:
            self._enter(random_maze(self.size, self.loops, self.np_random))
        place = self._cell = int(self.np_random.integers(self.size**2))
        self._goals: list[int] = []
        for _ in range(int(self.np_random.integers(self.num_goals)) + 1 if self.fewer_goals else self.num_goals):
            away = distances(self._neighbours, place)
            far = np.flatnonzero(away >= min(self.min_distance, int(away.max())))
            place = int(self.np_random.choice(far))
            self._goals.append(place)
        self._reached = self._steps = 0
        return self._observe(), {}

    def step(self, action: int | np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        move = index(action)
        if not 0 <= move < NUM_MOVES:
            raise ValueError(f"action={action!r}: must be an integer from 0 to {NUM_MOVES - 1}")
        self._cell = self._neighbours[self._cell][move]
        self._steps += 1
        reached = self._cell == self._goals[self._reached]
        self._reached += reached
        done = self._reached == len(self._goals)
        truncated = not done and self._steps == self.horizon
        info = {}
        if done or truncated:
            info = {"AMAGO_LOG_METRIC Goals Reached": float(self._reached), "AMAGO_LOG_METRIC Success": float(done)}
        return self._observe(), float(reached), done, truncated, info

    def render(self) -> grid.Image | None:
        """The maze: agent red, the next goal gold, later ones green, walls dark."""
        if self.render_mode is None:
            return None
        colors = np.empty((self.size, self.size, 3), dtype=np.uint8)
        colors[:] = FLOOR
        colors.reshape(-1, 3)[self._goals[self._reached :]] = grid.GREEN
        colors.reshape(-1, 3)[self._goals[self._reached : self._reached + 1]] = grid.GOLD
        image = grid.paint_cells(colors, CELL_PX)
        grid.paint_disk(image, self._cell // self.size, self._cell % self.size, grid.AGENT, CELL_PX)
        for cell, ways in enumerate(self._neighbours):
            top, left = cell // self.size * CELL_PX, cell % self.size * CELL_PX
            if ways[LEFT] == cell:
                image[top : top + CELL_PX, left : left + 2] = grid.BLACK
            if ways[UP] == cell:
                image[top : top + 2, left : left + CELL_PX] = grid.BLACK
        return image

    def _enter(self, neighbours: Neighbours) -> None:
        """Go on in this maze."""
        self._neighbours = neighbours
        sight = [[_sight(neighbours, cell, move) for move in (LEFT, DOWN, RIGHT, UP)] for cell in range(self.size**2)]
        sight_01 = np.array(sight, dtype=np.float32) / (self.size - 1)
        self._readings = np.concatenate([self._places, sight_01], axis=1)

    def _observe(self) -> Observation:
        instruction = np.zeros((self.num_goals, 3), dtype=np.float32)
        ahead = self._goals[self._reached :]
        instruction[: len(ahead), :2] = self._places[ahead]
        instruction[: len(ahead), 2] = 1.0
        return {
            "observation": self._readings[self._cell].copy(),
            "achieved_goal": self._places[self._cell].copy(),
            "instruction": instruction,
        }


def random_maze(size: int, loops: float, rng: np.random.Generator) -> Neighbours:
    """For each cell the cell that each move leads to, in a random maze that is connected.

    Walls between neighbours are taken away in random order where there is no way between them yet (Kruskal's
    algorithm), and a share `loops` of those that are left.
    """
    open_floor = grid.neighbours(size)
    walls = [(cell, open_floor[cell][move], move) for cell in range(size**2) for move in (DOWN, RIGHT)]
    walls = [wall for wall in walls if wall[0] != wall[1]]
    maze = [[cell] * NUM_MOVES for cell in range(size**2)]
    region = list(range(size**2))

    def root(cell: int) -> int:
        while region[cell] != cell:
            region[cell] = region[region[cell]]
            cell = region[cell]
        return cell

    for i in rng.permutation(len(walls)).tolist():
        cell, other, move = walls[i]
        joins = root(cell) != root(other)
        if joins or rng.random() < loops:
            region[root(cell)] = root(other)
            maze[cell][move], maze[other][UP if move == DOWN else LEFT] = other, cell
    return tuple(tuple(ways) for ways in maze)


def distances(neighbours: Neighbours, start: int) -> NDArray[np.int64]:
    """(cells,): moves from `start` to every cell, breadth first."""
    away = np.full(len(neighbours), -1, dtype=np.int64)
    away[start] = 0
    frontier, steps = [start], 0
    while frontier:
        steps += 1
        found = {other for cell in frontier for other in neighbours[cell] if away[other] < 0}
        frontier = list(found)
        away[frontier] = steps
    return away


def _sight(neighbours: Neighbours, cell: int, move: int) -> int:
    """How many moves of one kind lead on from `cell`."""
    steps = 0
    while neighbours[cell][move] != cell:
        cell = neighbours[cell][move]
        steps += 1
    return steps
