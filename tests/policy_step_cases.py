"""Policies, rollouts, memories and an environment for tests of how workers make a policy's step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from agent_cases import ACTION_SPECS, OBS_SPEC, tformer
from gpu.cases import ENCODERS

from amago_ray.agent.policy import Policy
from amago_ray.agent.spec import AgentSpec
from amago_ray.messages import Trajectory
from amago_ray.nets.attention import ClippedSlidingSinkAttention, SlidingSinkAttention
from amago_ray.nets.columns import laid_out_for_acting
from amago_ray.nets.traj_encoders import GRUTrajEncoder, TrajEncoder
from amago_ray.rollout.policy_step import PolicyStep
from amago_ray.specs import ArraySpec

N = 5
MORE_ENCODERS = {
    **ENCODERS,
    "sinks": partial(tformer, attention_type=partial(SlidingSinkAttention, window_size=3, sink_size=1)),
    "rescored": partial(
        tformer, attention_type=partial(ClippedSlidingSinkAttention, window_size=3, sink_size=1, logit_clip=5.0)
    ),
    "rope": partial(tformer, pos_emb="rope"),
}


def policy_of(spec: AgentSpec, device: str) -> Policy:
    return laid_out_for_acting(spec.build().policy.to(device).eval())


def decided(policy: Policy, seed: int) -> Policy:
    """With an actor whose action depends on what is seen, which a fresh one's hardly does."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter.normal_(generator=random) if parameter.dim() > 1 else parameter.zero_()
    return policy


class Rollouts:
    """Observations of N rollouts that end now and then, in the same way for everyone."""

    def __init__(self, kind: str, ending: float = 0.1):
        """ending: how probable it is that a rollout ends at a timestep."""
        self.ending = ending
        self.random, self.width = np.random.default_rng(0), 1 + ACTION_SPECS[kind].vector_size
        self.time_idx = np.zeros(N, np.int64)

    def __iter__(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        """Whose rollouts begin, and the arguments of a step."""
        while True:
            fresh = self.random.random(N) < self.ending
            self.time_idx[fresh] = 0
            obs = {name: self._observed(x) for name, x in OBS_SPEC.items()}
            yield fresh, obs, self.random.normal(size=(N, self.width)).astype(np.float32), self.time_idx.copy()
            self.time_idx += 1

    def _observed(self, spec: ArraySpec) -> np.ndarray:
        shape = (N, *spec.shape)
        values = self.random.integers(spec.nvec[0], size=shape) if spec.nvec else self.random.normal(size=shape)
        return values.astype(spec.dtype)


def act(step: PolicyStep, rollouts: Iterator[Any], timesteps: int) -> np.ndarray:
    actions = []
    for _ in range(timesteps):
        fresh, *arguments = next(rollouts)
        if fresh.any():
            step.begin(fresh)
        actions.append(step.act(*arguments).copy())
    return np.stack(actions)


class Remembering(TrajEncoder):
    """As a user writes one: what it sees is the last three timesteps, kept in one of several ways."""

    way = "shifted"

    @property
    def emb_dim(self) -> int:
        return 3 * self.tstep_dim

    def forward(self, seq_BLD: torch.Tensor, time_idx_BL: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def initial_memory(self, num_envs: int) -> Any:
        zeros = [torch.zeros(num_envs, self.tstep_dim) for _ in range(2)]
        return {
            "shifted": tuple(zeros),
            "counted": (*zeros, 0),
            "made by the first step": None,
            "growing": (zeros[0][:, None], zeros[0]),
            "views of one": torch.stack(zeros, dim=1),
        }[self.way]

    def step(self, seq_BD: torch.Tensor, time_idx_B: torch.Tensor, memory: Any) -> tuple[torch.Tensor, Any]:
        if self.way == "growing":
            seen = torch.cat((memory[0], seq_BD[:, None]), dim=1)
            return torch.cat((seq_BD, seen[:, -2], seen.mean(dim=1)), dim=-1), (seen, memory[1])
        if self.way == "views of one":
            return torch.cat((seq_BD, memory[:, 0], memory[:, 1]), dim=-1), torch.stack((seq_BD, memory[:, 0]), dim=1)
        one, two, *count = (seq_BD, seq_BD) if memory is None else memory
        scaled = seq_BD * (1 + count[0] if count else 1)
        return torch.cat((scaled, one, two), dim=-1), (seq_BD, one, *(n + 1 for n in count))

    def reset_memory(self, memory: Any, mask_B: np.ndarray) -> Any:
        return memory


class InTwoPlaces(Remembering):
    """Whose memory begins with one tensor as two of its parts, beside what a step writes into."""

    def initial_memory(self, num_envs: int) -> Any:
        zeros = torch.zeros(num_envs, self.tstep_dim)
        ring = torch.zeros(num_envs, 8, self.tstep_dim)
        return {"cur": zeros, "prev": zeros, "ring": ring, "count": torch.zeros(num_envs, dtype=torch.int64)}

    def step(self, seq_BD: torch.Tensor, time_idx_B: torch.Tensor, memory: Any) -> tuple[torch.Tensor, Any]:
        ring, count = memory["ring"], memory["count"]
        ring[torch.arange(len(seq_BD)), count % 8] = seq_BD
        count.add_(1)
        state = torch.cat((seq_BD, memory["cur"] - memory["prev"], ring.mean(dim=1)), dim=-1)
        return state, {"cur": seq_BD, "prev": memory["cur"], "ring": ring, "count": count}

    def reset_memory(self, memory: Any, mask_B: np.ndarray) -> Any:
        going_on = torch.from_numpy(~mask_B).to(memory["cur"].device)
        return {name: x * going_on.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype) for name, x in memory.items()}


class OwnEncoder(GRUTrajEncoder):
    """Of somebody else's module."""


class Reach(gym.Env):
    """Rollouts of 3 to 9 steps; the reward is how near the action is to what is seen."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 10))
        return self._look(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        return self._look(), -float(np.abs(action - self.seen).sum()), self.left == 0, False, {}

    def _look(self) -> np.ndarray:
        self.seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.seen


def assert_same_trajectories(some: list[Trajectory], others: list[Trajectory]) -> None:
    """To float tolerance, which actions that are fed back enlarge."""
    assert [one.id for one in some] == [other.id for other in others]
    for one, other in zip(some, others, strict=True):
        assert one.columns.keys() == other.columns.keys()
        for name, column in one.columns.items():
            np.testing.assert_allclose(column, other.columns[name], rtol=1e-3, atol=1e-4, err_msg=name)
