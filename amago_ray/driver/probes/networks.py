"""The networks of an agent are tried before any process starts: a step and a loss."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from amago_ray.agent import Agent
from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.probes.hooks import checked_hooks
from amago_ray.driver.probes.inputs import observed
from amago_ray.learner.batches import training_batch
from amago_ray.messages import ACTION, REWARD, TERMINATED, Batch, SampledSequences
from amago_ray.specs import OBS_PREFIX


def check_has_sizes(agent: Agent) -> None:
    """Raises ValueError for parameters whose shapes only a first batch would tell."""
    for name, value in (*agent.named_parameters(), *agent.named_buffers()):
        if isinstance(value, UninitializedParameter | UninitializedBuffer):
            raise ValueError(
                f"{name} has no size until a first batch (nn.Lazy...), and other processes build the same network "
                "without one: give the layer its number of inputs, which its constructor is told"
            )


def check_acting(agent: Agent, spec: AgentSpec) -> None:
    """One acting step on zeros: networks that do not fit together fail here and not in a remote process."""
    policy = agent.policy.eval()
    obs = {name: torch.zeros(1, *s.shape, dtype=getattr(torch, s.dtype)) for name, s in spec.obs_spec.items()}
    rl2 = torch.zeros(1, 1 + spec.action_spec.vector_size)
    policy.act(obs, rl2, torch.zeros(1, dtype=torch.long), policy.initial_memory(1), sample=True)


def check_loss(agent: Agent, spec: AgentSpec, packed: bool) -> None:
    """The loss of a batch of two short sequences, as a learner computes it, with what it would log.

    Changes the agent's statistics. Raises ValueError for a loss that is no scalar, for hooks of one's own that return
    other shapes than they should, and what the networks raise.
    """
    batch = training_batch(_first_batch(spec), spec.action_spec, torch.device("cpu"), packed)
    with torch.random.fork_rng(devices=[]), checked_hooks(agent, batch.num_real):
        loss = agent.train()(batch, log=True).loss
    if loss.dim() or not loss.requires_grad:
        gradient = "with gradient" if loss.requires_grad else "without gradient"
        raise ValueError(
            f"{type(agent).__name__}: its loss is of shape {tuple(loss.shape)}, {gradient}; it must be one number with "
            "gradient (extra_loss is the mean of something, as batch.mean takes it)"
        )


def _first_batch(spec: AgentSpec) -> Batch:
    """Two rollouts of 2 and 1 transitions, the second of which ends; all actions are legal."""
    lengths, rng = np.array([min(2, spec.max_seq_len), 1]), np.random.default_rng(0)
    rows = int(lengths.sum()) + 2
    columns = {OBS_PREFIX + name: observed(s, rows, rng) for name, s in spec.obs_spec.items()}
    if spec.action_mask_key is not None:
        columns[OBS_PREFIX + spec.action_mask_key][:] = 1
    columns[ACTION] = np.zeros((rows, *spec.action_spec.shape), spec.action_spec.dtype)
    columns[REWARD] = rng.random(rows).astype(np.float32)
    columns[TERMINATED] = np.arange(rows) == rows - 1
    none = np.zeros(2, np.int64)
    ids, probability = np.zeros((2, 3), np.int64), np.full(2, 0.5)
    drawn = SampledSequences(columns, lengths, none, none, ids, none, none, probability, life=0, total=1.0)
    return Batch((drawn,), part=none, index=np.arange(2), probability=probability)
