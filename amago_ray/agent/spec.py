"""`AgentSpec`: everything that a process needs to build the same agent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from amago_ray.agent.actor_critic import Agent
from amago_ray.nets.traj_encoders import TrajEncoder
from amago_ray.nets.tstep_encoders import TstepEncoder
from amago_ray.specs import ActionSpec, ObsSpec


@dataclass(frozen=True)
class AgentSpec:
    """Everything that a process needs to build the same agent (gin supplies the hyperparameters).

    action_mask_key: name of the observation array that says which actions are legal (see `Agent`); None for no mask.
    """

    obs_spec: ObsSpec
    action_spec: ActionSpec
    max_seq_len: int
    tstep_encoder_type: type[TstepEncoder]
    traj_encoder_type: type[TrajEncoder]
    agent_type: type[Agent]
    seed: int
    action_mask_key: str | None = None

    def build(self) -> Agent:
        """The agent with its initial weights: the same in every process. Leaves the global random state alone."""
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed accelerators too, and `fork_rng` would not put those back.
            torch.default_generator.manual_seed(self.seed)
            return self.agent_type(
                obs_spec=self.obs_spec,
                action_spec=self.action_spec,
                max_seq_len=self.max_seq_len,
                tstep_encoder_type=self.tstep_encoder_type,
                traj_encoder_type=self.traj_encoder_type,
                action_mask_key=self.action_mask_key,
            )
