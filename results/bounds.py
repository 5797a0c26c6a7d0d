"""What a policy can have at the most, for tasks of which nobody publishes a number: `python -m results.bounds`.

Each is the mean return, over many rollouts, of a shortest path: no policy can have more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from amago_ray.envs.builtin import AMAGOKeyDoor

ROLLOUTS = 2000


def main() -> None:
    """Print every bound."""
    for title, bound in BOUNDS.items():
        print(f"{title:<24} {bound():8.3f}")


def key_door(size: int = 9, max_episode_steps: int = 50, horizon: int = 500, rollouts: int = ROLLOUTS) -> float:
    """Return per rollout of `AMAGOKeyDoor`, for one who knows where key and door are."""
    env = AMAGOKeyDoor(size, max_episode_steps, horizon, dark=False)
    return float(np.mean([_key_door_return(env, seed) for seed in range(rollouts)]))


def _key_door_return(env: AMAGOKeyDoor, seed: int) -> float:
    obs, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        place, has_key = (obs[:2] * env.size).round().astype(int), bool(obs[2])
        (x, y), goal = place, env.door_cell if has_key else env.key_cell
        obs, reward, terminated, truncated, _ = env.step(_towards(goal[0] - x, goal[1] - y))
        total, over = total + float(reward), terminated or truncated
    return total


def _towards(dx: int, dy: int) -> int:
    """0 stay, 1 left, 2 down, 3 right, 4 up: the move that a shortest way begins with."""
    if dx:
        return 3 if dx > 0 else 1
    if dy:
        return 2 if dy > 0 else 4
    return 0


def minigrid(env_id: str, rollouts: int = ROLLOUTS) -> float:
    """Return per rollout of one of MiniGrid's Empty or Memory tasks, of which the latter have to be looked at first."""
    import minigrid  # noqa: F401 (registers its ids)

    env: Any = gym.make(env_id).unwrapped
    returns = []
    for seed in range(rollouts):
        env.reset(seed=seed)
        # Its documentation: 1 - 0.9 * (steps / max_steps) where a rollout succeeds.
        returns.append(1 - 0.9 * _shortest(env) / env.max_steps)
    return float(np.mean(returns))


def _shortest(env: Any) -> int:
    """Turns and moves to the goal, breadth first over places and directions. Changes where the agent is.

    Of a Memory task: to the end that is right, by a way on which the object in the first room has been seen.
    """
    from minigrid.core.constants import DIR_TO_VEC

    remembers = hasattr(env, "success_pos")
    cue = (1, env.height // 2 - 1)

    def sees(x: int, y: int, direction: int) -> bool:
        env.agent_pos, env.agent_dir = (x, y), direction
        return bool(env.agent_sees(*cue))

    x, y, direction = *(int(x) for x in env.agent_pos), int(env.agent_dir)
    start = (x, y, direction, not remembers or sees(x, y, direction))
    steps, queue = {start: 0}, deque([start])
    while queue:
        x, y, direction, seen = state = queue.popleft()
        here = env.grid.get(x, y)
        if seen and ((x, y) == tuple(env.success_pos) if remembers else here is not None and here.type == "goal"):
            return steps[state]
        if remembers and (x, y) in (tuple(env.success_pos), tuple(env.failure_pos)):
            continue  # a rollout ends at either end
        dx, dy = (int(step) for step in DIR_TO_VEC[direction])
        ahead = env.grid.get(x + dx, y + dy)
        choices = [(x, y, (direction - 1) % 4), (x, y, (direction + 1) % 4)]
        if ahead is None or ahead.can_overlap():
            choices.append((x + dx, y + dy, direction))
        for choice in choices:
            after = (*choice, seen or sees(*choice))
            if after not in steps:
                steps[after] = steps[state] + 1
                queue.append(after)
    raise AssertionError("the grid has no way to the goal")


BOUNDS: dict[str, Callable[[], float]] = {
    "Dark Key-Door 9x9": key_door,
    "MiniGrid 5x5": partial(minigrid, "MiniGrid-Empty-Random-5x5-v0"),
    "MiniGrid MemoryS7": partial(minigrid, "MiniGrid-MemoryS7-v0"),
    "MiniGrid MemoryS9": partial(minigrid, "MiniGrid-MemoryS9-v0"),
}

if __name__ == "__main__":
    main()
