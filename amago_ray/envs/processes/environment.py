"""What the process of one environment does: a pool of one, which answers in shared memory."""

from __future__ import annotations

import pickle
import random
from contextlib import suppress
from dataclasses import dataclass, field, replace

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from amago_ray import config
from amago_ray.envs.amago_env import name_before_reset
from amago_ray.envs.plain_pool import Counters, EnvPool
from amago_ray.envs.pool import FAILURES, EnvFailure, close_env, env_seeds, one_line
from amago_ray.envs.processes.line import Line, LineClosed, Say
from amago_ray.envs.processes.shared_arrays import OBS, START, SharedArrays, counter_fields, row_fields
from amago_ray.envs.tasks import EnvMaker, Tasks, sized

CONFIGURED = ("amago_ray.envs.builtin", "amago_ray.envs.suites")  # what gin may have settings of, here
_ALL = np.ones(1, bool)


@dataclass(frozen=True)
class Common:
    """What all environments of a worker are made of. tasks: pickled. gin_config: see `config.snapshot`."""

    tasks: bytes
    gin_config: str

    @classmethod
    def of(cls, tasks: Tasks) -> Common:
        """Raises ValueError for functions that cannot be sent to another process."""
        try:
            return cls(cloudpickle.dumps(tasks), config.snapshot())
        except Exception as error:  # whatever pickling a user's object may raise
            raise ValueError(
                f"Experiment.env_mode='processes': the environments cannot be sent to another process "
                f"({one_line(error)}); let make_env build what they hold"
            ) from error

    def packed(self) -> bytes:
        return pickle.dumps(self)

    @staticmethod
    def unpacked(packed: bytes) -> Common:
        return pickle.loads(packed)


@dataclass(frozen=True)
class Place:
    """Which environment a process is of: number `env` of the run, row `row` of `num_rows` shared ones."""

    env: int
    total_envs: int
    row: int
    num_rows: int
    seed: int
    max_failures_in_a_row: int

    def at(self, row: int) -> Place:
        """The place of another row."""
        return replace(self, env=self.env + row - self.row, row=row)


@dataclass(frozen=True)
class Built:
    observation_space: gym.Space
    action_space: gym.Space
    name: str
    names_its_own_tasks: bool


@dataclass(frozen=True)
class Extra:
    """What a step or a reset leads to beside the arrays, now and then.

    infos: what was logged in the rollout that ended. name: of the coming rollout, where it is another. failures: how
    many there were. last_failure: traceback of the newest. failed: what the first of them was, in words.
    """

    infos: dict[str, float] = field(default_factory=dict)
    name: str | None = None
    failures: int = 0
    last_failure: str = ""
    failed: str = ""


def run(line: Line, common: Common) -> None:
    """Build one environment and do what the worker asks for, until it closes the line."""
    with suppress(LineClosed):
        kind, packed = line.receive()
        assert kind == Say.PLACE
        place: Place = pickle.loads(packed)
        counters = SharedArrays(counter_fields(place.num_rows), line.receive_file())
        counters.close()
        try:
            pool = _built(common, place, counters)
            built = cloudpickle.dumps(Built(*pool.spaces, pool.env_names[0], pool.names_its_own_tasks))
        except FAILURES as error:
            line.send(Say.FAILED, _pickled(error))
            return
        line.send(Say.BUILT, built)
        answers, left = _Answers(place, pool, counters, line), False
        try:
            left = _serve(line, answers)
        finally:
            pool.close()
        if left:
            line.send(Say.LEFT)


def _serve(line: Line, answers: _Answers) -> bool:
    """Do what the worker asks for, until it says that this is all. Returns whether that was after a Say.LAST_STEP."""
    while True:
        kind, payload = line.receive()
        try:
            match kind:
                case Say.STEP:
                    answers.step()
                case Say.LAST_STEP:
                    if answers.step(last=True):
                        return True
                case Say.RESET:
                    answers.reset()
                case Say.BEGIN:
                    answers.begin(_ALL)
                case Say.RESEED:
                    answers.reseed(pickle.loads(payload))
                    continue
                case _:
                    assert kind == Say.CLOSE
                    return False
        except EnvFailure as failure:
            answers.tell()
            line.send(Say.FAILED, pickle.dumps(failure))
            return False
        answers.tell()
        line.send(Say.DONE)


class _Answers:
    """Steps a pool of one environment and writes what comes of it into its row of shared memory."""

    def __init__(self, place: Place, pool: EnvPool, counters: SharedArrays, line: Line) -> None:
        kind, _ = line.receive()
        if kind != Say.ATTACH:
            raise LineClosed("closed before it was used")
        rows = SharedArrays(row_fields(pool.obs_spec, pool.action_spec, place.num_rows), line.receive_file())
        rows.close()
        self.pool, self._line, self._env = pool, line, place.env
        here = slice(place.row, place.row + 1)
        self._stepped, self._turn = counters["stepped"][here], counters["rollout"][here]
        self._action = rows["action"][here]
        self._flags = [rows[name][here] for name in ("reward", "terminated", "truncated", "failed")]
        self._fresh = rows["fresh"][here]
        self._obs, self._start = (
            [(name, rows[prefix + name][here]) for name in pool.obs_spec] for prefix in (OBS, START)
        )
        self._name: str | None = None
        self._failures = 0

    def step(self, last: bool = False) -> bool:
        """Take the action, then begin a rollout where the last one ended or failed; not where it is to `leave`.

        What a step led to is there, and `stepped` says so, before the environment is called again: a reset that never
        returns costs the next rollout and not the one that has ended.
        """
        transition = self.pool.step(self._action)
        for name, column in self._obs:
            column[:] = transition.obs[name]
        values = (transition.rewards, transition.terminated, transition.truncated, transition.failed)
        for column, value in zip(self._flags, values, strict=True):
            column[:] = value
        self._fresh[:] = False
        ended = transition.terminated | transition.truncated
        self.tell(transition.infos.get(0))
        leaves = last and bool(ended.any())
        if leaves:
            self.pool.leave(ended)
        self._stepped[:] = True
        if not leaves and (ended.any() or transition.failed.any()):
            self.begin(ended)
        return leaves

    def begin(self, ended: np.ndarray) -> None:
        self._write_start(self.pool.begin(ended)[0])

    def reset(self) -> None:
        self._write_start(self.pool.reset(int(self._turn[0])))

    def reseed(self, seed: int) -> None:
        self.pool.reseed(seed)
        _seed_global_streams(seed, self._env, 0)

    def _write_start(self, obs: dict[str, np.ndarray]) -> None:
        for name, column in self._start:
            column[:] = obs[name]
        self._fresh[:] = True

    def tell(self, infos: dict[str, float] | None = None) -> None:
        """Say what the arrays do not hold, if there is anything new."""
        pool = self.pool
        name = pool.env_names[0] if pool.env_names[0] != self._name else None
        failures = pool.failures - self._failures
        if name is not None or failures or infos:
            self._name, self._failures = pool.env_names[0], pool.failures
            extra = Extra(infos or {}, name, failures, pool.last_failure, pool.take_failure())
            self._line.send(Say.EXTRA, pickle.dumps(extra))


def _built(common: Common, place: Place, counters: SharedArrays) -> EnvPool:
    """The pool of this one environment."""
    tasks: Tasks = cloudpickle.loads(common.tasks)
    tasks.register()
    config.restore(common.gin_config, modules=CONFIGURED)
    row = slice(place.row, place.row + 1)
    kept = Counters(*(counters[name][row] for name in ("rollout", "seeds_used", "failures_in_a_row")))
    _seed_global_streams(place.seed, place.env, int(kept.seeds_used[0]))
    makers = [_plain(sized(maker, 1, env_seeds(place.seed, place.env))) for maker in tasks.makers]
    return EnvPool(
        makers, place.seed, place.max_failures_in_a_row, place.env, 1, place.total_envs, tasks.labels, counters=kept
    )


def _seed_global_streams(*numbers: int) -> None:
    """Forked processes would all draw the same: environments that draw from what is global would be copies."""
    seed = int(np.random.SeedSequence((*numbers, 1)).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)


def _plain(maker: EnvMaker) -> EnvMaker:
    def make() -> gym.Env:
        env = maker()
        if isinstance(env, VectorEnv):
            name = name_before_reset(env)
            close_env(env)
            raise vector_env_refused(name)
        return env

    return make


def vector_env_refused(name: str) -> ValueError:
    return ValueError(
        f"Experiment.env_mode='processes': {name} is a VectorEnv, which steps its environments itself; set "
        "env_mode='sync', or have make_env build one plain Env"
    )


def _pickled(error: BaseException) -> bytes:
    """The error itself where it can be sent, else what it says."""
    try:
        packed = cloudpickle.dumps(error)
        pickle.loads(packed)
    except Exception:  # whatever a user's exception does when it is copied
        return cloudpickle.dumps(RuntimeError(one_line(error)))
    return packed
