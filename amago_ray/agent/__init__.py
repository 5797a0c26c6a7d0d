"""The agent: actor and critics over an encoded sequence, their losses, and the acting half that workers get."""

from amago_ray.agent.actor_critic import Agent
from amago_ray.agent.multigammas import Multigammas
from amago_ray.agent.multitask import MultiTaskAgent
from amago_ray.agent.spec import AgentSpec

__all__ = ["Agent", "AgentSpec", "MultiTaskAgent", "Multigammas"]
