"""A policy's step as one graph: on a GPU a captured CUDA graph, which is started by one call in place of a hundred."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amago_ray.agent.policy import Policy
from amago_ray.specs import ObsSpec

WARM_UP = 3  # steps before a capture, in which libraries allocate what they keep


class GraphedActing:
    """Greedy action vectors for N environments that all began together, one timestep after the other.

    Every tensor that a step reads or writes, memory included, has its place for good. `kind`: what runs the step:
    "CUDA graph", or on a CPU "plain", the same function called as it is.
    """

    def __init__(self, policy: Policy, num_envs: int, obs_spec: ObsSpec):
        self._policy = policy
        device = next(policy.parameters()).device
        self._obs = {
            name: torch.zeros(num_envs, *spec.shape, dtype=getattr(torch, spec.dtype), device=device)
            for name, spec in obs_spec.items()
        }
        self._rl2 = torch.zeros(num_envs, 1 + policy.actor.policy_output.action_spec.vector_size, device=device)
        self._time_idx = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._memory = {name: x.to(device).clone() for name, x in policy.traj_encoder.portable_memory(num_envs).items()}
        self.kind = "CUDA graph" if device.type == "cuda" else "plain"
        self._run: Callable[[], None] = self._step
        self._action: Tensor | None = None
        if device.type == "cuda":
            self._capture()

    def __call__(self, obs: dict[str, Tensor]) -> Tensor:
        """The actions (N, A); the next call writes over them."""
        for name, value in obs.items():
            self._obs[name].copy_(value)
        self._run()
        assert self._action is not None
        return self._action

    @torch.inference_mode()
    def _step(self) -> None:
        policy = self._policy
        embedding = policy.tstep_encoder({k: v.unsqueeze(1) for k, v in self._obs.items()}, self._rl2.unsqueeze(1))
        state, memory = policy.traj_encoder.portable_step(embedding.squeeze(1), self._time_idx, self._memory)
        action = policy.actor.main_gamma(state, policy.actor_obs(self._obs), policy.legal_actions(self._obs)).mode
        for name, value in memory.items():
            self._memory[name].copy_(value)
        self._time_idx += 1
        self._action = action

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        for value in (*self._memory.values(), self._time_idx):
            value.zero_()  # as before the first step
        self._run = graph.replay
