"""Where the processes of environments come from: one small process of a worker, which forks them.

Forked, and not started anew each: an environment's process is there in milliseconds and shares what is imported with
its siblings, so that replacing one costs little. Forked by this process, and not by the worker: a worker has threads,
PyTorch and perhaps CUDA, none of which survive a fork. This process imports neither, and has one thread and no user's
code, so that nothing is halfway when it forks, and it cannot hang. (`multiprocessing`'s own fork server and its spawn
import the main script in every process; here the functions that build environments come as `cloudpickle` has them.)

It ends when its worker ends, however that ends: the end of their connection says so, and a look at its parent once a
second. It kills the environments then, and whatever they have started. On Linux these also die with this process.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress

from amago_ray.envs.processes.environment import Common, run
from amago_ray.envs.processes.line import Line, LineClosed

FORK, KILL, COLLECT, LOOK = b"F", b"K", b"C", b"L"
COMMON = b"M"
RUNNING = 1 << 16  # in place of an exit code

_REQUEST = struct.Struct("<cq")
_REPLY = struct.Struct("<q")
_ANSWER_S = 20.0  # after which this process counts as frozen
_GRACE_S = 0.2  # for a process that has closed its connection to be gone
_LOOK_INTERVAL_S = 1.0
_PR_SET_PDEATHSIG = 1
_MAIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); fd = int(sys.argv[2]); sys.argv[1:] = []; "
    "from amago_ray.envs.processes.server import serve; serve(fd)"
)
# Numeric libraries start threads as they are imported, which a fork would lose; and environments are many.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class EnvServer:
    """The worker's hold on that process, which is started anew where it has died.

    users: how many `release` it before it ends. Raises RuntimeError where it cannot be started.
    """

    def __init__(self, common: Common, users: int = 1) -> None:
        self._common, self._users = common.packed(), users
        self._lock = threading.Lock()
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self) -> tuple[int, Line]:
        """A new process of an environment, by its id, and the line to it."""
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            for attempt in (1, 2):
                try:
                    socket.send_fds(self._connection, [_REQUEST.pack(FORK, 0)], [theirs.fileno()])
                    return self._reply(), Line(ours)
                except OSError as error:
                    if attempt == 2:
                        raise RuntimeError(f"the process that starts environments is gone: {error}") from error
                    self._stop()
                    self._start()
        raise AssertionError

    def kill(self, pid: int) -> None:
        """Kill one process of an environment, and what it has started."""
        self._ask(KILL, pid)

    def collect(self, pid: int) -> int | None:
        """The exit code of one that is ending by itself, as of `subprocess`; None where it cannot be known."""
        return self._ask(COLLECT, pid)

    def has_ended(self, pid: int) -> bool:
        return self._ask(LOOK, pid) != RUNNING

    def release(self) -> None:
        """One user less. The last one ends the process."""
        self._users -= 1
        if self._users == 0:
            self._stop()

    def _start(self) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, json.dumps(sys.path), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
            )
        self._connection.settimeout(_ANSWER_S)
        Line(self._connection).send(COMMON, self._common)

    def _stop(self) -> None:
        self._connection.close()
        try:
            self._process.wait(_ANSWER_S / 4)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: bytes, pid: int) -> int | None:
        with self._lock:
            try:
                self._connection.sendall(_REQUEST.pack(request, pid))
                return self._reply()
            except OSError:  # it is gone or frozen, and no answer is to be trusted: the next `fork` starts another
                self._connection.close()
                return None

    def _reply(self) -> int:
        reply = self._connection.recv(_REPLY.size, socket.MSG_WAITALL)
        if len(reply) < _REPLY.size:
            raise ConnectionResetError("it has ended")
        return _REPLY.unpack(reply)[0]


def serve(fd: int) -> None:
    """Be that process, with the connection `fd` to the worker."""
    import amago_ray.envs.makers  # noqa: F401 (what every environment needs, imported once for all of them)

    worker, connection = os.getppid(), socket.socket(fileno=fd)
    connection.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's affair
    children: set[int] = set()
    try:
        kind, packed = Line(connection).receive()
        assert kind == COMMON
        common = Common.unpacked(packed)
        while True:
            if not select.select([connection], [], [], _LOOK_INTERVAL_S)[0]:
                if os.getppid() != worker:
                    return
                continue
            message, fds, _, _ = socket.recv_fds(connection, _REQUEST.size, 1)
            if len(message) < _REQUEST.size:
                return
            request, pid = _REQUEST.unpack(message)
            answer = 0
            if request == FORK:
                answer = _fork(fds[0], connection, common)
                children.add(answer)
            elif pid in children:  # others have ended, and their ids may be those of strangers by now
                answer = _look(pid) if request == LOOK else _end(pid, at_once=request == KILL)
                children -= {pid} if request != LOOK else set()
            connection.sendall(_REPLY.pack(answer))
    except (LineClosed, OSError):
        return  # the worker is gone
    finally:
        for pid in children:
            _kill_group(pid)


def _fork(fd: int, connection: socket.socket, common: Common) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    server = os.getpid()
    pid = os.fork()
    if pid:
        os.close(fd)
        with suppress(OSError):  # the child may have done it, and be gone
            os.setpgid(pid, pid)
        return pid
    code = 1
    try:
        with suppress(OSError):
            os.setpgid(0, 0)  # what the environment starts is killed with it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _die_with(server)
        connection.close()
        os.set_inheritable(fd, False)
        run(Line(socket.socket(fileno=fd)), common)
        code = 0
    except BaseException:  # the last that can be said; the worker sees the connection end
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _die_with(parent: int) -> None:
    """On Linux, have this process killed when its parent ends: strictly, the thread of it, and it has only one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it had ended before
            os._exit(1)


def _look(pid: int) -> int:
    """The exit code, or RUNNING. Leaves a process that has ended where it is."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return 0
    if found is None:
        return RUNNING
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _end(pid: int, at_once: bool) -> int:
    """Let a child be gone, and what it has started; killed where it does not end by itself. The exit code."""
    until = time.monotonic() + (0.0 if at_once else _GRACE_S)
    while (code := _look(pid)) == RUNNING and time.monotonic() < until:
        time.sleep(0.001)  # between two looks
    _kill_group(pid)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    return -signal.SIGKILL if code == RUNNING else code


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
