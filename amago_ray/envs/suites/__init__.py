"""Environments of other packages, each with what it lacks to be learned here. Nothing is imported before it is used.

What `gymnasium.make` can build needs nothing of this: `Experiment.make_train_env = "popgym:popgym-AutoencodeEasy-v0"`.
"""

from amago_ray.envs.suites.atari import atari_games, make_atari
from amago_ray.envs.suites.crafter import make_crafter
from amago_ray.envs.suites.dm_control import make_dm_control
from amago_ray.envs.suites.envpool import make_envpool
from amago_ray.envs.suites.gymnax import make_gymnax
from amago_ray.envs.suites.half_cheetah import make_half_cheetah
from amago_ray.envs.suites.metaworld import make_metaworld, metaworld_tasks
from amago_ray.envs.suites.minigrid import make_minigrid
from amago_ray.envs.suites.no_velocities import make_no_velocities
from amago_ray.envs.suites.popgym import make_popgym, popgym_games
from amago_ray.envs.suites.shared_spaces import share_spaces
from amago_ray.envs.suites.xland import make_xland

__all__ = [
    "atari_games",
    "make_atari",
    "make_crafter",
    "make_dm_control",
    "make_envpool",
    "make_gymnax",
    "make_half_cheetah",
    "make_metaworld",
    "make_minigrid",
    "make_no_velocities",
    "make_popgym",
    "make_xland",
    "metaworld_tasks",
    "popgym_games",
    "share_spaces",
]
