"""Hindsight for instructions: what was reached, in the order in which it was reached, becomes the instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gin
import numpy as np

from amago_ray.messages import REWARD, TERMINATED
from amago_ray.replay.sampling.relabeling import ACHIEVED, Relabeler, check_counted_alike, check_held
from amago_ray.specs import OBS_PREFIX

if TYPE_CHECKING:
    import gymnasium as gym

INSTRUCTION = OBS_PREFIX + "instruction"


@gin.configurable
class InstructionRelabeler(Relabeler):
    """Trains on some trajectories as if the agent had been told to do what it did.

    For Dict observations with "achieved_goal" (d,) and "instruction" (k, d + 1): the goals that are still to be reached
    in order, each with a 1 at its end, and zeros to the end; reward 1 for each, and the last one terminates. That is
    what `MazeRunner` has.

    A number of goals from 1 to k and as many rows after the first are drawn uniformly; what was achieved in those rows,
    in their order, is the new instruction. Goals that would be reached before they are asked for, which are those that
    equal the one before or, for the first, what row 0 has achieved, are left out; where none is left, the trajectory
    stays as it is. Instructions (those of later rows are shorter by what has been reached), rewards and ends are
    computed anew, and the trajectory ends with the transition that reaches the last goal.

    A goal that was reached before its row counts from then on, as it would have in the environment. Of a rollout that
    was cut into pieces, each is relabelled by itself.

    probability: of relabelling a sampled trajectory.
    Raises ValueError for a probability out of range, and for trajectories without such observations, or with achieved
    goals that the dtype of instructions cannot hold, or that are categories which are not counted from 0.
    Source: section 3.2 of Andrychowicz et al. 2017, arXiv 1707.01495, for sequences of goals, as in Grigsby et al.
    2023, arXiv 2310.09971.
    """

    def __init__(self, probability: float = 0.8):
        if not 0 <= probability <= 1:
            raise ValueError(f"InstructionRelabeler.probability={probability!r}: it must be between 0 and 1")
        self.probability = probability

    def __call__(self, columns: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        achieved, max_goals = self._checked(columns)
        if rng.random() >= self.probability:
            return columns
        num_after_first = len(achieved) - 1
        wanted = min(int(rng.integers(1, max_goals + 1)), num_after_first)
        rows = 1 + np.sort(rng.choice(num_after_first, size=wanted, replace=False))
        goals = _worth_asking(achieved[0], achieved[rows])
        if not len(goals):
            return columns
        progress = reached_in_order(achieved, goals)
        num_rows = int((progress == len(goals)).argmax()) + 1
        progress = progress[:num_rows]
        relabeled = {name: column[:num_rows] for name, column in columns.items()}
        relabeled[INSTRUCTION] = _instructions(goals, progress, columns[INSTRUCTION])
        relabeled[REWARD] = np.diff(progress, prepend=0).astype(columns[REWARD].dtype)
        relabeled[TERMINATED] = progress == len(goals)  # that is: in the last row
        return relabeled

    def check_spaces(self, observation_space: gym.Space) -> None:
        check_counted_alike(type(self).__name__, observation_space, "instruction")

    def _checked(self, columns: dict[str, np.ndarray]) -> tuple[np.ndarray, int]:
        """What was achieved, (rows, d), and the largest number of goals."""
        if ACHIEVED in columns and INSTRUCTION in columns:
            achieved, instruction = columns[ACHIEVED], columns[INSTRUCTION]
            if achieved.ndim == 2 and instruction.ndim == 3 and instruction.shape[2] == achieved.shape[1] + 1:
                check_held(type(self).__name__, achieved, instruction.dtype, "instruction")
                return achieved, instruction.shape[1]
        shapes = {k.removeprefix(OBS_PREFIX): c.shape[1:] for k, c in columns.items() if k.startswith(OBS_PREFIX)}
        raise ValueError(
            "Experiment.relabeler_type=InstructionRelabeler: observations need an 'achieved_goal' of shape (d,) and an "
            f"'instruction' of shape (k, d + 1), and they have {shapes}"
        )


def reached_in_order(achieved: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """(rows,) int64: how many of `goals` (n, d) have been reached by each row of `achieved` (rows, d), in their order.

    One at most in a row, and none in the first: it is where the instruction is given.
    """
    progress = np.zeros(len(achieved), dtype=np.int64)
    row = 0
    for goal in goals:
        later = (achieved[row + 1 :] == goal).all(axis=1)
        if not later.any():
            break
        row += 1 + int(later.argmax())
        progress[row:] += 1
    return progress


def _worth_asking(start: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """`goals` (n, d) without those that equal the one before, the first one's being `start` (d,)."""
    before = np.concatenate([start[None], goals[:-1]])
    return goals[(goals != before).any(axis=1)]


def _instructions(goals: np.ndarray, progress: np.ndarray, like: np.ndarray) -> np.ndarray:
    """(rows, k, d + 1), of the dtype and with the k of `like`: what is still to be reached in each row."""
    padded = np.zeros((2 * like.shape[1], like.shape[2]), dtype=like.dtype)
    padded[: len(goals), :-1] = goals
    padded[: len(goals), -1] = 1
    return padded[progress[:, None] + np.arange(like.shape[1])]
