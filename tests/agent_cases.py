"""Small agents and batches, for the tests of both agents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from amago_ray.agent import MultiTaskAgent
from amago_ray.agent.actor_critic import Agent
from amago_ray.agent.multigammas import AUXILIARY_GAMMAS
from amago_ray.agent.policy import TrainingBatch
from amago_ray.nets.actions import action_vector
from amago_ray.nets.actors import Actor
from amago_ray.nets.critics import NCritics, NCriticsTwoHot
from amago_ray.nets.traj_encoders import FFTrajEncoder, GRUTrajEncoder, TformerTrajEncoder, TrajEncoder
from amago_ray.nets.tstep_encoders import FFTstepEncoder
from amago_ray.specs import ActionSpec, ArraySpec

torch.set_num_threads(1)

ACTION_SPECS = {
    "discrete": ActionSpec("discrete", (), "int64", 4, (4,)),
    "continuous": ActionSpec("continuous", (2,), "float32", 2),
    "multibinary": ActionSpec("multibinary", (3,), "int8", 3),
    "multidiscrete": ActionSpec("multidiscrete", (2,), "int64", 5, (2, 3)),
}
OBS_SPEC = {"x": ArraySpec((3,), "float32"), "n": ArraySpec((), "int64", (4,))}
LENGTHS, L = [8, 3, 1, 5], 8
B, G = len(LENGTHS), len(AUXILIARY_GAMMAS) + 1

tstep_encoder = partial(FFTstepEncoder, n_layers=1, d_hidden=16, d_output=12)
tformer = partial(TformerTrajEncoder, d_model=16, n_heads=2, d_ff=24, n_layers=1, dropout_ff=0.0, dropout_emb=0.0)
gru = partial(GRUTrajEncoder, d_hidden=16, n_layers=1, d_output=12)
ff = partial(FFTrajEncoder, d_model=16)
actor = partial(Actor, n_layers=1, d_hidden=16)
critics = partial(NCritics, n_layers=1, d_hidden=16)
bin_critics = partial(NCriticsTwoHot, n_layers=1, d_hidden=16, output_bins=31, min_return=-100.0, max_return=100.0)


def build(
    kind: str,
    traj_encoder: Callable[..., TrajEncoder] = gru,
    agent_type: type[Agent] = Agent,
    **settings: object,
) -> Agent:
    torch.manual_seed(0)
    critic_type = bin_critics if issubclass(agent_type, MultiTaskAgent) else critics
    return agent_type(
        OBS_SPEC,
        ACTION_SPECS[kind],
        max_seq_len=L,
        tstep_encoder_type=tstep_encoder,
        traj_encoder_type=traj_encoder,
        **{"actor_type": actor, "critic_type": critic_type, **settings},
    )


def every_critic(agent: Agent, B: int, L: int) -> np.ndarray:
    """In place of `Agent.td_ensemble`: all critics, each once."""
    C, G = agent.critics.num_critics, len(agent.gammas)
    return np.tile(np.arange(C)[:, None], (B, L, 1, G))


def stored_actions(spec: ActionSpec, shape: tuple[int, ...]) -> Tensor:
    if spec.kind == "continuous":
        return torch.rand(*shape, *spec.shape) * 2 - 1
    nvec = torch.tensor(spec.nvec or [2] * spec.vector_size)
    return (torch.rand(*shape, *spec.shape, dtype=torch.float64) * nvec.view(spec.shape)).long()


def make_batch(kind: str, seed: int = 0) -> TrainingBatch:
    """B sequences of `LENGTHS` transitions, zeros in the padding."""
    torch.manual_seed(seed)
    spec, mask = ACTION_SPECS[kind], torch.arange(L) < torch.tensor(LENGTHS).unsqueeze(1)
    batch = TrainingBatch(
        obs={"x": torch.randn(B, L + 1, 3), "n": torch.randint(4, (B, L + 1))},
        rl2=torch.randn(B, L + 1, 1 + spec.vector_size),
        time_idx=torch.arange(L + 1).expand(B, -1),
        actions=action_vector(stored_actions(spec, (B, L)), spec),
        rewards=torch.randn(B, L),
        terminated=(torch.rand(B, L) < 0.2).float(),
        mask=mask,
    )
    return fill_padding(batch, 0.0)


def fill_padding(batch: TrainingBatch, value: float) -> TrainingBatch:
    """`value` in every padded entry, a valid one where entries are categories or indices."""

    def fill(x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.reshape(*mask.shape, *[1] * (x.dim() - 2)), x, value)

    steps = batch.timestep_mask
    return dataclasses.replace(
        batch,
        obs={
            "x": fill(batch.obs["x"], steps),
            "n": torch.where(steps, batch.obs["n"], int(value) % 4),
        },
        rl2=fill(batch.rl2, steps),
        time_idx=torch.where(steps, batch.time_idx, int(abs(value))),
        actions=fill(batch.actions, batch.mask),
        rewards=fill(batch.rewards, batch.mask),
        terminated=fill(batch.terminated, batch.mask),
    )


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def train(agent: Agent, parameters: Iterable[Tensor], batch: TrainingBatch, lr: float) -> np.ndarray:
    """(total, actor, critic) loss of each of 50 updates on one batch."""
    optimizer, history = torch.optim.AdamW(parameters, lr=lr), []
    for _ in range(50):
        out = agent(batch)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        agent.update_targets()
        history.append([out.loss.item(), out.actor_loss.item(), out.critic_loss.item()])
    return np.array(history)
