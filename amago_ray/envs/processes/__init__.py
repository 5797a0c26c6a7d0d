"""Environments in processes of their own: slow ones wait beside one another, and one that hangs or dies goes alone."""

from amago_ray.envs.processes.options import EnvProcesses

__all__ = ["EnvProcesses"]
