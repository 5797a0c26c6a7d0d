"""A policy as one graph with its memory as inputs and outputs: a file that acts where this package is not installed.

    action, memory[, probs] = step(obs, reward, episode_start, memory)

docs/using_a_policy.md says what goes in and comes out.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import Tensor, nn

from amago_ray.agent.policy import Policy
from amago_ray.atomic_files import write_atomically
from amago_ray.envs.saved_spaces import to_plain
from amago_ray.envs.spaces import ActionConverter, ObsConverter, middle_and_reach
from amago_ray.nets.actions import stored_action
from amago_ray.nets.folding import folded
from amago_ray.rollout.acting import ActingPolicy

Format = Literal["onnx", "torch"]
FORMATS: tuple[str, ...] = get_args(Format)
DESCRIPTION = "amago_ray"  # under which a file says what it is: ONNX metadata, a file within PyTorch's archive
CHECKED_ENVS, CHECKED_STEPS, TOLERANCE = 3, 40, 1e-3
RESET_EVERY = (7, 11, 1000)  # steps between two rollouts of each environment of the check

Step = Callable[
    [dict[str, np.ndarray], np.ndarray, np.ndarray, dict[str, np.ndarray]],
    tuple[np.ndarray, dict[str, np.ndarray]],
]


class PortablePolicy(nn.Module):
    """Acting by a policy's mode, for B environments, in numbers that need no conversion before or after.

    obs: name -> (B, *shape), in the environment's own numbers. reward: (B,) float32, of the last action.
    episode_start: (B,) bool, whose memory is forgotten. memory: name -> (B, ...), zeros in the beginning.
    Returns the actions (B, *shape) as the environment takes them, the new memory, and in categorical and binary spaces
    also the probabilities (B, A), those of several categories end to end.
    Raises ValueError for a policy whose memory cannot be had as tensors.
    """

    def __init__(self, policy: Policy, observation_space: gym.Space, action_space: gym.Space):
        super().__init__()
        self.policy = folded(policy).cpu()
        self.observation_space, self.action_space = observation_space, action_space
        self.spec = ActionConverter(action_space).spec
        self.meaning = ObsConverter(observation_space).meaning
        self.policy.traj_encoder.portable_memory(1)

    @property
    def has_probs(self) -> bool:
        return self.spec.kind != "continuous"

    def initial_memory(self, num_envs: int) -> dict[str, Tensor]:
        """Zeros: the last action's vector, the number of actions taken, and what the sequence model keeps."""
        return {
            "action": torch.zeros(num_envs, self.spec.vector_size),
            "time_idx": torch.zeros(num_envs, dtype=torch.int64),
            **self.policy.traj_encoder.portable_memory(num_envs),
        }

    def initial_obs(self, num_envs: int) -> dict[str, Tensor]:
        """Observations of the right shapes and dtypes, the least of each category."""
        arrays = {}
        for name, (shape, dtype, _, start) in self.meaning.items():
            if start:
                arrays[name] = torch.tensor(start).reshape(shape).expand(num_envs, *shape).clone()
            else:
                arrays[name] = torch.zeros(num_envs, *shape, dtype=getattr(torch, dtype))
        return arrays

    def forward(
        self, obs: dict[str, Tensor], reward: Tensor, episode_start: Tensor, memory: dict[str, Tensor]
    ) -> tuple[Any, ...]:
        begun = {name: _zeroed(value, episode_start) for name, value in memory.items()}
        action, time_idx = begun.pop("action"), begun.pop("time_idx")
        rl2 = torch.cat((_zeroed(reward, episode_start).unsqueeze(1), action), dim=1)
        seen = self._as_stored(obs)
        embedding = self.policy.tstep_encoder({k: v.unsqueeze(1) for k, v in seen.items()}, rl2.unsqueeze(1))
        state, kept = self.policy.traj_encoder.portable_step(embedding.squeeze(1), time_idx, begun)
        dist = self.policy.actor.main_gamma(state, self.policy.actor_obs(seen), self.policy.legal_actions(seen))
        vector = dist.mode
        after = {"action": vector, "time_idx": time_idx + 1, **kept}
        taken = self._to_env(stored_action(vector, self.spec))
        return (taken, after, dist.probs) if self.has_probs else (taken, after)

    def _as_stored(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Categories counted from 0, in a row."""
        stored = dict(obs)
        for name, (shape, _, _, start) in self.meaning.items():
            if start:
                counted = obs[name] - torch.tensor(start).reshape(shape)
                stored[name] = counted.flatten(1) if shape else counted
        return stored

    def _to_env(self, stored: Tensor) -> Tensor:
        """`ActionConverter.to_env` in tensors."""
        space, dtype = self.action_space, getattr(torch, str(self.action_space.dtype))
        values = stored.reshape(-1, *(space.shape or ()))
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            values = values + torch.as_tensor(space.start)
        elif isinstance(space, spaces.Box):
            middle, reach = (torch.from_numpy(x) for x in middle_and_reach(space))
            values = values.double() * reach + middle
            if space.dtype.kind != "f":
                values = values.round()
            low, high = (torch.from_numpy(x.astype(np.float64)) for x in (space.low, space.high))
            values = values.clamp(low, high)
        return values.to(dtype)

    def describe(self) -> dict[str, Any]:
        """What goes in and comes out, as plain values."""

        def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
            return {k: {"dtype": _dtype(x), "shape": ["batch", *x.shape[1:]]} for k, x in tensors.items()}

        return {
            "obs": arrays(self.initial_obs(1)),
            "memory": arrays(self.initial_memory(1)),
            "outputs": ["action", "memory", *(["probs"] if self.has_probs else [])],
            "observation_space": to_plain(self.observation_space),
            "action_space": to_plain(self.action_space),
        }


def export_policy(policy: ActingPolicy, out: Path, format: Format) -> float:
    """Write a policy's acting into a file, after the file has acted as the policy does; returns how far it was off.

    format: "onnx", for onnxruntime and others; "torch", an archive of torch.export (`torch.export.load`).
    The check goes over CHECKED_STEPS steps of random observations of CHECKED_ENVS environments whose rollouts begin at
    different times, each with its own memory. Returned is the largest difference of actions and probabilities.
    Raises ValueError where PyTorch cannot export the networks, or the check fails; ImportError where a package is
    missing. Nothing is written then.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: use {' or '.join(FORMATS)}")
    step = PortablePolicy(policy.policy, policy.observation_space, policy.action_space)
    out.parent.mkdir(parents=True, exist_ok=True)
    worst = 0.0

    def write(partial: Path) -> None:
        nonlocal worst
        with _quiet():
            run = (_write_onnx if format == "onnx" else _write_torch)(step, partial)
        # Of one environment too: PyTorch may have taken their number for a constant.
        worst = max(_largest_difference(run, policy, step, num_envs) for num_envs in (1, CHECKED_ENVS))
        if not worst <= TOLERANCE:
            raise ValueError(f"the exported policy is off by {worst:.2g} within {CHECKED_STEPS} steps: it is not kept")

    write_atomically(out, write)
    return worst


def _traced(step: PortablePolicy) -> torch.export.ExportedProgram:
    """The graph, for any number of environments."""
    num_envs = 3  # PyTorch takes 1 for a constant
    arguments = (
        step.initial_obs(num_envs),
        torch.zeros(num_envs),
        torch.ones(num_envs, dtype=torch.bool),
        step.initial_memory(num_envs),
    )
    batch = torch.export.Dim("batch", min=1)
    shapes = torch.utils._pytree.tree_map(lambda _: {0: batch}, arguments)
    try:
        with torch.no_grad():
            return torch.export.export(step, arguments, dynamic_shapes=shapes)
    except Exception as error:  # whatever the networks' own code makes of being traced
        raise ValueError(f"PyTorch cannot export these networks: {_in_short(error)}") from error


def _write_torch(step: PortablePolicy, out: Path) -> Step:
    with out.open("wb") as written:
        torch.export.save(_traced(step), written, extra_files={DESCRIPTION: json.dumps(step.describe())})
    with out.open("rb") as read:
        run = torch.export.load(read).module()

    def act(obs: Any, reward: Any, start: Any, memory: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        tensors = torch.utils._pytree.tree_map(torch.from_numpy, (obs, reward, start, memory))
        action, after, *_ = run(*tensors)
        return action.numpy(), {name: value.numpy() for name, value in after.items()}

    return act


def _write_onnx(step: PortablePolicy, out: Path) -> Step:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (PyTorch's exporter writes with it)
    except ImportError as error:
        raise ImportError(f"--format onnx needs {error.name}: pip install 'amago_ray[export]'") from error
    obs, memory = list(step.initial_obs(1)), list(step.initial_memory(1))
    names_in = [*(f"obs.{name}" for name in obs), "reward", "episode_start", *(f"memory.{name}" for name in memory)]
    names_out = ["action", *(f"memory_out.{name}" for name in memory), *(["probs"] if step.has_probs else [])]
    traced = _traced(step)
    try:
        with torch.no_grad():
            traced = traced.run_decompositions({torch.ops.aten.copysign.Tensor: _with_sign_of})
            program = torch.onnx.export(
                traced, dynamo=True, input_names=names_in, output_names=names_out, verbose=False
            )
    except Exception as error:  # the exporter's own, or of an operator that ONNX lacks
        raise ValueError(f"ONNX cannot hold these networks: {_in_short(error)}") from error
    assert program is not None
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        assert value.shape is not None
        value.shape = type(value.shape)(["batch", *value.shape[1:]])
    program.model.metadata_props[DESCRIPTION] = json.dumps(step.describe())
    program.save(str(out))
    session = onnxruntime.InferenceSession(out.read_bytes())

    def act(obs: Any, reward: Any, start: Any, memory: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        feed = {f"obs.{name}": value for name, value in obs.items()} | {"reward": reward, "episode_start": start}
        results = session.run(None, feed | {f"memory.{name}": value for name, value in memory.items()})
        return results[0], dict(zip(memory, results[1:]))

    return act


def _largest_difference(run: Step, policy: ActingPolicy, step: PortablePolicy, num_envs: int) -> float:
    """Of the actions of an exported policy and of `policy`'s mode, as fractions of the range of the actions."""
    acting = ActingPolicy(copy.deepcopy(policy.policy), policy.observation_space, policy.action_space, sample=False)
    rng = np.random.default_rng(0)
    memory = {name: value.numpy() for name, value in step.initial_memory(num_envs).items()}
    space = copy.deepcopy(policy.observation_space)
    space.seed(0)
    reach: Any = 1.0
    if isinstance(policy.action_space, spaces.Box):
        reach = np.maximum(policy.action_space.high.astype(np.float64) - policy.action_space.low, 1e-6)
    state, worst = None, 0.0
    for t in range(CHECKED_STEPS):
        empty: Any = create_empty_array(space, num_envs)
        obs = concatenate(space, [space.sample() for _ in range(num_envs)], empty)
        _leave_some_legal(obs, policy.policy.action_mask_key)
        reward = rng.normal(size=num_envs).astype(np.float32)
        start = np.array([t % every == 0 for every in RESET_EVERY[:num_envs]])
        expected, state = acting.act(obs, state, start, reward)
        found, memory = run(own_numbers(space, obs), reward, start, memory)
        difference = np.abs(found.astype(np.float64) - expected) / reach
        worst = max(worst, float(difference.max()))
    return worst


def own_numbers(space: gym.Space, obs: Any) -> dict[str, np.ndarray]:
    """A batch of observations by the names, and in the dtypes, that exported policies take."""
    converter = ObsConverter(space)
    num_envs = converter.batch_size(obs)
    assert num_envs is not None
    arrays = converter.empty(num_envs)
    converter.write_batch(arrays, obs)
    named = {}
    for name, (shape, _, _, start) in converter.meaning.items():
        array = arrays[name]
        if start:
            array = array.reshape(num_envs, *shape).astype(np.int64) + np.reshape(start, shape)
        named[name] = array
    return named


def _leave_some_legal(obs: Any, name: str | None) -> None:
    """Where a random action mask allows nothing, allow all."""
    if name is not None:
        for key in name.split("/"):
            obs = obs[key]
        obs[~(obs != 0).reshape(len(obs), -1).any(axis=1)] = 1


def _with_sign_of(x: Tensor, sign: Tensor) -> Tensor:
    """`torch.copysign`, which ONNX lacks, where signed zeros are one."""
    return torch.where(sign < 0, -x.abs(), x.abs())


def _zeroed(value: Tensor, mask_B: Tensor) -> Tensor:
    mask = mask_B.reshape(-1, *[1] * (value.dim() - 1))
    return torch.where(mask, torch.zeros_like(value), value)


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _in_short(error: BaseException) -> str:
    """The cause at the bottom: above it the exporter gives advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own talk: what it cannot do, it raises."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
