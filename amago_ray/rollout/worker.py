"""A rollout worker: one policy, N environments."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from amago_ray.agent.flat_weights import load_flat_state
from amago_ray.agent.policy import Policy
from amago_ray.agent.spec import AgentSpec
from amago_ray.cuda_graphs import CudaGraphs
from amago_ray.envs.exploration import ExplorationWrapper
from amago_ray.envs.makers import EnvFailure, EnvProcesses, MakeEnv, Pool, Transition, make_pool
from amago_ray.messages import EpisodeResult, EvaluationReport, RolloutReport, Trajectory, TrajectoryId, Weights
from amago_ray.nets.columns import laid_out_for_acting
from amago_ray.pending import ShardAway
from amago_ray.rollout.assignment import Assignment, Tally
from amago_ray.rollout.policy_step import CompileActing, make_policy_step
from amago_ray.rollout.random_stream import RandomStream, TorchRandomStream
from amago_ray.rollout.recorder import Numbers, TrajectoryRecorder
from amago_ray.rollout.scheduled import runnable_s
from amago_ray.rollout.statistics import EpisodeStatistics, Frames
from amago_ray.specs import ActionSpec
from amago_ray.warned import warned

WHOLE_ROLLOUTS = 1 << 62  # a traj_save_len that cuts none
FEW_CATEGORIES = 64  # of which a table of one-hots is kept
EVALUATED, RESET, RESUMED = 1, 2, 3  # why random streams begin anew; not 0, which ends a seed as if it were not there


@dataclass(frozen=True)
class RolloutConfig:
    """Settings of one worker.

    make_env: see `envs.pool.make_pool`. num_envs: environments of this worker. first_env: number of its first one
    within the run. traj_save_len: longest stored trajectory, in transitions. exploration_type: None for none.
    sample_actions: draw from the policy, else take its mode. device: where the policy runs. stagger: stored pieces of
    a long rollout have random lengths, in traj_save_len -+ stagger. total_envs: environments of the run, over all
    workers; by default up to this worker's last. action_mask_key: observation of legal actions. temperature: of
    sampled actions, in place of `Agent.temperature`. env_processes: environments run in processes of their own; None
    for in this one. cuda_graphs, compile_acting: where the policy runs on a GPU or not, see `make_policy_step`.
    """

    make_env: MakeEnv
    num_envs: int
    first_env: int
    seed: int
    traj_save_len: int
    exploration_type: Callable[..., ExplorationWrapper] | None
    sample_actions: bool = True
    device: str = "cpu"
    stagger: int = 0
    total_envs: int | None = None
    action_mask_key: str | None = None
    temperature: float | None = None
    env_processes: EnvProcesses | None = None
    cuda_graphs: CudaGraphs = "auto"
    compile_acting: CompileActing = "never"


class PreviousStep:
    """rl2 = [previous reward, previous action vector] of N environments, zeros at the start of a rollout."""

    def __init__(self, num_envs: int, action_spec: ActionSpec):
        self.rl2 = np.zeros((num_envs, 1 + action_spec.vector_size), dtype=np.float32)
        self._rows = np.arange(num_envs)
        # Where the one-hot of each categorical entry starts within rl2.
        self._offsets = 1 + np.cumsum((0, *action_spec.nvec[:-1])) if action_spec.nvec else None
        single = action_spec.kind == "discrete" and action_spec.vector_size <= FEW_CATEGORIES
        self._one_hots = np.eye(action_spec.vector_size, dtype=np.float32) if single else None

    def begin(self, fresh: np.ndarray) -> None:
        self.rl2[fresh] = 0.0

    def set(self, actions: np.ndarray, rewards: np.ndarray) -> None:
        """actions: stored actions (N, ...). rewards: (N,)."""
        self.rl2[:, 0] = rewards
        if self._one_hots is not None:
            self.rl2[:, 1:] = self._one_hots[actions]
        elif self._offsets is None:
            self.rl2[:, 1:] = actions
        else:
            self.rl2[:, 1:] = 0.0
            self.rl2[self._rows[:, None], self._offsets + actions.reshape(len(actions), -1)] = 1.0


class RolloutWorker:
    """Consumes weights, produces trajectories, or results of rollouts alone.

    write: what becomes of a finished trajectory; None records none (validation). An evaluation writes the rollouts that
    count; their id is (number of the environment, of the evaluation, of the rollout). flush: called at the end of a
    chunk, to wait until all that was written is stored; returns the seconds that writing has waited in all.
    pool, policy, numbers: environments, policy and numbers of trajectories that are there already (see `halves`).
    """

    def __init__(
        self,
        config: RolloutConfig,
        agent_spec: AgentSpec,
        worker: int = 0,
        incarnation: int = 0,
        write: Callable[[Trajectory], None] | None = None,
        flush: Callable[[], float] | None = None,
        pool: Pool | None = None,
        policy: Policy | None = None,
        numbers: Numbers | None = None,
    ):
        self.config = config
        self._worker, self._incarnation = worker, incarnation
        self._write, self._flush = write, flush
        self._policy = policy or acting_policy(config, agent_spec)
        self._weight_version = -1
        exploration_seed, policy_seed = (
            int(x) for x in np.random.SeedSequence((config.seed, config.first_env, incarnation)).generate_state(2)
        )
        self.random = _random_stream(config, policy_seed)
        with self.random:  # which environments may draw from as they are built, too
            self._pool = pool or make_pool(
                config.make_env,
                config.num_envs,
                config.first_env,
                env_seed(config, incarnation),
                total_envs=config.total_envs,
                processes=config.env_processes,
            )
        self._action_spec = self._pool.action_spec
        self._policy_step = make_policy_step(
            self._policy,
            self._action_spec,
            agent_spec.obs_spec,
            config.num_envs,
            config.device,
            config.sample_actions,
            config.cuda_graphs,
            config.compile_acting,
        )
        self.tally: Tally | None = None  # of the evaluation under way
        self._parts = self._resets = self._turn = 0
        self._cut = 0  # trajectories that were stored between two chunks
        self._explore = None
        if config.exploration_type is not None:
            self._explore = config.exploration_type(config.num_envs, self._action_spec, exploration_seed)
        self._recorder = None
        if write is not None:
            self._recorder = TrajectoryRecorder(
                agent_spec.obs_spec,
                self._action_spec,
                config.num_envs,
                config.traj_save_len,
                worker,
                incarnation,
                config.stagger,
                config.seed,
                config.first_env,
                numbers,
            )
        self._previous = PreviousStep(config.num_envs, self._action_spec)
        self._statistics = EpisodeStatistics(config.num_envs)
        self._obs: dict[str, np.ndarray] = {}  # empty until rollouts have begun
        self._waited_s = 0.0
        self._failures_told = 0

    def set_weights(self, weights: Weights) -> None:
        """Act by these weights from now on; does nothing when they are the ones in use."""
        if weights.version != self._weight_version:
            load_flat_state(self._policy, weights.buffer)
            self._policy_step.weights_changed()
            self._weight_version = weights.version

    def set_exploration_steps(self, steps_per_env: int) -> None:
        """Exploration has seen at least so many steps of one environment (after a restart or a resume)."""
        if self._explore is not None:
            np.maximum(self._explore.steps, steps_per_env, out=self._explore.steps)

    def collect(self, timesteps: int, resets: int = 0) -> RolloutReport:
        """Make at least `timesteps` transitions, over all environments, and hand over what they finish.

        Transitions that fail count as made: a broken environment holds nothing up.

        resets: how often the run has reset all environments by now. Where that grew, the rollouts under way are stored
        as truncated here, count as no finished ones, and all begin anew, in environments newly seeded by that number:
        what follows depends on it, on `state_dict` and on the weights alone.
        The report's episodes are those that ended in this time, of which short ones are too many (see `assignment`).
        """
        chunk = self.begin_chunk(resets)
        with self.random:
            self.prepare()
            while chunk.attempted < timesteps:
                self.send(chunk)
                self.receive(chunk)
        return self.report(chunk)

    def begin_chunk(self, resets: int) -> Chunk:
        """What `collect` begins with. resets: as there.

        It goes on, within `random`, with `prepare` and, for each timestep, `send` and `receive`; the end is `report`.
        """
        self._reset_all(resets)
        chunk = Chunk(trajectories=self._cut)
        self._cut = 0
        return chunk

    def prepare(self) -> None:
        """Begin rollouts in all environments, where none are under way."""
        if not self._obs:
            self._begin_all()

    def pause(self, resets: int) -> dict[str, Any]:
        """What `load_state_dict` needs to go on as this worker will, but for rollouts under way; plain values.

        resets: of the next call of `collect`. Where it grew, the rollouts under way are stored when this returns, and
        nothing is missing from the state. Raises ShardAway.
        """
        self._reset_all(resets)
        if self._flush is not None:
            self._flush()
        return {**self.parts(), "resets": self._resets, "cut": self._cut, "begun": bool(self._obs)}

    def parts(self) -> dict[str, Any]:
        """What `load_parts` takes."""
        return {
            "recorder": self._recorder.state_dict() if self._recorder is not None else None,
            "exploration": self._explore.state_dict() if self._explore is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any], epoch: int) -> None:
        """Go on from what `pause` returned after `epoch`. What was under way then begins anew, in newly seeded streams.

        Raises ValueError, naming settings, where it is the state of another configuration; nothing has changed then.
        """
        self.load_parts(state)
        self.begin_again(state, epoch)

    def load_parts(self, state: dict[str, Any]) -> None:
        """The first half of `load_state_dict`: all that can fail. Raises ValueError as there."""
        before, had = self.parts(), {name: state.get(name) for name in ("recorder", "exploration")}
        try:
            if "recorder" not in state:
                raise ValueError("environments were stepped in halves, or are now (env_mode)")
            self._take_parts(had)
        except (LookupError, TypeError, ValueError) as error:
            self._take_parts(before)
            what = f"the state lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{what}: parallel_actors, num_rollout_workers, env_mode or exploration_wrapper_type was another one"
            ) from error

    def _take_parts(self, state: dict[str, Any]) -> None:
        if self._recorder is not None and state["recorder"] is not None:
            self._recorder.load_state_dict(state["recorder"])
            self._incarnation = state["recorder"]["incarnation"]
        if self._explore is not None and state["exploration"] is not None:
            self._explore.load_state_dict(state["exploration"])

    def begin_again(self, state: dict[str, Any], epoch: int) -> None:
        """The second half of `load_state_dict`."""
        self._resets, self._cut, self._obs = state["resets"], state["cut"], {}
        if state["begun"]:
            self._reseed(epoch, RESUMED)
            self._turn += 1  # that of `epoch` is over
        elif self._resets:
            self._reseed(self._resets, RESET)

    def evaluate(self, assignment: Assignment, part: int = 0, time_s: float = math.inf) -> EvaluationReport:
        """Play rollouts of an evaluation, those of `assignment` that are left, for about `time_s` seconds.

        part: how many parts of it the caller has. An evaluation that is not just there starts again, with part 0.
        The rollouts are those of environments that are newly seeded by the number of the evaluation: they depend on
        that number, the weights and the seed alone, and are the same again where a part has to be repeated.
        Raises ValueError for a rollout that does not end.
        """
        if self.tally is None or self.tally.assignment != assignment or part != self._parts or not part:
            self.start_evaluation(assignment)
        chunk, deadline = Chunk(), time.monotonic() + time_s
        with self.random:
            self.prepare()
            while not self.evaluated:
                self.send(chunk)
                self.receive(chunk)
                if time.monotonic() > deadline:
                    break
        return self.report_evaluation(chunk)

    @property
    def evaluated(self) -> bool:
        """Whether nothing is left to play of the evaluation under way."""
        assert self.tally is not None
        return self.tally.done

    def report_evaluation(self, chunk: Chunk) -> EvaluationReport:
        """What one part of an evaluation has come to."""
        tally, part = self.tally, self._parts
        assert tally is not None
        self._parts += 1
        if tally.done:
            self.tally = None
            self._obs = {}
        failed, steps = self._pool.take_failure(), chunk.frames.by_name().total()
        return EvaluationReport(part, tally.take(), tally.unfinished, tally.done, steps, warned(), failed)

    def forget_rollouts(self) -> None:
        """Let all rollouts begin anew, because a step was broken off; what they had unfinished is dropped."""
        self._obs = {}

    def close(self) -> None:
        self._pool.close()

    def _reseed(self, number: int, why: int) -> None:
        """Random streams of environments and policy that begin anew, such as with evaluation number `number`.

        Tasks take turns from that number on: if always from the first ones, the last would wait for good.
        """
        self._turn = number
        self._pool.reseed(env_seed(self.config, self._incarnation, number, why))
        seeds = np.random.SeedSequence((self.config.seed, self.config.first_env, self._incarnation, number, why))
        self.random = _random_stream(self.config, int(seeds.generate_state(1)[0]))

    def start_evaluation(self, assignment: Assignment) -> None:
        self.tally, self._parts, self._obs = Tally(assignment), 0, {}
        self._reseed(assignment.number, EVALUATED)

    def _reset_all(self, resets: int) -> None:
        """Store what has been recorded and let all rollouts begin anew, where the run has reset environments since."""
        if resets == self._resets:
            return
        if self._obs and self._recorder is not None and self._write is not None:
            for trajectory in self._recorder.cut_all(self._pool.env_names):
                self._write(trajectory)
                self._cut += 1
        self._resets, self._obs = resets, {}
        self._reseed(resets, RESET)

    def report(self, chunk: Chunk) -> RolloutReport:
        """What a chunk has come to, once all that it has written is stored."""
        wait_s, shard_away = 0.0, ""
        if self._flush is not None:
            try:
                waited_s = self._flush()
                wait_s, self._waited_s = waited_s - self._waited_s, waited_s
            except ShardAway as away:  # the steps are made, and the writer keeps what they finished
                shard_away = str(away)
        env_failures, self._failures_told = self._pool.failures - self._failures_told, self._pool.failures
        total_s, runnable, idle_s = time.perf_counter() - chunk.started, runnable_s(), 0.0
        if runnable is not None and chunk.runnable is not None and self.config.env_processes is None:
            # (Where environments are processes, they work while this one waits.)
            idle_s = max(total_s - (runnable - chunk.runnable), 0.0)
        frames = chunk.frames.by_name()
        return RolloutReport(
            worker=self._worker,
            incarnation=self._incarnation,
            timesteps=frames.total(),
            frames_by_env=dict(frames),
            episodes=chunk.episodes,
            weight_version=self._weight_version,
            trajectories=chunk.trajectories,
            act_s=chunk.act_s,
            step_s=chunk.step_s,
            wait_s=wait_s,
            total_s=total_s,
            env_failures=env_failures,
            exploration=self._explore.metrics() if self._explore is not None else {},
            shard_away=shard_away,
            env_failed=self._pool.take_failure(),
            idle_s=idle_s,
            num_envs=self.config.num_envs,
            warned=warned(),
        )

    def send(self, chunk: Chunk) -> None:
        """The first half of a timestep of every environment: act."""
        before = time.perf_counter()
        self._actions = self._act()
        self._pool.send(self._actions)
        chunk.act_s += time.perf_counter() - before

    def receive(self, chunk: Chunk) -> None:
        """The second half: take in what the actions led to."""
        before, actions = time.perf_counter(), self._actions
        try:
            transition = self._pool.receive()
        except EnvFailure:
            self.forget_rollouts()
            raise
        ended = transition.terminated | transition.truncated
        names = self._pool.env_names
        self._record(transition, actions, chunk)
        finished = self._statistics.add(transition, ended, names)
        chunk.episodes += finished.values()
        if self.tally is not None:
            self.tally.add(finished, transition.stepped, names)
        self._previous.set(actions, transition.rewards)
        chunk.frames.add(transition.stepped, names)
        chunk.attempted += int(np.count_nonzero(transition.stepped | transition.failed))
        self._obs, fresh = self._pool.begin(ended)
        if np.count_nonzero(fresh):
            self._begin(fresh)
        chunk.step_s += time.perf_counter() - before
        chunk.steps += 1

    def _record(self, transition: Transition, actions: np.ndarray, chunk: Chunk) -> None:
        """Record one timestep and write what it finished, which in an evaluation has to count."""
        if self._recorder is None or self._write is None:
            return
        tally = self.tally
        finished = self._recorder.add(transition, actions, self._pool.env_names, self._weight_version)
        for row, trajectory in finished.items():
            if tally is None:
                self._write(trajectory)
            elif tally.open[row]:
                origin = self.config.first_env + row, tally.assignment.number, int(tally.played[row])
                self._write(replace(trajectory, id=TrajectoryId(*origin)))
        chunk.trajectories += len(finished)

    def _act(self) -> np.ndarray:
        """The actions to take now, (N, ...) as stored."""
        time_idx = self._statistics.lengths.copy()
        actions = self._policy_step.act(self._obs, self._previous.rl2, time_idx)
        if self._explore is None:
            return actions
        return self._explore(actions, time_idx, self._pool.legal_actions(self._obs, self.config.action_mask_key))

    def _begin_all(self) -> None:
        self._obs = self._pool.reset(self._turn)
        self._policy_step.begin_all()
        self._begin(np.ones(self.config.num_envs, dtype=bool))

    def _begin(self, fresh: np.ndarray) -> None:
        if self._recorder is not None:
            self._recorder.begin(fresh, self._obs)
        self._policy_step.begin(fresh)
        self._previous.begin(fresh)
        self._statistics.begin(fresh)
        if self.tally is not None:
            self.tally.begin(fresh)
        if self._explore is not None:
            self._explore.begin(fresh)


@dataclass
class Chunk:
    """What one call of a worker has done so far.

    episodes: the finished rollouts, in the order of their end. attempted: transitions, and failures in their place;
    rows of a VectorEnv that only reset are neither.
    """

    episodes: list[EpisodeResult] = field(default_factory=list)
    steps: int = 0
    attempted: int = 0
    trajectories: int = 0
    act_s: float = 0.0
    step_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    runnable: float | None = field(default_factory=runnable_s)
    frames: Frames = field(default_factory=Frames)


def acting_policy(config: RolloutConfig, agent_spec: AgentSpec) -> Policy:
    """The policy of a worker, with weights of no version yet."""
    policy = laid_out_for_acting(agent_spec.build().policy.to(config.device).eval())
    if config.temperature is not None:
        policy.temperature = config.temperature
    return policy


def env_seed(config: RolloutConfig, incarnation: int, *moment: int) -> int:
    """Environments are seeded by their number within the run: it does not matter how workers share them."""
    return int(np.random.SeedSequence((config.seed, incarnation, *moment)).generate_state(1)[0])


def _random_stream(config: RolloutConfig, seed: int) -> TorchRandomStream:
    """What a worker draws from, and its environments where these draw from what is global and are no processes."""
    kind = RandomStream if config.env_processes is None else TorchRandomStream
    return kind(seed, config.device)
