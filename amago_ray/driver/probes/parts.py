"""Parts of a policy that are of a user's module are tried one by one before any process starts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from amago_ray.agent import Agent
from amago_ray.agent.policy import Policy
from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.probes.inputs import apart, check_numbers, is_own, timesteps
from amago_ray.envs.spaces import BOUNDS_TOLERANCE
from amago_ray.nets.actors import ActorHead
from amago_ray.nets.distributions import ActionDistribution
from amago_ray.nets.policy_outputs import PolicyOutput
from amago_ray.specs import ActionSpec

NUM, LENGTH = 2, 3  # sequences and their timesteps
DRAWN = 64  # actions of a distribution
TOLERANCE = 1e-3  # of what is of the order of 1


def check_parts(agent: Agent, spec: AgentSpec) -> None:
    """Raises ValueError for a user's timestep encoder, actor or family of distributions that is not as it should be.

    In evaluation mode, on observations that fit the space.
    """
    policy = agent.policy.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if is_own(policy.tstep_encoder):
            _check_encoder(policy, spec)
        if is_own(policy.actor):
            _check_actor(policy, spec)
            _check_distribution(policy.actor.policy_output)


def _observed(policy: Policy, spec: AgentSpec) -> tuple[dict[str, Tensor], Tensor]:
    return timesteps(spec.obs_spec, 1 + spec.action_spec.vector_size, NUM, LENGTH, spec.action_mask_key)


def _check_encoder(policy: Policy, spec: AgentSpec) -> None:
    encoder, name = policy.tstep_encoder, type(policy.tstep_encoder).__name__
    obs, rl2 = _observed(policy, spec)
    together = encoder(obs, rl2)
    check_numbers(f"{name}: `encode`", together)
    expected = (NUM, LENGTH, encoder.emb_dim)
    if tuple(together.shape) != expected:
        raise ValueError(
            f"{name}: `encode` made an embedding of shape {tuple(together.shape)} of {NUM} sequences of {LENGTH} "
            f"timesteps; with emb_dim={encoder.emb_dim} it must be {expected}"
        )
    if together.dtype != torch.float32 and not is_own(policy.traj_encoder):
        raise ValueError(f"{name}: `encode` made an embedding of {together.dtype}; it must be torch.float32")
    for b, t in np.ndindex(NUM, LENGTH):
        alone = encoder({key: x[b : b + 1, t : t + 1] for key, x in obs.items()}, rl2[b : b + 1, t : t + 1])
        off = apart(alone[0, 0], together[b, t], TOLERANCE)
        if off is not None:
            raise ValueError(
                f"{name}: `encode` must encode each timestep alone, as acting does, and is {off:.2g} off where a "
                "timestep comes without the others of its sequence and batch; what mixes timesteps belongs into a "
                "sequence model"
            )


def _check_actor(policy: Policy, spec: AgentSpec) -> None:
    """What acts must be the last of what is trained."""
    actor, kind = policy.actor, type(policy.actor)
    if (kind.forward, kind.main_gamma) != (ActorHead.forward, ActorHead.main_gamma):
        return  # `params` is then whatever these make of it
    obs, _ = _observed(policy, spec)
    obs = dict(policy.actor_obs(obs))
    states = torch.randn(NUM, LENGTH, actor.state_dim)
    every = actor.params(states, main_gamma_only=False, obs=obs)
    main = actor.params(states[:, 0], main_gamma_only=True, obs={key: x[:, 0] for key, x in obs.items()})
    num = actor.policy_output.num_params
    for answer, leading, size, which in (
        (every, (NUM, LENGTH), actor.num_gammas * num, "main_gamma_only=False"),
        (main, (NUM,), num, "main_gamma_only=True"),
    ):
        if tuple(answer.shape) != (*leading, size):
            raise ValueError(
                f"{kind.__name__}: `params` with {which} returned shape {tuple(answer.shape)} of states "
                f"{(*leading, actor.state_dim)}; it must be {(*leading, size)}"
            )
    off = apart(main, every[:, 0, -num:], TOLERANCE)
    if off is not None:
        raise ValueError(
            f"{kind.__name__}: `params` with main_gamma_only=True must be the last {num} of those of all discount "
            f"factors, and is {off:.2g} off (in evaluation mode, in which it must draw nothing)"
        )


def _check_distribution(output: PolicyOutput) -> None:
    if not is_own(output):
        return
    dist, name = output(3.0 * torch.randn(DRAWN, output.num_params)), type(output).__name__
    spec = output.action_spec
    for method, action in (("sample()", dist.sample()), ("mode", dist.mode)):
        wrong = _no_action(action, spec)
        if wrong is not None:
            raise ValueError(f"{name}: {method} of its {type(dist).__name__} {wrong}")
    _check_logarithms(name, dist, dist.sample())


def _no_action(action: Tensor, spec: ActionSpec) -> str | None:
    """What is wrong with action vectors (DRAWN, A), if anything is."""
    expected = (DRAWN, spec.vector_size)
    if tuple(action.shape) != expected:
        return f"is of shape {tuple(action.shape)}; {DRAWN} action vectors must be {expected}"
    if not action.isfinite().all():
        return "is not finite"
    if spec.kind == "continuous":
        most = action.abs().max().item()
        return None if most <= 1 + BOUNDS_TOLERANCE else f"is as far as {most:.3g} from 0; actions are from -1 to 1"
    if not ((action == 0) | (action == 1)).all():
        return f"holds {action[(action != 0) & (action != 1)][0].item():.3g}; {spec.kind} action vectors hold 0 and 1"
    if spec.kind != "multibinary" and any((part.sum(-1) != 1).any() for part in action.split(spec.nvec, dim=-1)):
        return f"chooses another number of categories than one; {spec.kind} actions are one-hots"
    return None


def _check_logarithms(name: str, dist: ActionDistribution, action: Tensor) -> None:
    for method, answer in (("log_prob", dist.log_prob(action)), ("entropy", dist.entropy())):
        if tuple(answer.shape) != (DRAWN, 1):
            raise ValueError(
                f"{name}: {method} of its {type(dist).__name__} is of shape {tuple(answer.shape)} for {DRAWN} "
                f"distributions; it must be {(DRAWN, 1)}, of all parts of an action together"
            )
