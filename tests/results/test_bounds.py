"""What the best policy could have: against returns that can be written down, and what the page says."""

from __future__ import annotations

import pytest

from amago_ray.envs.builtin import AMAGOKeyDoor
from results import bounds
from results.table import tasks

TASKS = {
    "dark_key_door": "Dark Key-Door 9x9",
    "three_suites_minigrid": "MiniGrid 5x5",
    "minigrid_memory_s7": "MiniGrid MemoryS7",
    "minigrid_memory_s9": "MiniGrid MemoryS9",
}


def test_the_key_and_the_door_of_one_task() -> None:
    env = AMAGOKeyDoor(size=5, max_episode_steps=50, horizon=60, dark=False)
    env.reset(seed=3)
    (x, y), key, door = (env._start % 5, env._start // 5), env.key_cell, env.door_cell
    to_key = abs(key[0] - x) + abs(key[1] - y)
    to_door = abs(door[0] - key[0]) + abs(door[1] - key[1])
    assert to_key > 0 and to_door > 0
    expected, attempts, left = 0, 0, 60
    while left > 0:  # an attempt is the way to the key, the way to the door and the step back to the start
        expected += (left >= to_key) + (left >= to_key + to_door)
        left -= to_key + to_door + 1
        attempts += 1
    assert bounds._key_door_return(env, seed=3) == expected and attempts > 2


def test_the_shortest_way_to_the_corner() -> None:
    # 5 x 5 with walls: 3 x 3 cells, the goal in the corner. From the other corner, facing right: 2 moves, a turn, 2.
    import gymnasium as gym
    import minigrid  # noqa: F401 (registers its ids)

    env = gym.make("MiniGrid-Empty-5x5-v0").unwrapped
    env.reset(seed=0)
    assert bounds._shortest(env) == 5


def test_the_object_has_to_be_seen_on_the_way() -> None:
    import gymnasium as gym
    import minigrid  # noqa: F401 (registers its ids)

    env = gym.make("MiniGrid-MemoryS7-v0").unwrapped
    env.reset(seed=0)
    for x in range(1, 5):  # from every place where a rollout begins, facing the corridor
        env.agent_pos, env.agent_dir = (x, 3), 0
        beside = env.agent_sees(1, 2)
        assert beside == (x == 1)
        # Along the corridor, a turn and a step; before that a turn to the object and back, unless it is in sight.
        assert bounds._shortest(env) == (env.success_pos[0] - x) + 2 + (0 if beside else 2)


@pytest.mark.parametrize("task", TASKS)
def test_the_page_has_these_numbers(task: str) -> None:
    published = tasks()[task].published
    assert published.value == round(bounds.BOUNDS[TASKS[task]](), published.digits)
    assert "results.bounds" in tasks()[task].note
