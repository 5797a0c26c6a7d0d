"""Environments that ship with the package. Importing this registers the gymnasium ids amago_ray/<Name>-v0."""

import gymnasium as gym

from amago_ray.envs.builtin.amago_key_door import AMAGOKeyDoor
from amago_ray.envs.builtin.bandit import Bandit
from amago_ray.envs.builtin.counting import Counting
from amago_ray.envs.builtin.dark_key_door import DarkKeyDoor
from amago_ray.envs.builtin.grid_reach import GridReach
from amago_ray.envs.builtin.identity import Identity
from amago_ray.envs.builtin.maze_runner import MazeRunner
from amago_ray.envs.builtin.meta_frozen_lake import MetaFrozenLake
from amago_ray.envs.builtin.ni_tmaze import NiTMaze
from amago_ray.envs.builtin.tabular_mdp import TabularMDP
from amago_ray.envs.builtin.tmaze import TMaze

__all__ = [
    "AMAGOKeyDoor",
    "Bandit",
    "Counting",
    "DarkKeyDoor",
    "GridReach",
    "Identity",
    "MazeRunner",
    "MetaFrozenLake",
    "NiTMaze",
    "TMaze",
    "TabularMDP",
]

for _name, _module in (
    ("AMAGOKeyDoor", "amago_key_door"),
    ("Bandit", "bandit"),
    ("DarkKeyDoor", "dark_key_door"),
    ("GridReach", "grid_reach"),
    ("MazeRunner", "maze_runner"),
    ("MetaFrozenLake", "meta_frozen_lake"),
    ("NiTMaze", "ni_tmaze"),
    ("TMaze", "tmaze"),
    ("TabularMDP", "tabular_mdp"),
):
    gym.register(id=f"amago_ray/{_name}-v0", entry_point=f"{__name__}.{_module}:{_name}")
