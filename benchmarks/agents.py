"""The agents that are measured: both, on every sequence model, in the size of the demo and in AMAGO's default size."""

from __future__ import annotations

from dataclasses import dataclass

import gin

from amago_ray.agent import Agent, MultiTaskAgent
from amago_ray.agent.spec import AgentSpec
from amago_ray.nets.traj_encoders import (
    FFTrajEncoder,
    GRUTrajEncoder,
    MambaTrajEncoder,
    TformerTrajEncoder,
    TrajEncoder,
)
from amago_ray.nets.tstep_encoders import FFTstepEncoder
from amago_ray.specs import ActionSpec, ArraySpec, ObsSpec

ENCODERS: dict[str, type[TrajEncoder]] = {
    "FF": FFTrajEncoder,
    "GRU": GRUTrajEncoder,
    "Transformer": TformerTrajEncoder,
    "Mamba": MambaTrajEncoder,
}

ONLINE = "MultiTaskAgent online"
# The type, and settings. By default a `MultiTaskAgent` only clones; with its online term it also maximises the critics.
AGENTS: dict[str, tuple[type[Agent], tuple[str, ...]]] = {
    "Agent": (Agent, ()),
    "MultiTaskAgent": (MultiTaskAgent, ()),
    ONLINE: (MultiTaskAgent, ("MultiTaskAgent.online_coeff = 0.1",)),
}

ACTIONS = {
    "discrete": ActionSpec("discrete", (), "int64", 5, (5,)),
    "continuous": ActionSpec("continuous", (4,), "float32", 4),
}

# Speed does not depend on the range of the bins; left unset it would be warned about.
RETURN_RANGE = ("NCriticsTwoHot.min_return = -100.0", "NCriticsTwoHot.max_return = 100.0")


@dataclass(frozen=True)
class Size:
    """bindings: gin settings, all others are defaults. batch_size: sequences. max_seq_len: transitions of a sequence.
    obs_width: numbers per observation."""

    bindings: tuple[str, ...]
    batch_size: int
    max_seq_len: int
    obs_width: int

    @property
    def obs_spec(self) -> ObsSpec:
        return {"observation": ArraySpec((self.obs_width,), "float32")}


SIZES = {
    # As configs/meta_frozen_lake.gin and, for the Transformer, configs/tmaze.gin.
    "demo": Size(
        bindings=(
            "FFTrajEncoder.d_model = 64",
            "GRUTrajEncoder.d_hidden = 64",
            "GRUTrajEncoder.n_layers = 1",
            "GRUTrajEncoder.d_output = 64",
            "TformerTrajEncoder.d_model = 64",
            "TformerTrajEncoder.n_heads = 4",
            "TformerTrajEncoder.d_ff = 128",
            "TformerTrajEncoder.n_layers = 2",
            "TformerTrajEncoder.dropout_ff = 0.0",
            "TformerTrajEncoder.dropout_emb = 0.0",
            "MambaTrajEncoder.d_model = 64",
            "MambaTrajEncoder.n_layers = 2",
            "FFTstepEncoder.d_hidden = 64",
            "FFTstepEncoder.d_output = 64",
            "Actor.d_hidden = 64",
            "NCritics.d_hidden = 64",
            "NCriticsTwoHot.d_hidden = 64",
            "Agent.gamma = 0.97",
            "Multigammas.discrete = [0.7, 0.9]",
            "Multigammas.continuous = [0.7, 0.9]",
            *RETURN_RANGE,
        ),
        batch_size=24,
        max_seq_len=48,
        obs_width=4,
    ),
    "default": Size(bindings=RETURN_RANGE, batch_size=24, max_seq_len=128, obs_width=32),
}


def configured_spec(
    size: Size, encoder: str, action_spec: ActionSpec, obs_spec: ObsSpec | None = None, agent: str = "Agent"
) -> AgentSpec:
    """The agent of this size, whose settings become gin's whole configuration: build it before asking for the next."""
    agent_type, bindings = AGENTS[agent]
    gin.clear_config()
    gin.parse_config([*size.bindings, *bindings])
    return AgentSpec(
        obs_spec=obs_spec or size.obs_spec,
        action_spec=action_spec,
        max_seq_len=size.max_seq_len,
        tstep_encoder_type=FFTstepEncoder,
        traj_encoder_type=ENCODERS[encoder],
        agent_type=agent_type,
        seed=0,
    )
