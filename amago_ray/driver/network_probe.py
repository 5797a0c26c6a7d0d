"""The networks of an agent are tried before any process starts: a step, a loss, and a sequence model by steps."""

from __future__ import annotations

import numpy as np
import torch

from amago_ray.agent import Agent
from amago_ray.agent.spec import AgentSpec
from amago_ray.learner.batches import training_batch
from amago_ray.messages import ACTION, REWARD, TERMINATED, Batch, SampledSequences
from amago_ray.nets.traj_encoders import TrajEncoder
from amago_ray.specs import OBS_PREFIX

OWN = TrajEncoder.__module__.partition(".")[0]
TRIED = 4  # timesteps of a sequence model
TOLERANCE = 1e-3  # of states, which are of the order of 1


def check_acting(agent: Agent, spec: AgentSpec) -> None:
    """One acting step on zeros: networks that do not fit together fail here and not in a remote process."""
    policy = agent.policy.eval()
    obs = {name: torch.zeros(1, *s.shape, dtype=getattr(torch, s.dtype)) for name, s in spec.obs_spec.items()}
    rl2 = torch.zeros(1, 1 + spec.action_spec.vector_size)
    policy.act(obs, rl2, torch.zeros(1, dtype=torch.long), policy.initial_memory(1), sample=True)


def check_loss(agent: Agent, spec: AgentSpec, packed: bool) -> None:
    """The loss of a batch of two short sequences of zeros, as a learner computes it, with what it would log.

    Changes the agent's statistics. Raises ValueError for a loss that is no scalar, and what the networks raise.
    """
    with torch.random.fork_rng(devices=[]):
        loss = agent.train()(training_batch(_zeros(spec), spec.action_spec, torch.device("cpu"), packed), log=True).loss
    if loss.dim() or not loss.requires_grad:
        gradient = "with gradient" if loss.requires_grad else "without gradient"
        raise ValueError(
            f"{type(agent).__name__}: its loss is of shape {tuple(loss.shape)}, {gradient}; it must be one number with "
            "gradient (extra_loss is the mean of something, as batch.mean takes it)"
        )


def _zeros(spec: AgentSpec) -> Batch:
    """Two rollouts of 2 and 1 transitions, the second of which ends; all actions are legal."""
    lengths = np.array([min(2, spec.max_seq_len), 1])
    rows = int(lengths.sum()) + 2
    columns = {OBS_PREFIX + name: np.zeros((rows, *s.shape), s.dtype) for name, s in spec.obs_spec.items()}
    if spec.action_mask_key is not None:
        columns[OBS_PREFIX + spec.action_mask_key] += 1
    columns[ACTION] = np.zeros((rows, *spec.action_spec.shape), spec.action_spec.dtype)
    columns[REWARD] = np.zeros(rows, np.float32)
    columns[TERMINATED] = np.arange(rows) == rows - 1
    none = np.zeros(2, np.int64)
    ids, probability = np.zeros((2, 3), np.int64), np.full(2, 0.5)
    drawn = SampledSequences(columns, lengths, none, none, ids, none, none, probability, life=0, total=1.0)
    return Batch((drawn,), part=none, index=np.arange(2), probability=probability)


@torch.no_grad()
def check_steps(encoder: TrajEncoder) -> None:
    """Raises ValueError where a user's sequence model acts step by step as it does not train on whole sequences."""
    num = min(TRIED, encoder.max_seq_len + 1)
    if type(encoder).__module__.partition(".")[0] == OWN or num < TRIED:
        return
    encoder.eval()
    seq = torch.randn(2, num, encoder.tstep_dim, generator=torch.Generator().manual_seed(0))
    time_idx = torch.arange(num).expand(2, -1)
    whole, memory = encoder(seq, time_idx), encoder.initial_memory(2)
    for t in range(num - 1):
        state, memory = encoder.step(seq[:, t], time_idx[:, t], memory)
        _check_same(encoder, state, whole[:, t], f"after {t + 1} of {num} timesteps")
    # The first environment begins anew, the other goes on.
    memory = encoder.reset_memory(memory, np.array([True, False]))
    last = torch.stack((seq[0, 0], seq[1, -1]))
    state, _ = encoder.step(last, torch.tensor([0, num - 1]), memory)
    _check_same(encoder, state, torch.stack((whole[0, 0], whole[1, -1])), "after reset_memory of one of two")


def _check_same(encoder: TrajEncoder, stepped: torch.Tensor, whole: torch.Tensor, when: str) -> None:
    off = (stepped - whole).abs().max().item()
    if off > TOLERANCE * (1.0 + whole.abs().max().item()):
        raise ValueError(
            f"{type(encoder).__name__}: `step` and `forward` must agree, and are {off:.2g} apart {when}. One that has "
            "memory defines initial_memory, step and reset_memory, and `forward` must not look ahead"
        )
