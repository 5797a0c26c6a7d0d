"""How a worker's policy makes a step: arrays in, stored actions out, with a memory of N environments in between.

On a GPU a step of a small policy is a hundred launches, which take the host longer than the GPU. There it is a CUDA
graph, recorded anew for all new weights: acting keeps what it has made of weights (`nets.kept`). For a processor it can
be compiled (`compiled_step`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from amago_ray.agent.policy import Policy
from amago_ray.cuda_graphs import CannotRecord, CudaGraphs, CudaRecorder, Recorder, is_known
from amago_ray.nets.actions import stored_action
from amago_ray.rollout.memory_parts import ChangesShape, apart, parts_of, replaced
from amago_ray.specs import ActionSpec, ObsSpec
from amago_ray.warned import warn

CompileActing = Literal["auto", "always", "never"]


class PolicyStep:
    """A policy and its memory of N environments, one timestep after the other.

    All of it is in inference mode, as `Policy.act` is: what that makes could not be written into elsewhere.

    sample: draw actions from the policy, else take its mode.
    """

    def __init__(self, policy: Policy, action_spec: ActionSpec, num_envs: int, device: str, sample: bool):
        self._policy, self._action_spec = policy, action_spec
        self._num_envs, self._device, self._sample = num_envs, device, sample
        self._memory: Any = None

    @torch.inference_mode()
    def begin_all(self) -> None:
        """All environments are at the start of a rollout."""
        self._memory = self._policy.initial_memory(self._num_envs)

    @torch.inference_mode()
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
    """A `PolicyStep` that is launched once for given weights, which makes of them what acting keeps, and recorded then.

    Where a recording fails, or a memory is not as `TrajEncoder.recordable_memory` says, there is one warning, and steps
    are launched from then on.
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
        self._temperature = policy.temperature
        self._launched = self._failed = False
        self._replay: Callable[[], None] | None = None
        self._result: Tensor | None = None

    @torch.inference_mode()
    def begin_all(self) -> None:
        if self._failed:
            return super().begin_all()
        memory = self._policy.recordable_memory(self._num_envs)
        if self._memory is None:
            self._memory = apart(memory)
        self._keep(memory)

    @torch.inference_mode()
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
        if self._temperature != self._policy.temperature:
            self._temperature = self._policy.temperature
            self.weights_changed()
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

    @torch.inference_mode()
    def _step(self) -> Tensor:
        assert self._rl2 is not None and self._time_idx is not None
        obs = {name: x.place for name, x in self._obs.items()}
        vector, memory = self._policy.act(obs, self._rl2.place, self._time_idx.place, self._memory, self._sample)
        self._keep(memory)
        return stored_action(vector, self._action_spec)

    @torch.inference_mode()
    def _keep(self, memory: Any) -> None:
        """Every tensor of a memory goes to where it lies. One that cannot be kept so takes the place of the other."""
        try:
            moves = _moves([*parts_of(self._memory)], [*parts_of(memory)], torch.device(self._device).type)
        except ChangesShape as error:
            self._memory = memory
            return self._give_up(error)
        for place, value in moves:
            place.copy_(value)

    def _give_up(self, error: CannotRecord | ChangesShape) -> None:
        if not self._failed:
            warn(f"the policy acts without CUDA graphs: {str(error).strip().splitlines()[0]}", stacklevel=4)
        self._failed = True


def make_policy_step(
    policy: Policy,
    action_spec: ActionSpec,
    obs_spec: ObsSpec,
    num_envs: int,
    device: str,
    sample: bool,
    cuda_graphs: CudaGraphs = "auto",
    compile_acting: CompileActing = "never",
) -> PolicyStep:
    """How a policy that lies on `device` acts there. cuda_graphs, compile_acting: see `Experiment`; "auto" compiles."""
    known = all(map(is_known, policy.modules()))
    if _is_gpu(device):
        if cuda_graphs == "always" or (cuda_graphs == "auto" and known):
            return GraphedPolicyStep(policy, action_spec, num_envs, device, sample, CudaRecorder())
    elif compile_acting == "always" or (compile_acting == "auto" and known):
        from amago_ray.rollout.compiled_step import CannotCompile, CompiledPolicyStep

        try:
            return CompiledPolicyStep(policy, action_spec, num_envs, sample, obs_spec)
        except CannotCompile as error:
            warn(f"the policy acts uncompiled: {error}", stacklevel=2)
    return PolicyStep(policy, action_spec, num_envs, device, sample)


def _is_gpu(device: str) -> bool:
    """Whether it is the GPU in sight; what is recorded is on that."""
    return device == "cuda"


def _moves(before: Sequence[Any], after: Sequence[Any], device: str) -> list[tuple[Tensor, Tensor]]:
    """(place, value) of the tensors of a memory that are to be written over, so that nothing is read after it was.

    Raises ChangesShape where that would not be all that changes.
    """
    moves = [(before[number], after[number]) for number in replaced(before, after, device)]
    places = {place.untyped_storage().data_ptr() for place, _ in moves}
    return [(p, v.clone() if v.untyped_storage().data_ptr() in places else v) for p, v in moves]
