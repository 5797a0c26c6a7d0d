"""How a worker's policy makes a step: arrays in, stored actions out, with a memory of N environments in between.

On a GPU a step of a small policy is a hundred launches, which take the host longer than the GPU. There it is a CUDA
graph, recorded anew for all new weights: acting keeps what it has made of weights (`nets.kept`).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amago_ray.agent.policy import Policy
from amago_ray.cuda_graphs import CannotRecord, CudaGraphs, CudaRecorder, Recorder, is_known
from amago_ray.nets.actions import stored_action
from amago_ray.specs import ActionSpec


class PolicyStep:
    """A policy and its memory of N environments, one timestep after the other.

    sample: draw actions from the policy, else take its mode.
    """

    def __init__(self, policy: Policy, action_spec: ActionSpec, num_envs: int, device: str, sample: bool):
        self._policy, self._action_spec = policy, action_spec
        self._num_envs, self._device, self._sample = num_envs, device, sample
        self._memory: Any = None

    def begin_all(self) -> None:
        """All environments are at the start of a rollout."""
        self._memory = self._policy.initial_memory(self._num_envs)

    def begin(self, fresh: np.ndarray) -> None:
        """Those of `fresh`, (N,) bool, are at the start of a rollout."""
        self._memory = self._policy.reset_memory(self._memory, fresh)

    def weights_changed(self) -> None:
        """To be called whenever the policy has been given weights."""

    def act(self, obs: Mapping[str, np.ndarray], rl2: np.ndarray, time_idx: np.ndarray) -> np.ndarray:
        """The actions to take now, (N, ...) as stored. obs: name -> (N, ...). rl2: (N, 1+A). time_idx: (N,)."""
        device = self._device
        vector, self._memory = self._policy.act(
            {name: torch.from_numpy(value).to(device) for name, value in obs.items()},
            torch.from_numpy(rl2).to(device),
            torch.from_numpy(time_idx).to(device),
            self._memory,
            self._sample,
        )
        return self._on_host(stored_action(vector, self._action_spec))

    def _on_host(self, stored: Tensor) -> np.ndarray:
        return stored.cpu().numpy().astype(self._action_spec.dtype, copy=False)


class Input:
    """One array that a recorded step reads: its place on the device, and one that the device can copy from."""

    def __init__(self, like: np.ndarray, device: str):
        self._host = torch.empty(like.shape, dtype=torch.from_numpy(like).dtype, pin_memory=_is_gpu(device))
        self.place = torch.empty_like(self._host, device=device)

    def put(self, value: np.ndarray) -> None:
        """What was put before must have been read."""
        self._host.copy_(torch.from_numpy(value))
        self.place.copy_(self._host, non_blocking=True)


class GraphedPolicyStep(PolicyStep):
    """A `PolicyStep` that is launched once for given weights and recorded after that.

    Where a recording fails there is one warning, and steps are launched from then on.
    """

    def __init__(
        self,
        policy: Policy,
        action_spec: ActionSpec,
        num_envs: int,
        device: str,
        sample: bool,
        recorder: Recorder,
    ):
        super().__init__(policy, action_spec, num_envs, device, sample)
        self._recorder = recorder
        self._obs: dict[str, Input] = {}
        self._rl2: Input | None = None
        self._time_idx: Input | None = None
        self._launched = self._failed = False
        self._replay: Callable[[], None] | None = None
        self._result: Tensor | None = None

    def begin_all(self) -> None:
        if self._failed:
            return super().begin_all()
        memory = self._policy.recordable_memory(self._num_envs)
        if self._memory is not None:
            return self._keep(memory)
        self._memory = memory
        try:
            list(_tensors(memory))
        except CannotRecord as error:
            self._give_up(error)

    def begin(self, fresh: np.ndarray) -> None:
        if self._failed:
            return super().begin(fresh)
        self._keep(self._policy.reset_memory(self._memory, fresh))

    def weights_changed(self) -> None:
        self._launched, self._replay, self._result = False, None, None
        self._recorder.forget()

    def act(self, obs: Mapping[str, np.ndarray], rl2: np.ndarray, time_idx: np.ndarray) -> np.ndarray:
        if self._failed:
            return super().act(obs, rl2, time_idx)
        if self._rl2 is None or self._time_idx is None:
            self._obs = {name: Input(value, self._device) for name, value in obs.items()}
            self._rl2, self._time_idx = Input(rl2, self._device), Input(time_idx, self._device)
        for name, value in obs.items():
            self._obs[name].put(value)
        self._rl2.put(rl2)
        self._time_idx.put(time_idx)
        return self._on_host(self._act())

    def _act(self) -> Tensor:
        if not self._launched:
            self._launched = True
            return self._recorder.warm_up(self._step)
        if self._replay is None:
            try:
                self._replay, self._result = self._recorder.record(self._step)
            except CannotRecord as error:
                self._give_up(error)
                return self._step()
        assert self._result is not None
        self._replay()
        return self._result

    def _give_up(self, error: CannotRecord) -> None:
        self._failed = True
        warnings.warn(f"the policy acts without CUDA graphs: {str(error).strip().splitlines()[0]}", stacklevel=4)

    @torch.inference_mode()
    def _step(self) -> Tensor:
        assert self._rl2 is not None and self._time_idx is not None
        obs = {name: x.place for name, x in self._obs.items()}
        vector, memory = self._policy.act(obs, self._rl2.place, self._time_idx.place, self._memory, self._sample)
        self._keep(memory)
        return stored_action(vector, self._action_spec)

    @torch.inference_mode()
    def _keep(self, memory: Any) -> None:
        """Every tensor of a memory goes to where it lies."""
        for place, value in zip(_tensors(self._memory), _tensors(memory), strict=True):
            if place is not value:
                place.copy_(value)


def make_policy_step(
    policy: Policy, action_spec: ActionSpec, num_envs: int, device: str, sample: bool, cuda_graphs: CudaGraphs
) -> PolicyStep:
    """How a policy that lies on `device` acts there. cuda_graphs: see `Experiment.cuda_graphs`."""
    arguments = (policy, action_spec, num_envs, device, sample)
    known = cuda_graphs == "always" or all(map(is_known, policy.modules()))
    if not _is_gpu(device) or cuda_graphs == "never" or not known:
        return PolicyStep(*arguments)
    return GraphedPolicyStep(*arguments, CudaRecorder())


def _is_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda"


def _tensors(memory: Any) -> Iterable[Tensor]:
    """All tensors of a memory, always in the same order. Raises CannotRecord where it holds what is none."""
    if isinstance(memory, Tensor):
        yield memory
    elif isinstance(memory, (list, tuple)):
        for part in memory:
            yield from _tensors(part)
    elif isinstance(memory, Mapping):
        for name in sorted(memory):
            yield from _tensors(memory[name])
    elif dataclasses.is_dataclass(memory):
        for field in dataclasses.fields(memory):
            yield from _tensors(getattr(memory, field.name))
    elif not (memory is None or isinstance(memory, int)):
        raise CannotRecord(f"its memory holds a {type(memory).__name__}, which is no tensor")
