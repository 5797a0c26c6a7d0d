"""A rollout worker: one policy, N environments."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from amago_ray.agent.flat_weights import load_flat_state
from amago_ray.agent.spec import AgentSpec
from amago_ray.envs.exploration import ExplorationWrapper
from amago_ray.envs.makers import MakeEnv, make_pool
from amago_ray.messages import RolloutReport, Trajectory, Weights
from amago_ray.nets.actions import stored_action
from amago_ray.rollout.recorder import TrajectoryRecorder
from amago_ray.rollout.statistics import EpisodeStatistics
from amago_ray.specs import ActionSpec


@dataclass(frozen=True)
class RolloutConfig:
    """Settings of one worker.

    make_env: see `envs.pool.make_pool`. num_envs: environments of this worker. first_env: number of its first one
    within the run. traj_save_len: longest stored trajectory, in transitions. exploration_type: None for none.
    sample_actions: draw from the policy, else take its mode. device: where the policy runs. total_envs: environments
    of the run, over all workers; by default up to this worker's last. action_mask_key: observation of legal actions.
    """

    make_env: MakeEnv
    num_envs: int
    first_env: int
    seed: int
    traj_save_len: int
    exploration_type: Callable[..., ExplorationWrapper] | None
    sample_actions: bool = True
    device: str = "cpu"
    total_envs: int | None = None
    action_mask_key: str | None = None


class PreviousStep:
    """rl2 = [previous reward, previous action vector] of N environments, zeros at the start of a rollout."""

    def __init__(self, num_envs: int, action_spec: ActionSpec):
        self.rl2 = np.zeros((num_envs, 1 + action_spec.vector_size), dtype=np.float32)
        self._rows = np.arange(num_envs)
        # Where the one-hot of each categorical entry starts within rl2.
        self._offsets = 1 + np.cumsum((0, *action_spec.nvec[:-1])) if action_spec.nvec else None

    def begin(self, fresh: np.ndarray) -> None:
        self.rl2[fresh] = 0.0

    def set(self, actions: np.ndarray, rewards: np.ndarray) -> None:
        """actions: stored actions (N, ...). rewards: (N,)."""
        self.rl2[:, 0] = rewards
        if self._offsets is None:
            self.rl2[:, 1:] = actions
            return
        self.rl2[:, 1:] = 0.0
        self.rl2[self._rows[:, None], self._offsets + actions.reshape(len(actions), -1)] = 1.0


class RolloutWorker:
    """Consumes weights, produces trajectories.

    write: what becomes of a finished trajectory; None drops it (validation). flush: called at the end of a chunk, to
    wait until all that was written is stored; returns the seconds that writing has waited in all.
    """

    def __init__(
        self,
        config: RolloutConfig,
        agent_spec: AgentSpec,
        worker: int = 0,
        incarnation: int = 0,
        write: Callable[[Trajectory], None] | None = None,
        flush: Callable[[], float] | None = None,
    ):
        self.config = config
        self._worker, self._incarnation = worker, incarnation
        self._write, self._flush = write, flush
        self._policy = agent_spec.build().policy.to(config.device).eval()
        self._weight_version = -1
        # Environments are seeded by their number within the run, so that it does not matter how workers share them.
        env_seed = int(np.random.SeedSequence((config.seed, incarnation)).generate_state(1)[0])
        self._pool = make_pool(
            config.make_env, config.num_envs, config.first_env, env_seed, total_envs=config.total_envs
        )
        self._action_spec = self._pool.action_spec
        exploration_seed, policy_seed = (
            int(x) for x in np.random.SeedSequence((config.seed, config.first_env, incarnation)).generate_state(2)
        )
        self._random = TorchRandomStream(policy_seed)
        self._explore = None
        if config.exploration_type is not None:
            self._explore = config.exploration_type(config.num_envs, self._action_spec, exploration_seed)
        self._recorder = TrajectoryRecorder(
            agent_spec.obs_spec, self._action_spec, config.num_envs, config.traj_save_len, worker, incarnation
        )
        self._previous = PreviousStep(config.num_envs, self._action_spec)
        self._statistics = EpisodeStatistics(config.num_envs)
        self._obs: dict[str, np.ndarray] = {}  # empty until rollouts have begun
        self._memory = None
        self._waited_s = 0.0

    def set_weights(self, weights: Weights) -> None:
        """Act by these weights from now on; does nothing when they are the ones in use."""
        if weights.version != self._weight_version:
            load_flat_state(self._policy, weights.buffer)
            self._weight_version = weights.version

    def set_exploration_steps(self, steps_per_env: int) -> None:
        """Exploration has seen at least so many steps of one environment (after a restart or a resume)."""
        if self._explore is not None:
            np.maximum(self._explore.steps, steps_per_env, out=self._explore.steps)

    def collect(self, timesteps: int) -> RolloutReport:
        """Make at least `timesteps` transitions, over all environments, and hand over what they finish.

        Transitions that fail count as made: a broken environment holds nothing up.
        """
        return self._run(None, min_episodes_per_env=0, min_timesteps=timesteps)

    def evaluate(self, steps_per_env: int | None, episodes_per_env: int | None) -> RolloutReport:
        """Start every environment anew and act for `steps_per_env` steps, or until each has finished enough rollouts.

        Either may be None; where both are given, the first to be reached ends the evaluation.
        """
        if not (steps_per_env or episodes_per_env):
            raise ValueError("an evaluation needs steps_per_env, episodes_per_env, or both, of 1 or more")
        self._obs = {}
        return self._run(steps_per_env, episodes_per_env)

    def close(self) -> None:
        self._pool.close()

    def _run(
        self, steps_per_env: int | None, min_episodes_per_env: int | None, min_timesteps: int | None = None
    ) -> RolloutReport:
        started = time.perf_counter()
        failures_before = self._pool.failures
        chunk = Chunk(np.zeros(self.config.num_envs, dtype=np.int64))
        with self._random:
            if not self._obs:
                self._begin_all()
            while (
                (steps_per_env is None or chunk.steps < steps_per_env)
                and (not min_episodes_per_env or (chunk.episodes < min_episodes_per_env).any())
                and (min_timesteps is None or chunk.attempted < min_timesteps)
            ):
                self._step(chunk)
        wait_s = 0.0
        if self._flush is not None:
            waited_s = self._flush()
            wait_s, self._waited_s = waited_s - self._waited_s, waited_s
        return RolloutReport(
            worker=self._worker,
            incarnation=self._incarnation,
            timesteps=chunk.frames.total(),
            frames_by_env=dict(chunk.frames),
            episodes=self._statistics.take(),
            weight_version=self._weight_version,
            trajectories=chunk.trajectories,
            act_s=chunk.act_s,
            step_s=chunk.step_s,
            wait_s=wait_s,
            total_s=time.perf_counter() - started,
            env_failures=self._pool.failures - failures_before,
            exploration=self._explore.metrics() if self._explore is not None else {},
        )

    def _step(self, chunk: Chunk) -> None:
        """One timestep of every environment."""
        before_act = time.perf_counter()
        actions = self._act()
        before_step = time.perf_counter()
        transition = self._pool.step(actions)
        ended = transition.terminated | transition.truncated
        names = self._pool.env_names
        finished = self._recorder.add(transition, actions, names, self._weight_version)
        self._statistics.add(transition, ended, names)
        self._previous.set(actions, transition.rewards)
        chunk.frames.update(name for name, stepped in zip(names, transition.stepped, strict=True) if stepped)
        chunk.attempted += int(np.count_nonzero(transition.stepped | transition.failed))
        self._obs, fresh = self._pool.begin(ended)
        if fresh.any():
            self._begin(fresh)
        chunk.act_s += before_step - before_act
        chunk.step_s += time.perf_counter() - before_step
        chunk.episodes += ended
        chunk.steps += 1
        chunk.trajectories += len(finished)
        if self._write is not None:
            for trajectory in finished:
                self._write(trajectory)

    def _act(self) -> np.ndarray:
        """The actions to take now, (N, ...) as stored."""
        device, time_idx = self.config.device, self._recorder.time_idx
        vector, self._memory = self._policy.act(
            {name: torch.from_numpy(value).to(device) for name, value in self._obs.items()},
            torch.from_numpy(self._previous.rl2).to(device),
            torch.from_numpy(time_idx).to(device),
            self._memory,
            self.config.sample_actions,
        )
        actions = stored_action(vector, self._action_spec).cpu().numpy().astype(self._action_spec.dtype, copy=False)
        if self._explore is None:
            return actions
        mask = self.config.action_mask_key
        return self._explore(actions, time_idx, None if mask is None else self._obs[mask])

    def _begin_all(self) -> None:
        self._obs = self._pool.reset()
        self._memory = self._policy.initial_memory(self.config.num_envs)
        self._begin(np.ones(self.config.num_envs, dtype=bool))

    def _begin(self, fresh: np.ndarray) -> None:
        self._recorder.begin(fresh, self._obs)
        self._memory = self._policy.reset_memory(self._memory, fresh)
        self._previous.begin(fresh)
        self._statistics.begin(fresh)
        if self._explore is not None:
            self._explore.begin(fresh)


@dataclass
class Chunk:
    """What one call of a worker has done so far.

    episodes: (N,) finished rollouts per environment. attempted: transitions, and failures in their place; rows of a
    VectorEnv that only reset are neither.
    """

    episodes: np.ndarray
    steps: int = 0
    attempted: int = 0
    trajectories: int = 0
    act_s: float = 0.0
    step_s: float = 0.0
    frames: Counter[str] = field(default_factory=Counter)


class TorchRandomStream:
    """A torch random state of one's own: blocks run under it neither disturb other draws nor are disturbed by them."""

    def __init__(self, seed: int):
        self._state = torch.Generator().manual_seed(seed).get_state()

    def __enter__(self) -> None:
        self._outer = torch.get_rng_state()
        torch.set_rng_state(self._state)

    def __exit__(self, *exc: object) -> None:
        self._state = torch.get_rng_state()
        torch.set_rng_state(self._outer)
