"""Agents small enough to learn within a test."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from amago_ray.agent import Agent, AgentSpec, Multigammas
from amago_ray.envs.makers import check_env
from amago_ray.nets.actors import Actor
from amago_ray.nets.critics import NCritics
from amago_ray.nets.tstep_encoders import FFTstepEncoder

# As in worker processes: small networks on several threads spend their time waiting for them.
torch.set_num_threads(1)


def small_agent_spec(
    make_env: Any,
    traj_encoder_type: Any,
    max_seq_len: int,
    width: int = 32,
    seed: int = 0,
    agent_type: type[Agent] = Agent,
    critic_type: Any = NCritics,
    **agent_settings: Any,
) -> AgentSpec:
    """An agent with heads and timestep encoder of one hidden layer. traj_encoder_type may be a partial."""
    obs_spec, action_spec, _ = check_env(make_env)
    return AgentSpec(
        obs_spec=obs_spec,
        action_spec=action_spec,
        max_seq_len=max_seq_len,
        tstep_encoder_type=partial(FFTstepEncoder, n_layers=1, d_hidden=width, d_output=width),
        traj_encoder_type=traj_encoder_type,
        agent_type=partial(
            agent_type,
            actor_type=partial(Actor, n_layers=1, d_hidden=width),
            critic_type=partial(critic_type, n_layers=1, d_hidden=width),
            **agent_settings,
        ),
        seed=seed,
    )


def with_gammas(*gammas: float) -> list[str]:
    """Bindings for gin: these auxiliary discount factors, for all kinds of actions."""
    return [f"{Multigammas.__name__}.{kind} = {list(gammas)}" for kind in ("discrete", "continuous")]
