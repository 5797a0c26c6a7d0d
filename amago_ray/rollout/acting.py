"""A trained policy as an object to act with: in the environment's own spaces, without Ray and without the environment.

policy = load_policy("runs/tmaze")
obs, _ = env.reset()
action, state = policy.act(obs)
while True:
    obs, reward, terminated, truncated, _ = env.step(action)
    if terminated or truncated:
        break
    action, state = policy.act(obs, state, reward=reward)
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from amago_ray import config
from amago_ray.agent.actor_critic import Agent
from amago_ray.agent.flat_weights import load_weights
from amago_ray.agent.policy import Policy
from amago_ray.agent.spec import AgentSpec
from amago_ray.atomic_files import read_text
from amago_ray.config.value_checks import subclass_of
from amago_ray.config.value_types import objection
from amago_ray.envs.saved_spaces import read_spaces
from amago_ray.envs.spaces import ActionConverter, ObsConverter
from amago_ray.nets.actions import stored_action
from amago_ray.nets.columns import laid_out_for_acting
from amago_ray.nets.mixed_encoder import default_tstep_encoder
from amago_ray.nets.traj_encoders import TrajEncoder
from amago_ray.nets.tstep_encoders import TstepEncoder
from amago_ray.rollout.random_stream import TorchRandomStream
from amago_ray.run_directory import RunDirectory

AGENT_SETTINGS = (
    "max_seq_len",
    "tstep_encoder_type",
    "traj_encoder_type",
    "agent_type",
    "seed",
    "action_mask_key",
)


class OnlyInPython(ValueError):
    """A run's files do not say all that its policy needs. what: is missing. argument: of `load_policy`, gives it."""

    def __init__(self, what: str, argument: str):
        super().__init__(f"{what}: give load_policy {argument}")
        self.what, self.argument = what, argument


@dataclass(frozen=True)
class PolicyState:
    """What a policy remembers of N rollouts: what `ActingPolicy.act` takes and gives.

    memory: of the sequence model. action: (N, A), the vectors of the last actions. time_idx: (N,), actions taken so far
    in each rollout. batched: whether observations come in batches.
    """

    memory: Any
    action: Tensor
    time_idx: Tensor
    batched: bool

    def copy(self) -> PolicyState:
        """An independent one, to act on from here more than once: `act` uses up the state that it is given."""
        return copy.deepcopy(self)


class ActingPolicy:
    """A policy that acts in the environment's own spaces, one environment or a batch of them, on the CPU.

    policy: is put into evaluation mode. sample: draw actions from it, else take its mode. temperature: of actions that
    are drawn, in place of `Agent.temperature`. seed: of the drawing, which nothing else disturbs.
    Raises ValueError for a temperature that is not from 1e-6 to 1e6, a seed that is no integer, and another `sample`
    than True and False.
    """

    def __init__(
        self,
        policy: Policy,
        observation_space: gym.Space,
        action_space: gym.Space,
        sample: bool = True,
        temperature: float | None = None,
        seed: int = 0,
    ):
        for name, value, hint in (("sample", sample, bool), ("seed", seed, int)):
            if wrong := objection(value, hint):
                raise ValueError(f"{name}={value!r}: {wrong}")
        self.observation_space, self.action_space = observation_space, action_space
        self.policy = policy.eval()
        self.sample = sample
        if temperature is not None:
            policy.temperature = temperature
        self._obs, self._action = ObsConverter(observation_space), ActionConverter(action_space)
        self._random = TorchRandomStream(int(seed))

    @property
    def sees_rewards(self) -> bool:
        """Whether the last reward is part of what the policy sees."""
        encoder = self.policy.tstep_encoder
        return not (encoder.hide_rl2s or encoder.hide_rewards)

    def initial_state(self, num_envs: int | None = None) -> PolicyState:
        """The state before the first action. num_envs: of a batch; None for one environment."""
        num, vector_size = 1 if num_envs is None else num_envs, self._action.spec.vector_size
        with torch.inference_mode():  # as steps are: what is made there may not be written into elsewhere
            memory = self.policy.initial_memory(num)
        time_idx = torch.zeros(num, dtype=torch.int64)
        return PolicyState(memory, torch.zeros(num, vector_size), time_idx, num_envs is not None)

    def act(
        self, obs: Any, state: PolicyState | None = None, episode_start: Any = None, reward: Any = None
    ) -> tuple[Any, PolicyState]:
        """The action to take now, as the environment takes it, and the state to give to the next call.

        obs: of one environment, or, with a leading axis N on every array, of N that act together; which of the two is
            seen from the space. With an action mask, illegal actions are never chosen.
        state: of the call before, which it uses up (see `PolicyState.copy`); None where all rollouts begin.
        episode_start: bool, or (N,): whose `obs` is the first of a rollout. Their state is forgotten. None: nobody's.
        reward: number, or (N,): what the last action earned. It does not matter where a rollout begins. May be left out
            then, and for policies that do not see rewards.
        Raises ValueError for observations outside the space or not finite, an empty batch, a state that is none or of
        another batch, an episode_start that is neither, and where a reward is missing.
        """
        num_envs = self._obs.batch_size(obs)
        if num_envs == 0:
            raise ValueError("act: the observation is of a batch of 0 environments: there must be one or more")
        num = 1 if num_envs is None else num_envs
        start = np.ones(num, bool) if state is None else np.zeros(num, bool)
        if state is None:
            state = self.initial_state(num_envs)
        elif not isinstance(state, PolicyState):
            raise ValueError(
                f"act: state is a {type(state).__name__}: it must be the state that the call before returned"
            )
        elif (len(state.time_idx), state.batched) != (num, num_envs is not None):
            before, now = _described(state.batched, len(state.time_idx)), _described(num_envs is not None, num)
            raise ValueError(f"act: the observation is of {now}, the state of {before}")
        elif episode_start is not None:
            start = self._per_env("episode_start", episode_start, num)
            if not np.isin(start, (0, 1)).all():
                raise ValueError(f"act: episode_start={episode_start!r}: it must be True or False for each environment")
            start = start.astype(bool)
        rl2 = torch.cat((self._rewards(reward, start).unsqueeze(1), state.action), dim=1)
        start_N = torch.from_numpy(start)
        rl2 = rl2.masked_fill(start_N.unsqueeze(1), 0.0)
        time_idx = state.time_idx.masked_fill(start_N, 0)
        arrays = self._arrays(obs, num_envs)
        memory = state.memory
        if start.any():
            with torch.inference_mode():
                memory = self.policy.reset_memory(memory, start)
        with self._random:
            vector, memory = self._choose(arrays, rl2, time_idx, memory)
        stored = stored_action(vector, self._action.spec).numpy().astype(self._action.spec.dtype, copy=False)
        action = self._action.to_env(stored if num_envs is not None else stored[0])
        return action, PolicyState(memory, vector, time_idx + 1, num_envs is not None)

    def _choose(self, obs: dict[str, Tensor], rl2: Tensor, time_idx: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """As `Policy.act`; it runs under this object's own random state."""
        return self.policy.act(obs, rl2, time_idx, memory, self.sample)

    def _arrays(self, obs: Any, num_envs: int | None) -> dict[str, Tensor]:
        arrays = self._obs.empty(1 if num_envs is None else num_envs)
        if num_envs is None:
            self._obs.write(arrays, 0, obs)
        else:
            self._obs.write_batch(arrays, obs)
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"act: observation {name!r} is not finite")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _rewards(self, reward: Any, start: np.ndarray) -> Tensor:
        if reward is None:
            if self.sees_rewards and not start.all():
                raise ValueError("act: reward is missing: this policy sees what its last action earned")
            return torch.zeros(len(start))
        rewards = self._per_env("reward", reward, len(start)).astype(np.float32)
        if not np.isfinite(rewards[~start]).all():
            raise ValueError(f"act: reward={reward} is not finite")
        return torch.from_numpy(rewards)

    @staticmethod
    def _per_env(name: str, value: Any, num: int) -> np.ndarray:
        """(num,) truth values or numbers, as they come: text would be read as either."""
        try:
            values = np.asarray(value).reshape(-1)
        except (TypeError, ValueError):  # lists of different lengths
            values = np.empty(0, object)
        if values.dtype.kind not in "biuf":
            raise ValueError(f"act: {name}={value!r}: it must be a number or truth value for each environment")
        if len(values) != num:
            raise ValueError(f"act: {name} has {len(values)} entries for {num} environments")
        return values


def _described(batched: bool, num: int) -> str:
    return f"a batch of {num} environments" if batched else "one environment"


def load_policy(
    run_or_file: str | os.PathLike[str],
    *,
    epoch: int | None = None,
    sample: bool = True,
    temperature: float | None = None,
    seed: int = 0,
    spaces: tuple[gym.Space, gym.Space] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ActingPolicy:
    """The policy of a run, to act with anywhere: no Ray, no processes, and its environment need not be installed.

    run_or_file: the run's folder, or a file of weights in it (`ckpts/latest/policy.pt`,
        `ckpts/policy_weights/policy_epoch_n.pt`). Of the folder, config.txt, spaces.json and the weights are read.
    epoch: of the weights, out of a folder; None for the newest. sample, temperature, seed: see `ActingPolicy`.
    spaces: (observation space, action space), for runs older than spaces.json.
    settings: of `Experiment`, in place of the run's: for types that were given in Python and that config.txt therefore
        has no name for, {"traj_encoder_type": MyEncoder}. Those that a policy depends on, `AGENT_SETTINGS`, are known.
    This process's own gin configuration is left as it is.
    Raises ValueError, in one line, where something is missing or does not fit.
    """
    agent, found = load_agent(run_or_file, epoch, spaces, settings)
    return ActingPolicy(agent.policy, *found, sample=sample, temperature=temperature, seed=seed)


def load_agent(
    run_or_file: str | os.PathLike[str],
    epoch: int | None = None,
    spaces: tuple[gym.Space, gym.Space] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Agent, tuple[gym.Space, gym.Space]]:
    """All of a run's agent, critics too, and its spaces; arguments and errors as of `load_policy`."""
    for name in settings or {}:
        if name not in AGENT_SETTINGS:
            raise ValueError(
                f"load_policy: settings has {name!r}, which is no setting of Experiment that a policy depends on"
                f"{config.nearest(name, AGENT_SETTINGS)}"
            )
    if spaces is not None and not _is_pair(spaces):
        raise ValueError(
            f"load_policy: spaces={spaces!r}: it must be a pair of spaces, (env.observation_space, env.action_space)"
        )
    _check_types(settings or {})
    folder, weights = _located(Path(run_or_file), epoch)
    directory = RunDirectory(folder.parent, folder.name)
    if spaces is None:
        if not directory.spaces.is_file():
            raise OnlyInPython(
                f"{directory.spaces} is missing, as in runs that are older than it",
                "spaces=(env.observation_space, env.action_space)",
            )
        spaces = read_spaces(directory.spaces)
    text = read_text(directory.config)
    with config.apart(text, [name for name in AGENT_SETTINGS if name not in (settings or {})]) as given:
        agent = _agent_spec(given | dict(settings or {}), spaces, directory.config).build()
    load_weights(agent, weights)
    laid_out_for_acting(agent.policy)
    return agent, spaces


def _is_pair(spaces: Any) -> bool:
    return isinstance(spaces, tuple | list) and len(spaces) == 2 and all(isinstance(each, gym.Space) for each in spaces)


def _check_types(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for settings that are no classes of the kind that they must be."""
    for name, base in (("tstep_encoder_type", TstepEncoder), ("traj_encoder_type", TrajEncoder), ("agent_type", Agent)):
        if name in settings and (settings[name] is not None or name != "tstep_encoder_type"):
            try:
                subclass_of(base)(settings[name])
            except TypeError as error:
                raise ValueError(f"load_policy: settings={{{name!r}: {settings[name]!r}}}: {error}") from error


def _located(path: Path, epoch: int | None) -> tuple[Path, Path]:
    """The run's folder and the file of weights."""
    path = path.expanduser().resolve()
    if path.is_dir():
        if not (path / "config.txt").is_file():
            raise ValueError(f"{path} is no run's folder: it has no config.txt")
        directory = RunDirectory(path.parent, path.name)
        return path, directory.latest_policy if epoch is None else directory.policy_epoch(epoch)
    if epoch is not None:
        raise ValueError(f"load_policy: epoch={epoch} chooses among the weights of a run's folder, and {path} is none")
    folder = next((parent for parent in path.parents if (parent / "config.txt").is_file()), None)
    if folder is None:
        raise ValueError(f"{path} is in no run's folder: none above it has a config.txt")
    return folder, path


def _agent_spec(settings: Mapping[str, Any], spaces: tuple[gym.Space, gym.Space], source: Path) -> AgentSpec:
    if missing := [name for name in AGENT_SETTINGS if name not in settings]:
        named, given = (sep.join(missing) for sep in (" and Experiment.", "': ..., '"))
        were, they = ("was", "it") if len(missing) == 1 else ("were", "them")
        raise OnlyInPython(
            f"{source} does not say what Experiment.{named} {were}, because Python gave {they} and gin has no name for "
            f"{they}",
            f"settings={{'{given}': ...}}",
        )
    obs_spec = ObsConverter(spaces[0]).spec
    return AgentSpec(
        obs_spec=obs_spec,
        action_spec=ActionConverter(spaces[1]).spec,
        max_seq_len=settings["max_seq_len"],
        tstep_encoder_type=settings["tstep_encoder_type"] or default_tstep_encoder(obs_spec),
        traj_encoder_type=settings["traj_encoder_type"],
        agent_type=settings["agent_type"],
        seed=settings["seed"],
        action_mask_key=settings["action_mask_key"],
    )
