"""Meta-World's ML1, ML10 and ML45: an arm, a task whose goal is hidden, and several attempts at it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, get_args

import gin
import gymnasium as gym

from amago_ray.envs.builtin.arguments import check_choice, check_integer
from amago_ray.envs.suites.extras import require
from amago_ray.envs.suites.trials import Trials, is_same_task
from amago_ray.envs.tasks import Entry

EXTRA = "metaworld"

Benchmark = Literal["ML1", "ML10", "ML45"]
Split = Literal["train", "test"]


class HiddenGoals(gym.Wrapper):
    """One of `goals` is drawn at each `reset`, unless it asks for the same; nothing of the observation tells it.

    env: of Meta-World, which takes a goal by `set_task`. goals: such. env_name: what metrics are grouped by.
    """

    def __init__(self, env: gym.Env, goals: Sequence[Any], env_name: str) -> None:
        super().__init__(env)
        self._goals = list(goals)
        self.env_name = env_name

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The start of an episode, of a new goal or (see `Trials`) of the same one."""
        base: Any = self.env.unwrapped
        if seed is not None:
            base.seed(seed)  # its `reset` takes no notice of one
        if not is_same_task(options):
            base.set_task(self._goals[int(self.np_random.integers(len(self._goals)))])
        return self.env.reset()


@gin.configurable
def make_metaworld(
    task: str = "reach-v3",
    split: Split = "train",
    benchmark: Benchmark = "ML1",
    num_episodes: int = 3,
    episode_steps: int = 500,
    goals_seed: int = 0,
) -> gym.Env:
    """One task of Meta-World with 50 hidden goals, of which each rollout has one for all of its `Trials`.

    task: name in Meta-World, such as "pick-place-v3"; metrics are grouped by it, as in "ML10-pick-place-v3". split: in
    ML1, "train" and "test" have goals of their own. benchmark: only the name's beginning; `metaworld_tasks` lists the
    tasks of one. goals_seed: which goals there are.

    Raises ModuleNotFoundError without the package metaworld, ValueError for an argument out of range.
    Source: Yu et al. 2019, arXiv 1910.10897.
    """
    check_choice("benchmark", benchmark, get_args(Benchmark))
    check_choice("split", split, get_args(Split))
    check_integer("goals_seed", goals_seed, at_least=0)
    known = require("metaworld", EXTRA).ML1.ENV_NAMES
    check_choice("task", task, known)
    env_class, goals = _goals_of(task, split, goals_seed)
    return Trials(HiddenGoals(env_class(), goals, f"{benchmark}-{task}"), num_episodes, episode_steps)


@gin.configurable
def metaworld_tasks(benchmark: Benchmark = "ML10", split: Split = "train") -> list[Entry]:
    """For `make_train_env`: the tasks of ML10 or ML45, which take turns, each under its own name.

    "train": 10 or 45 tasks; "test": the 5 others of each, for `make_val_env`. `make_metaworld` has the other settings.
    Raises ModuleNotFoundError without the package metaworld, ValueError for an argument out of range.
    """
    check_choice("benchmark", benchmark, ("ML10", "ML45"))
    check_choice("split", split, get_args(Split))
    require("metaworld", EXTRA)
    known = require("metaworld.env_dict", EXTRA)
    tasks = (known.ML10_V3 if benchmark == "ML10" else known.ML45_V3)[split]
    return [(make_metaworld, {"task": task, "benchmark": benchmark, "split": "train"}) for task in tasks]


@cache
def _goals_of(task: str, split: Split, seed: int) -> tuple[type[gym.Env], list[Any]]:
    """The class of a task and its 50 goals; finding them takes a second."""
    benchmark = require("metaworld", EXTRA).ML1(task, seed=seed)
    return benchmark.train_classes[task], benchmark.train_tasks if split == "train" else benchmark.test_tasks
