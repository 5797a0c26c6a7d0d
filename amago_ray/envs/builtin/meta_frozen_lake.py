"""MetaFrozenLake: k attempts to cross one unknown frozen lake inside a single rollout."""

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
from amago_ray.envs.builtin.grid import DOWN, LEFT, NUM_MOVES, RIGHT, STAY, UP
from amago_ray.envs.together import StepTogether, Together

FROZEN_CHANCE = 0.8
FALL_COST = -0.1
SWAPPED_ACTIONS_CHANCE = 1 / 2
NOISY_READING_CHANCE = 1 / 4
BREAKING_ICE_CHANCE = 1 / 3

SAME_ACTIONS = {move: move for move in range(NUM_MOVES)}
SWAPPED_ACTIONS = {STAY: STAY, LEFT: RIGHT, RIGHT: LEFT, DOWN: UP, UP: DOWN}
PERPENDICULAR = {LEFT: (DOWN, UP), RIGHT: (DOWN, UP), DOWN: (LEFT, RIGHT), UP: (LEFT, RIGHT)}

CELL_PX = 24
ICE: grid.Color = (222, 239, 250)
WATER: grid.Color = (44, 88, 150)
START: grid.Color = (180, 222, 190)


@gin.configurable
class MetaFrozenLake(gym.Env[NDArray[np.float32], np.int64]):
    """A new random frozen lake at each `reset`, and `k_episodes` attempts to learn how to cross it.

    The lake has the distribution of gymnasium's `generate_random_map` (a cell is frozen with probability 0.8; the map
    is drawn again until start and goal are connected); `reset(seed=s)` makes the very map of `generate_random_map(size,
    seed=s)`. The start is the cell at the upper left, the goal the one at the lower right. Reaching the goal gives
    reward 1 and ends the attempt; a hole ends the attempt without reward. An attempt times out after size^2 steps,
    2 size^2 in hard mode. Within the rollout the environment puts itself back to the start: the step that ends an
    attempt returns the first observation of the next one. The end of the last attempt terminates the rollout.

    Actions: 0 stay, 1 left, 2 down, 3 right, 4 up. Moves off the grid leave the agent where it is.
    Observation, float32 (4,), each in [0, 1]: x / size, y / size, 1 at the first observation of an attempt and else 0,
    and the number of finished attempts / k.

    `info` at the end of a rollout has "AMAGO_LOG_METRIC Attempt i Success" (0 or 1) for every attempt i = 1..k that
    was finished, and the same for the "First Attempt" and, if it was finished, the "Last Attempt".

    size: cells on each side, at least 2. k_episodes: attempts in one rollout.
    hard_mode: at each `reset`, with probability 1/2 left and right, and up and down, are swapped for the whole
        rollout; each reading of the position is, with probability 1/4, of a random neighbouring cell instead; the
        ice breaks behind the agent, with probability 1/3 per move, and is whole again at the next attempt.
    recover_mode: a hole costs 0.1 and the agent is put back where it stepped from, instead of ending the attempt.
    max_episode_steps: steps after which the whole rollout is truncated; None for no such limit.
    show_k_progress: False sets the last entry of the observation to 0 always.
    slip_chance: probability that a move goes to either side (equally likely) of the chosen direction.
    Raises ValueError for an argument out of range, and for an action that is not one of the five.
    Source: the environment of the same name that AMAGO (Grigsby et al. 2023, arXiv 2310.09971) is demonstrated with.
    There attempts have no limit of their own; in hard mode down and right change places instead of both axes turning
    round, a noisy reading is off by -1, 0 or 1 in x and in y, and the ice may also break under an agent that stays.
    Here no attempt is spent waiting.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(
        self,
        size: int = 5,
        k_episodes: int = 10,
        hard_mode: bool = False,
        recover_mode: bool = False,
        max_episode_steps: int | None = None,
        show_k_progress: bool = True,
        slip_chance: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        # One cell is start and goal at once, and has no path between them.
        self.size = check_integer("size", size, at_least=2)
        self.k_episodes = check_integer("k_episodes", k_episodes, at_least=1)
        self.hard_mode = check_flag("hard_mode", hard_mode)
        self.recover_mode = check_flag("recover_mode", recover_mode)
        if max_episode_steps is not None:
            check_integer("max_episode_steps", max_episode_steps, at_least=1)
        self.max_episode_steps = max_episode_steps
        self.show_k_progress = check_flag("show_k_progress", show_k_progress)
        self.slip_chance = check_number("slip_chance", slip_chance, 0.0, 1.0)
        self.render_mode = check_render_mode(render_mode)

        self.attempt_limit = self.size**2 * (2 if self.hard_mode else 1)
        self.observation_space = spaces.Box(0.0, 1.0, shape=(4,), dtype=np.float32)
        self.action_space = spaces.Discrete(NUM_MOVES)

        # Everything that a step would otherwise compute is looked up instead.
        cells = range(self.size**2)
        self._start, self._goal = cells[0], cells[-1]
        self._neighbours = grid.neighbours(self.size)
        self._near = [[near for near in set(self._neighbours[cell]) if near != cell] for cell in cells]
        self._readings = [np.array([c % size / size, c // size / size, 0, 0], dtype=np.float32) for c in cells]
        self._bits = [1 << (cell // self.size * (self.size + 1) + cell % self.size) for cell in cells]
        self._cell = self._attempt_steps = 0
        self._metric_names = [f"AMAGO_LOG_METRIC Attempt {i + 1} Success" for i in range(self.k_episodes)]

    @property
    def env_name(self) -> str:
        mode = ("-Hard" if self.hard_mode else "") + ("-Recover" if self.recover_mode else "")
        return f"MetaFrozenLake-{self.size}x{self.size}-k{self.k_episodes}{mode}"

    @property
    def lake(self) -> list[str]:
        """The ice as it is now, one string per row in gymnasium's letters: S start, F frozen, H hole, G goal."""
        letters = ["H" if cell in self._holes else "F" for cell in range(self.size**2)]
        letters[self._goal] = "G"
        if self._start not in self._holes:
            letters[self._start] = "S"
        return ["".join(letters[row : row + self.size]) for row in range(0, self.size**2, self.size)]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new lake and its first attempt. `options` are not used."""
        super().reset(seed=seed)
        self._whole_map_holes = self._random_holes()
        swapped = self.hard_mode and self.np_random.random() < SWAPPED_ACTIONS_CHANCE
        self._actions = SWAPPED_ACTIONS if swapped else SAME_ACTIONS
        self._successes: list[bool] = []
        self._rollout_steps = 0
        return self._start_attempt(), {}

    def step(self, action: int | np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        try:
            move = self._actions[index(action)]
        except KeyError:
            raise ValueError(f"action={action!r}: must be an integer from 0 to {NUM_MOVES - 1}") from None
        if self.slip_chance and move != STAY:
            draw = self.np_random.random()
            if draw < self.slip_chance:
                move = PERPENDICULAR[move][draw < self.slip_chance / 2]

        reward, success = 0.0, False
        self._attempt_steps += 1
        self._rollout_steps += 1
        attempt_over = self._attempt_steps == self.attempt_limit
        cell = self._neighbours[self._cell][move]
        if cell in self._holes:
            if self.recover_mode:
                reward = FALL_COST
            else:
                self._cell, attempt_over = cell, True
        elif cell == self._goal:
            self._cell, reward, success, attempt_over = cell, 1.0, True, True
        elif cell != self._cell:
            if self.hard_mode and self.np_random.random() < BREAKING_ICE_CHANCE:
                self._holes.add(self._cell)
            self._cell = cell

        if attempt_over:
            self._successes.append(success)
        terminated = len(self._successes) == self.k_episodes
        truncated = self._rollout_steps == self.max_episode_steps and not terminated
        observation = self._start_attempt() if attempt_over and not terminated else self._observe()
        return observation, reward, terminated, truncated, self._metrics() if terminated or truncated else {}

    @staticmethod
    def together(envs: Sequence[MetaFrozenLake]) -> LakesTogether | None:
        """See `envs.together`: of equal lakes that draw nothing in a step."""
        settings = [(e.size, e.k_episodes, e.recover_mode, e.max_episode_steps, e.show_k_progress) for e in envs]
        draws = any(env.hard_mode or env.slip_chance for env in envs)
        return None if draws or settings != settings[:1] * len(envs) else LakesTogether(envs)

    def render(self) -> grid.Image | None:
        """The lake with the agent in red, and below it the attempts: green reached, dark failed, grey to come."""
        if self.render_mode is None:
            return None
        colors = np.empty((self.size, self.size, 3), dtype=np.uint8)
        colors[:] = ICE
        flat = colors.reshape(-1, 3)
        flat[self._start], flat[self._goal] = START, grid.GOLD
        flat[list(self._holes)] = WATER
        image = grid.paint_cells(colors, CELL_PX)
        grid.paint_disk(image, self._cell // self.size, self._cell % self.size, grid.AGENT, CELL_PX)
        outcome = [grid.GREEN if success else grid.BLACK for success in self._successes]
        outcome += [grid.GREY] * (self.k_episodes - len(outcome))
        attempt_of_px = np.arange(image.shape[1]) * self.k_episodes // image.shape[1]
        strip = np.array(outcome, dtype=np.uint8)[attempt_of_px][None].repeat(CELL_PX // 3, axis=0)
        return np.concatenate([image, strip])

    def _random_holes(self) -> frozenset[int]:
        """The holes of a random lake that can be crossed. Draws exactly what `generate_random_map` draws."""
        start, goal, row = self._bits[self._start], self._bits[self._goal], self.size + 1
        while True:
            draws = self.np_random.random(self.size**2).tolist()
            holes = frozenset(cell for cell, draw in enumerate(draws) if draw >= FROZEN_CHANCE)
            holes -= {self._start, self._goal}
            # Flood the lake from its start, all cells at once: one bit per cell, and an empty column at the right so
            # that the last cell of a row and the first of the next are not neighbours.
            frozen = sum(bit for cell, bit in enumerate(self._bits) if cell not in holes)
            reached, before = start, 0
            while reached != before:
                before = reached
                reached |= (reached << 1 | reached >> 1 | reached << row | reached >> row) & frozen
            if reached & goal:
                return holes

    def _start_attempt(self) -> NDArray[np.float32]:
        self._holes = set(self._whole_map_holes)
        self._cell = self._start
        self._attempt_steps = 0
        observation = self._observe()
        observation[2] = 1.0
        return observation

    def _observe(self) -> NDArray[np.float32]:
        shown = self._cell
        if self.hard_mode and self.np_random.random() < NOISY_READING_CHANCE:
            near = self._near[shown]
            shown = near[self.np_random.integers(len(near))]
        observation = self._readings[shown].copy()
        if self.show_k_progress:
            observation[3] = len(self._successes) / self.k_episodes
        return observation

    def _metrics(self) -> dict[str, float]:
        return self._metrics_of(self._successes)

    def _metrics_of(self, successes: Sequence[bool]) -> dict[str, float]:
        metrics = {name: float(success) for name, success in zip(self._metric_names, successes)}
        if successes:
            metrics["AMAGO_LOG_METRIC First Attempt Success"] = float(successes[0])
        if len(successes) == self.k_episodes:
            metrics["AMAGO_LOG_METRIC Last Attempt Success"] = float(successes[-1])
        return metrics


class LakesTogether(Together):
    """N lakes of equal settings, none of which draws random numbers in a step."""

    def __init__(self, envs: Sequence[MetaFrozenLake]) -> None:
        super().__init__(envs)
        self._first = first = envs[0]
        num, cells = len(envs), first.size**2
        self._rows = np.arange(num)
        self._neighbours = np.array(first._neighbours)
        self._readings = np.array(first._readings)
        self._holes = np.zeros((num, cells), bool)
        self._cell, self._attempt_steps, self._rollout_steps, self._attempts = np.zeros((4, num), np.int64)
        self._successes = np.zeros((num, first.k_episodes), bool)

    def begin(self, row: int) -> None:
        self._holes[row] = False
        self._holes[row, list(self.envs[row]._whole_map_holes)] = True
        for state in (self._cell, self._attempt_steps, self._rollout_steps, self._attempts):
            state[row] = 0  # of cells: the start

    def step(self, actions: np.ndarray) -> StepTogether:
        env, rows = self._first, self._rows
        self._attempt_steps += 1
        self._rollout_steps += 1
        cell = self._neighbours[self._cell, actions]
        fallen, success = self._holes[rows, cell], cell == env._goal
        rewards = success.astype(np.float64)
        over = success | (self._attempt_steps == env.attempt_limit)
        if env.recover_mode:
            rewards[fallen] = FALL_COST
            cell = np.where(fallen, self._cell, cell)
        else:
            over |= fallen
        ended = np.flatnonzero(over)
        self._successes[ended, self._attempts[ended]] = success[ended]
        self._attempts += over
        terminated = self._attempts == env.k_episodes
        truncated = (self._rollout_steps == env.max_episode_steps) & ~terminated
        again = over & ~terminated
        cell[again] = env._start
        self._attempt_steps[again] = 0
        self._cell = cell
        obs = self._readings[cell]
        obs[again, 2] = 1.0
        if env.show_k_progress:
            obs[:, 3] = self._attempts / env.k_episodes
        finished = np.flatnonzero(terminated | truncated).tolist()
        infos = {row: env._metrics_of(self._successes[row, : self._attempts[row]].tolist()) for row in finished}
        return StepTogether(obs, rewards, terminated, truncated, infos)
