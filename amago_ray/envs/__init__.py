"""Environments: what their spaces become, how many are stepped together, and how actions are explored."""

from amago_ray.envs.amago_env import AMAGOEnv, env_name_of
from amago_ray.envs.deadline import DeadlineTerminates
from amago_ray.envs.exploration import BilevelEpsilonGreedy, EpsilonGreedy, ExplorationWrapper, TMazeExploration
from amago_ray.envs.makers import EnvFailure, EnvPool, Transition, VectorEnvPool, check_env, make_pool
from amago_ray.envs.spaces import action_spec, obs_spec

__all__ = [
    "AMAGOEnv",
    "BilevelEpsilonGreedy",
    "DeadlineTerminates",
    "EnvFailure",
    "EnvPool",
    "EpsilonGreedy",
    "ExplorationWrapper",
    "TMazeExploration",
    "Transition",
    "VectorEnvPool",
    "action_spec",
    "check_env",
    "env_name_of",
    "make_pool",
    "obs_spec",
]
