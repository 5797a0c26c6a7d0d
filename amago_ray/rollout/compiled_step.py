"""A policy's step through PyTorch's compiler, for workers that act on a processor.

A step of a small policy is a hundred operations of one or two microseconds, and its matrix products are less than half
of it. Compiled ahead of time it is one call, in which what lies between the products is fused. It takes 10 to 30
seconds, once for each policy and number of environments on a machine: weights are not in the code, and a worker that
comes back takes what was compiled (see `compiled_code`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from amago_ray.agent.policy import Policy
from amago_ray.nets.actions import stored_action
from amago_ray.nets.actors import ActorHead
from amago_ray.nets.columns import laid_out_for_acting
from amago_ray.nets.folding import fold_into, folded
from amago_ray.nets.key_value_cache import CompilableCache
from amago_ray.nets.scaling import LARGEST_BOUND
from amago_ray.rollout.compiled_code import Run, compiled_code
from amago_ray.rollout.memory_parts import ChangesShape, apart, parts_of, replaced, with_tensors
from amago_ray.rollout.policy_step import PolicyStep
from amago_ray.specs import ActionSpec, ArraySpec, ObsSpec

CHECKED_STEPS, TOLERANCE = 24, 5e-4
CHANGE = 0.05  # of weights, when steps are checked: enough to be seen, too little for networks to behave otherwise


class CannotCompile(RuntimeError):
    """A policy's step cannot be compiled: why."""


class StepOfTensors(nn.Module):
    """A policy's step as a function of tensors: observations by name, rl2, time_idx and a memory's tensors go in; the
    actions as stored come out, the parameters (B, P) of the distribution that they are of, and those tensors of the
    memory that are other ones.
    """

    def __init__(
        self,
        policy: Policy,
        action_spec: ActionSpec,
        sample: bool,
        names: tuple[str, ...],
        memory: Any,
        others: list[int],
    ):
        super().__init__()
        self.policy = policy
        self._action_spec, self._sample, self._names = action_spec, sample, names
        self._memory, self._others = memory, others

    def forward(self, given: list[Tensor]) -> list[Tensor]:
        num = len(self._names)
        obs, rl2, time_idx, memory = dict(zip(self._names, given)), given[num], given[num + 1], given[num + 2 :]
        state, after = self.policy.step(obs, rl2, time_idx, with_tensors(self._memory, iter(memory)))
        params = self.policy.actor.params(state, main_gamma_only=True, obs=self.policy.actor_obs(obs))
        vector = self.policy.choose_by(params, obs, self._sample)
        parts = _tensors(parts_of(after))
        return [stored_action(vector, self._action_spec), params, *(parts[number] for number in self._others)]


class CompiledPolicyStep(PolicyStep):
    """A `PolicyStep` on a processor, compiled for `num_envs` environments when it is made.

    It draws the actions that a `PolicyStep` draws, to float tolerance, which is checked before it is used.
    Raises CannotCompile: without a C++ compiler, for networks or memories that PyTorch cannot trace, and for a policy
    or an actor that acts by methods of its own.
    """

    def __init__(self, policy: Policy, action_spec: ActionSpec, num_envs: int, sample: bool, obs_spec: ObsSpec):
        super().__init__(policy, action_spec, num_envs, "cpu", sample)
        if type(policy) is not Policy or type(policy.actor).main_gamma is not ActorHead.main_gamma:
            raise CannotCompile("the policy, or its actor's main_gamma, is of another class than this package's")
        self._names, self._obs_spec = tuple(obs_spec), obs_spec
        self._views: dict[str, tuple[np.ndarray, Tensor]] = {}  # arrays that come at every step, and their tensors
        self._temperature = policy.temperature
        self._parts: list[Any] = []  # of the memory, whose tensors those of `_memory` are at the start of rollouts only
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):  # (compiled steps draw from the stream of all)
                self._plain = laid_out_for_acting(folded(policy))
                self._encoder = self._plain.traj_encoder
                self._others = self._parts_that_become_others()
                self._run = self._compiled()
                self._check()
        except CannotCompile:
            raise
        except Exception as error:  # whatever the tracer or the compiler makes of the networks' code, or of the machine
            raise CannotCompile(_in_short(error)) from error
        self.begin_all()

    def begin_all(self) -> None:
        self._remember(self._encoder.compilable_memory(self._num_envs))

    @torch.no_grad()
    def begin(self, fresh: np.ndarray) -> None:
        after = self._encoder.reset_memory(with_tensors(self._memory, iter(self._parts)), fresh)
        parts = _tensors(parts_of(after))
        if all(x is y for x, y in zip(parts, self._parts, strict=True)):  # it was written into
            self._memory = after
        else:
            self._remember(after)

    def weights_changed(self) -> None:
        fold_into(self._plain, self._policy)

    def act(self, obs: Mapping[str, np.ndarray], rl2: np.ndarray, time_idx: np.ndarray) -> np.ndarray:
        seen = [self._seen(name, obs[name]) for name in self._names]
        tempered = self._sample and self._policy.temperature != self._temperature
        random = torch.get_rng_state() if tempered else None
        stored, params = self._step(seen, self._view("rl2", rl2), torch.from_numpy(time_idx))
        if random is not None:  # draw again, by the temperature of now
            torch.set_rng_state(random)
            with torch.inference_mode():
                vector = self._policy.choose_by(params, dict(zip(self._names, seen)), True)
                stored = stored_action(vector, self._action_spec)
        return self._on_host(stored)

    def _seen(self, name: str, array: np.ndarray) -> Tensor:
        """Of the shape and dtype that the code was made for: it does not look. Raises ValueError for another shape."""
        spec = self._obs_spec[name]
        if array.shape[1:] != spec.shape:
            raise ValueError(f"observation {name} has shape {array.shape[1:]}, and the policy is made for {spec.shape}")
        return self._view(name, np.ascontiguousarray(array, dtype=spec.dtype))

    def _view(self, name: str, array: np.ndarray) -> Tensor:
        """A tensor of the same memory: the one of the last step, where it is the same array."""
        known = self._views.get(name)
        if known is None or known[0] is not array:
            known = self._views[name] = array, torch.from_numpy(array)
        return known[1]

    def _remember(self, memory: Any) -> None:
        self._memory = apart(memory)
        self._parts = _tensors(parts_of(self._memory))

    def _step(self, seen: list[Tensor], rl2: Tensor, time_idx: Tensor) -> tuple[Tensor, Tensor]:
        """Actions as stored and the parameters (B, P) of their distributions; the memory takes the step in."""
        if isinstance(self._memory, CompilableCache):
            self._memory.take_in_use()
            self._parts[-1] = self._memory.slots
        stored, params, *others = self._run([*seen, rl2, time_idx, *self._parts])
        for number, value in zip(self._others, others, strict=True):
            self._parts[number] = value
        return stored, params

    def _parts_that_become_others(self) -> list[int]:
        """Which tensors of a memory a step replaces, where it does not write into them."""
        before = apart(self._encoder.compilable_memory(self._num_envs))
        parts = [*parts_of(before)]
        layouts = [x.stride() if isinstance(x, Tensor) else None for x in parts]
        obs, rl2, time_idx = self._example(np.random.default_rng(0))
        _, after = self._plain.step(dict(zip(self._names, obs)), rl2, time_idx, before)
        found = [*parts_of(after)]
        try:
            others = replaced(parts, found, "cpu")
        except ChangesShape as error:
            raise CannotCompile(str(error)) from error
        if any(found[number].stride() != layouts[number] for number in others):
            raise CannotCompile("tensors of its memory lie otherwise in memory from step to step")
        numbers = [number for number, x in enumerate(parts) if isinstance(x, Tensor)]
        return [numbers.index(number) for number in others]

    def _compiled(self) -> Run:
        memory = apart(self._encoder.compilable_memory(self._num_envs))
        obs, rl2, time_idx = self._example(np.random.default_rng(0))
        given = [*obs, rl2, time_idx, *_tensors(parts_of(memory))]
        step = StepOfTensors(self._plain, self._action_spec, self._sample, self._names, memory, self._others)
        shapes: list[dict[int, Any]] = [{} for _ in given]
        if isinstance(memory, CompilableCache) and len(memory.slots) < memory.num_slots:
            shapes[-1] = {0: Dim("slots", min=len(memory.slots), max=memory.num_slots)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(step, (given,), dynamic_shapes=(shapes,))
            return compiled_code(program, given, step)

    def _check(self) -> None:
        """Some steps beside the same ones uncompiled, with a rollout that begins anew on the way, by other weights than
        those that the compiler has seen."""
        random, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
        for weight in (*self._plain.parameters(), *self._plain.buffers()):
            if weight.is_floating_point():
                change = CHANGE * (2 * torch.rand(weight.shape, generator=random) - 1)
                weight.mul_(1 + change)
                weight.add_(change.abs() if bool((weight >= 0.0).all()) else change)  # (variances stay positive)
        self.begin_all()
        expected_memory = self._plain.initial_memory(self._num_envs)
        for t in range(CHECKED_STEPS):
            if t == CHECKED_STEPS // 2:
                fresh = np.arange(self._num_envs) == 0
                self.begin(fresh)
                expected_memory = self._plain.reset_memory(expected_memory, fresh)
            obs, rl2, _ = self._example(rng)
            time_idx = torch.full((self._num_envs,), t)
            _, params = self._step(obs, rl2, time_idx)
            named = dict(zip(self._names, obs))
            state, expected_memory = self._plain.step(named, rl2, time_idx, expected_memory)
            expected = self._plain.actor.params(state, main_gamma_only=True, obs=self._plain.actor_obs(named))
            difference = float((params - expected).abs().max() / expected.abs().max().clamp(min=1.0))
            if not difference <= TOLERANCE:
                raise CannotCompile(f"its numbers would be off by {difference:.2g}")
        fold_into(self._plain, self._policy)

    def _example(self, rng: np.random.Generator) -> tuple[list[Tensor], Tensor, Tensor]:
        """Observations in the order of their names, rl2 and time_idx: any that could be."""
        obs = []
        for spec in self._obs_spec.values():
            shape = (self._num_envs, *spec.shape)
            if spec.nvec:
                values: np.ndarray = rng.integers(np.reshape(spec.nvec, spec.shape), size=shape)
            else:
                low, high = _bounds(spec)
                values = rng.uniform(low, high, size=shape)
            obs.append(torch.from_numpy(values.astype(spec.dtype)))
        rl2 = rng.normal(size=(self._num_envs, 1 + self._action_spec.vector_size)).astype(np.float32)
        return obs, torch.from_numpy(rl2), torch.zeros(self._num_envs, dtype=torch.int64)


def _tensors(parts: Iterable[Any]) -> list[Tensor]:
    return [x for x in parts if isinstance(x, Tensor)]


def _bounds(spec: ArraySpec) -> tuple[np.ndarray, np.ndarray]:
    """Between which numbers of an array may lie; within -1 and 1 where it declares none, or none that are near."""
    if spec.bounds is None:
        return np.array(-1.0 if np.dtype(spec.dtype).kind == "f" else 0.0), np.array(1.0)
    low, high = (np.reshape(x, spec.bounds.shape) for x in (spec.bounds.low, spec.bounds.high))
    near = (np.abs(low) <= LARGEST_BOUND) & (np.abs(high) <= LARGEST_BOUND)
    return np.where(near, low, np.maximum(low, -1.0)), np.where(near, high, np.minimum(high, 1.0))


def _in_short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
