"""Environments in processes of their own, as a pool.

The promise: what this pool gives is what `EnvPool` gives for the same seed, observation by observation, whether
environments reset, change tasks or raise. Beyond that one may hang (for longer than `EnvProcesses.timeout_s`), be
killed, or take its process down: this pool treats it as `EnvPool` treats one that raised in the same place. Its
process, with all that it has started, is killed, and another takes its place with the next of its seeds; the others
take part in the very same steps, none of them is asked for more or less, and none of their arrays is touched.

Every process runs an `EnvPool` of one. Actions, observations, rewards and flags lie in memory that is shared; what goes
over the line between is a few bytes for each step. How far an environment has come lies there too, where its successor
finds it.

gymnasium's AsyncVectorEnv can't be the base: it ends, or hangs, as a whole, and begins all of its rollouts anew.
"""

from __future__ import annotations

import pickle
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from amago_ray.envs.pool import EnvFailure, Pool, Transition, check_same
from amago_ray.envs.processes.environment import Built, Common, Extra, Place
from amago_ray.envs.processes.line import LineClosed, Say
from amago_ray.envs.processes.options import EnvProcesses
from amago_ray.envs.processes.server import EnvServer
from amago_ray.envs.processes.shared_arrays import OBS, START, SharedArrays, counter_fields, row_fields
from amago_ray.envs.spaces import ActionConverter, ObsConverter
from amago_ray.envs.tasks import Tasks

_SLICE_S = 0.5  # between two looks at those that have not answered
_CLOSE_S = 5.0  # for environments to close


class EnvHung(RuntimeError):
    """An environment did not answer in time."""


class EnvDied(RuntimeError):
    """The process of an environment ended by itself."""


class _Process:
    """The process of one row. awaited: what it was asked and has not answered; None for nothing. due: until when, on
    the pool's clock. gone: it has ended. rollouts: how many it has begun."""

    def __init__(self, server: EnvServer, place: Place, counters: SharedArrays) -> None:
        self.row, self.rollouts, self.gone = place.row, 0, False
        self.awaited: bytes | None = Say.PLACE
        self.due = 0.0
        self.pid, self.line = server.fork()
        self.tell(Say.PLACE, pickle.dumps(place))
        with suppress(LineClosed):  # whoever waits for an answer finds out
            self.line.send_file(counters.fd)

    def tell(self, kind: bytes, payload: bytes = b"") -> None:
        with suppress(LineClosed):  # as above
            self.line.send(kind, payload)

    def attach(self, rows: SharedArrays) -> None:
        self.tell(Say.ATTACH)
        with suppress(LineClosed):
            self.line.send_file(rows.fd)


@dataclass(frozen=True)
class Launched:
    """Processes that are building their environments. first: the place of row 0."""

    server: EnvServer
    first: Place
    counters: SharedArrays
    processes: list[_Process]

    @staticmethod
    def of(server: EnvServer, first: Place) -> Launched:
        counters = SharedArrays(counter_fields(first.num_rows))
        rows = range(first.num_rows)
        return Launched(server, first, counters, [_Process(server, first.at(row), counters) for row in rows])


def start_pools(
    tasks: Tasks,
    shares: Sequence[tuple[int, int]],
    total_envs: int,
    seed: int,
    options: EnvProcesses,
    max_failures_in_a_row: int,
) -> list[ProcessPool]:
    """A pool for each of `shares`, (number of its first environment, how many). All environments are built at a time.

    Raises as `ProcessPool` does, and ValueError for environments that cannot be sent to another process.
    """
    server, pools = EnvServer(Common.of(tasks), users=len(shares)), []
    places = [Place(first, total_envs, 0, num, seed, max_failures_in_a_row) for first, num in shares]
    try:
        for launched in [Launched.of(server, place) for place in places]:
            pools.append(ProcessPool(launched, options))
    except BaseException:
        server.stop()
        for pool in pools:
            pool.close()
        raise
    return pools


class ProcessPool(Pool):
    """N plain environments, each in a process of its own (see the module's docstring).

    Processes begin the next rollout by themselves, as every end is followed by it: `begin` starts rollouts where they
    have ended, and nowhere else.

    spaces: of observations and actions, which all environments share. names_its_own_tasks: whether the name of an
    environment may change from one rollout to the next.

    Raises what building an environment raises, EnvFailure where that hangs or ends its process, and ValueError where
    two environments differ in their spaces.
    """

    def __init__(self, launched: Launched, options: EnvProcesses) -> None:
        self._server, self._first, self._counters = launched.server, launched.first, launched.counters
        self._options = options
        self._processes = launched.processes
        self._rows: SharedArrays | None = None
        self._closed, self._newly_seeded, self._clock = False, False, 0.0
        self._poll = select.poll()
        self._by_fd: dict[int, _Process] = {}
        self._built: dict[int, Built] = {}
        self._awaited: set[_Process] = set()
        try:
            for process in self._processes:
                self._watch(process)
            self._settle()
            built = [self._built[row] for row in range(len(self._processes))]
            self.spaces = built[0].observation_space, built[0].action_space
            converters = ObsConverter(self.spaces[0]), ActionConverter(self.spaces[1])
            super().__init__(converters, len(built), self._first.max_failures_in_a_row)
            self.env_names = [each.name for each in built]
            self.names_its_own_tasks = built[0].names_its_own_tasks
            for each in built[1:]:
                self._check(each)
        except BaseException:
            self._end(close_s=0.0)
            raise
        self._share_memory()

    def _share_memory(self) -> None:
        """Let the arrays that every pool has be those that the processes write into."""
        self._rows = rows = SharedArrays(row_fields(self.obs_spec, self.action_spec, self.num_envs))
        self._obs, self._start = ({name: rows[of + name] for name in self.obs_spec} for of in (OBS, START))
        self._rewards, self._terminated, self._truncated = (rows[x] for x in ("reward", "terminated", "truncated"))
        self._failed, self._has_begun, self._actions = rows["failed"], rows["fresh"], rows["action"]
        self._failures_in_a_row, self._has_stepped = self._counters["failures_in_a_row"], self._counters["stepped"]
        self._infos: dict[int, dict[str, float]] = {}
        self._next_names = list(self.env_names)
        for process in self._processes:
            process.attach(rows)

    @property
    def pids(self) -> list[int]:
        """The process of each environment."""
        return [process.pid for process in self._processes]

    # ------------------------------------------------------------------------------------------ what every pool does

    def reset(self, turn: int = 0) -> dict[str, np.ndarray]:
        self._settle()
        self._infos = {}
        self._counters["rollout"][:] = turn
        self._has_stepped[:] = 1  # no step can be lost
        for process in self._processes.copy():
            if self._options.max_rollouts is not None and process.rollouts:
                # All are as new: what follows does not depend on how many rollouts there were before.
                process.tell(Say.CLOSE)
                self._server.collect(process.pid)
                if self._newly_seeded:  # it took the first of its new seeds, and has not used it
                    self._counters["seeds_used"][process.row] = 0
                self._succeed(process)
            else:
                self._ask(process, Say.RESET)
        self._newly_seeded = False
        self._settle()
        self._take_start()
        return self._obs

    def reseed(self, seed: int) -> None:
        self._settle()
        self._first = replace(self._first, seed=seed)
        self._counters["seeds_used"][:] = 0
        self._newly_seeded = True
        for process in self._processes:
            process.tell(Say.RESEED, pickle.dumps(seed))

    def step(self, actions: np.ndarray) -> Transition:
        self.send(actions)
        return self.receive()

    def send(self, actions: np.ndarray) -> None:
        self._settle()  # nothing, unless a step was broken off by an EnvFailure
        self._actions[:] = actions
        self._has_stepped[:] = 0
        for process in self._processes:
            self._ask(process, Say.LAST_STEP if self._is_used_up(process) else Say.STEP)

    def receive(self) -> Transition:
        self._settle()
        np.logical_not(self._failed, out=self._stepped)
        infos, self._infos = self._infos, {}
        return self._transition(infos)

    def begin(self, ended: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        self._take_start()
        return self._obs, self._fresh

    def close(self) -> None:
        """Let the environments close, for 5 s at the most, and end their processes."""
        self._end(_CLOSE_S)

    def _take_start(self) -> None:
        """Let the observations be the first ones where rollouts have begun since the last call."""
        self._fresh[:] = self._has_begun
        if self._fresh.any():
            for name, column in self._obs.items():
                column[self._fresh] = self._start[name][self._fresh]
            for row in np.flatnonzero(self._fresh).tolist():
                self.env_names[row] = self._next_names[row]

    def _is_used_up(self, process: _Process) -> bool:
        return self._options.max_rollouts is not None and process.rollouts >= self._options.max_rollouts

    # ------------------------------------------------------------------------------------------------------- waiting

    def _ask(self, process: _Process, kind: bytes) -> None:
        process.tell(kind)
        self._await(process, kind)

    def _await(self, process: _Process, kind: bytes) -> None:
        limit_s = self._options.build_timeout_s if kind == Say.PLACE else self._options.timeout_s
        process.awaited, process.due = kind, np.inf if limit_s is None else self._clock + limit_s
        self._awaited.add(process)

    def _settle(self) -> None:
        """Wait until every process has done what it was asked, or another one in its place.

        The clock runs only here, and by no more than a slice at a time: when the machine sleeps or this process is
        stopped, that is no environment's fault. Raises EnvFailure at the limit of failures.
        """
        slice_s = min(_SLICE_S, (self._options.timeout_s or np.inf) / 4)
        looked_at = self._clock
        for process in [process for process in self._awaited if process.gone]:
            self._lost(process)
        while self._awaited:
            before = time.monotonic()
            ready = self._poll.poll(slice_s * 1000)
            self._clock += min(time.monotonic() - before, slice_s)
            for fd, _ in ready:
                self._listen(self._by_fd[fd])
            if self._clock - looked_at >= slice_s:
                looked_at = self._clock
                self._look()

    def _listen(self, process: _Process) -> None:
        """Take in what one process says."""
        try:
            for kind, payload in process.line.frames():
                self._hear(process, kind, payload)
        except LineClosed:
            self._forget(process)
            if process in self._awaited:
                self._lost(process)

    def _hear(self, process: _Process, kind: bytes, payload: bytes) -> None:
        row = process.row
        if kind == Say.EXTRA:
            self._take_in(row, pickle.loads(payload))
            return
        self._awaited.discard(process)
        if kind == Say.BUILT:
            self._introduce(process, pickle.loads(payload))
        elif kind == Say.LEFT:
            self._server.collect(process.pid)
            self._succeed(process)
        elif kind == Say.FAILED:
            self._fail_for_good(process, pickle.loads(payload))
        else:
            process.rollouts += int(self._has_begun[row])

    def _take_in(self, row: int, extra: Extra) -> None:
        if extra.infos:
            self._infos[row] = extra.infos
        if extra.name is not None:
            self._next_names[row] = extra.name
        if extra.failures:
            self.failures += extra.failures
            self.last_failure = extra.last_failure
            self._first_failure = self._first_failure or extra.failed

    def _introduce(self, process: _Process, built: Built) -> None:
        """An environment is built: one of the first, or one in another's place."""
        if self._rows is None:
            self._built[process.row] = built
            return
        try:
            self._check(built)
        except ValueError as error:
            self._replace(process, error)
            return
        process.attach(self._rows)
        self._ask(process, Say.BEGIN)

    def _check(self, built: Built) -> None:
        given = built.observation_space, built.action_space
        check_same(given, built.name, self.spaces, self.env_names[0])

    # --------------------------------------------------------------------------------------------------------- dying

    def _look(self) -> None:
        """Find those that are late, and those that ended while something that they have started holds their line."""
        for process in list(self._awaited):
            if self._clock >= process.due:
                doing = {Say.PLACE: "was not built", Say.RESET: "did not reset", Say.BEGIN: "did not reset"}
                waited_s = self._options.build_timeout_s if process.awaited == Say.PLACE else self._options.timeout_s
                did_not = doing.get(process.awaited or b"", "did not step and reset")
                self._forget(process)
                self._replace(process, EnvHung(f"it {did_not} within {waited_s:g} s (env_timeout_s)"))
            elif self._server.has_ended(process.pid):
                self._listen(process)  # what it has said before counts
                if process in self._awaited:
                    self._forget(process)
                    self._lost(process)

    def _lost(self, process: _Process) -> None:
        """A process has ended without an answer."""
        code = self._server.collect(process.pid)
        how = "its process ended" if code is None else f"its process ended with exit code {code}"
        if code is not None and code < 0:
            with suppress(ValueError):
                how = f"its process was killed by {signal.Signals(-code).name}"
        self._replace(process, EnvDied(how))

    def _fail_for_good(self, process: _Process, error: BaseException) -> None:
        """What an environment raises when it is first built, or when it has failed too often, is raised here."""
        if self._rows is None:
            raise error
        if process.awaited == Say.PLACE:
            self._replace(process, error)
            return
        self._server.collect(process.pid)
        self._succeed(process)
        raise error

    def _replace(self, process: _Process, error: BaseException) -> None:
        """Kill one process, count its failure and start another. Raises EnvFailure at the limit."""
        self._server.kill(process.pid)
        if self._rows is None:
            raise EnvFailure(f"environment {self._first.env + process.row} could not be built: {error}") from error
        try:
            if process.awaited in (Say.STEP, Say.LAST_STEP) and not self._has_stepped[process.row]:
                self._fail(process.row, error)
            else:
                self._count_failure(process.row, error)
        finally:  # whoever goes on all the same finds an environment in each row
            self._succeed(process)

    def _succeed(self, process: _Process) -> None:
        """Start another process in place of this one, which has ended."""
        self._forget(process)
        self._awaited.discard(process)
        successor = _Process(self._server, self._first.at(process.row), self._counters)
        self._processes[process.row] = successor
        self._watch(successor)

    def _watch(self, process: _Process) -> None:
        fd = process.line.socket.fileno()
        self._by_fd[fd] = process
        self._poll.register(fd, select.POLLIN)
        self._await(process, Say.PLACE)

    def _forget(self, process: _Process) -> None:
        """Listen to it no more."""
        if not process.gone:
            process.gone = True
            fd = process.line.socket.fileno()
            self._poll.unregister(fd)
            del self._by_fd[fd]
            process.line.close()

    def _end(self, close_s: float) -> None:
        if self._closed:
            return
        self._closed = True
        for process in self._processes:
            process.tell(Say.CLOSE)
        until = time.monotonic() + close_s
        while self._by_fd and (left_s := until - time.monotonic()) > 0:
            for fd, _ in self._poll.poll(left_s * 1000):
                process = self._by_fd[fd]
                try:
                    list(process.line.frames())  # what it says now does not matter
                except LineClosed:
                    self._forget(process)
        for process in self._processes:
            if not process.gone:
                self._forget(process)
            self._server.kill(process.pid)
        self._counters.close()
        if self._rows is not None:
            self._rows.close()
        self._server.release()
