"""What a user's networks learn beside their weights has to reach the processes that act."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amago_ray.agent import Agent
from amago_ray.agent.flat_weights import flatten_state, load_flat_state
from amago_ray.agent.policy import Policy
from amago_ray.agent.spec import AgentSpec
from amago_ray.cuda_graphs import is_known
from amago_ray.driver.probes.inputs import apart, is_own, timesteps

INTERNAL = frozenset(vars(nn.Module()))
STATE = (Tensor, np.ndarray, int, float, list, tuple, dict, deque)  # that a module's code may keep
TOLERANCE = 1e-5  # of the same computation on the same numbers


def check_published(agent: Agent, spec: AgentSpec) -> None:
    """Raises ValueError where a policy that has computed a loss acts otherwise than one that was given its weights.

    Only where a part of it is of a user's module. To be called after a loss in training mode.
    """
    policy = agent.policy.eval()
    if not is_own(policy):
        return
    worker = spec.build().policy.eval()
    load_flat_state(worker, flatten_state(policy))
    answers = _answers(policy, spec)
    if not _differ(_answers(worker, spec), answers):
        return
    if _differ(_answers(policy, spec), answers):
        return  # it draws something each time
    found = _found(policy, worker, spec, answers)
    raise ValueError(
        f"{found} changes in training and does not reach the processes that act, which get parameters and persistent "
        "buffers; keep it in a buffer, self.register_buffer(name, tensor), and write into that"
    )


def _found(policy: Policy, worker: Policy, spec: AgentSpec, answers: list[Tensor]) -> str:
    """What makes the worker's policy answer as the other one does, once it has it too."""
    for name, owner, attribute, value in _other_state(policy, worker):
        before = getattr(owner, attribute)
        with suppress(Exception):  # whatever a user's class makes of it
            setattr(owner, attribute, value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value))
            if not _differ(_answers(worker, spec), answers):
                return name
        setattr(owner, attribute, before)
    return "something"


@torch.no_grad()
def _answers(policy: Policy, spec: AgentSpec) -> list[Tensor]:
    """What each part of a policy makes of the same observations."""
    obs, rl2 = timesteps(spec.obs_spec, 1 + spec.action_spec.vector_size, 1, 2, spec.action_mask_key)
    embedding = policy.tstep_encoder(obs, rl2)
    states = policy.traj_encoder(embedding, torch.arange(2).expand(1, -1))
    seen = {name: x[:, 0] for name, x in policy.actor_obs(obs).items()}
    return [embedding, states, policy.actor.params(states[:, 0], main_gamma_only=True, obs=seen)]


def _differ(one: list[Tensor], other: list[Tensor]) -> bool:
    return any(apart(x, y, TOLERANCE) is not None for x, y in zip(one, other, strict=True))


def _other_state(policy: Policy, worker: Policy) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """What the two policies may hold different values in: its name, the module of the worker, and the value of the
    other one, which can be copied."""
    modules = dict(worker.named_modules())
    for name, module in policy.named_modules():
        if is_known(module):
            continue
        called = f"policy.{name} ({type(module).__name__})"
        for attribute in sorted(module._non_persistent_buffers_set):
            said = f"{called}: the buffer {attribute!r}, which is not persistent,"
            yield said, modules[name], attribute, getattr(module, attribute)
        for attribute, value in vars(module).items():
            if attribute not in INTERNAL and isinstance(value, STATE) and hasattr(modules[name], attribute):
                yield f"{called}: the attribute {attribute!r}", modules[name], attribute, value
