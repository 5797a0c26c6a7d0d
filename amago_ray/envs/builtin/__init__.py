"""Environments that ship with the package. Importing this registers the gymnasium ids amago_ray/<Name>-v0."""

import gymnasium as gym

from amago_ray.envs.builtin.counting import Counting
from amago_ray.envs.builtin.dark_key_door import DarkKeyDoor
from amago_ray.envs.builtin.grid_reach import GridReach
from amago_ray.envs.builtin.identity import Identity
from amago_ray.envs.builtin.meta_frozen_lake import MetaFrozenLake
from amago_ray.envs.builtin.tmaze import TMaze

__all__ = ["Counting", "DarkKeyDoor", "GridReach", "Identity", "MetaFrozenLake", "TMaze"]

for _name, _module in (
    ("DarkKeyDoor", "dark_key_door"),
    ("GridReach", "grid_reach"),
    ("MetaFrozenLake", "meta_frozen_lake"),
    ("TMaze", "tmaze"),
):
    gym.register(id=f"amago_ray/{_name}-v0", entry_point=f"{__name__}.{_module}:{_name}")
