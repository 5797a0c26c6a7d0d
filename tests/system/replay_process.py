"""A process that forks replay shards, each of which serves one connection until it is killed, or kills itself.

Started as a program, with the address of a socket. Imports nothing but the shard, so that a life costs milliseconds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from typing import Any

from amago_ray.replay.shard import ReplayConfig, ReplayShard

SYSTEM_CALLS = ("open", "pwritev", "preadv", "ftruncate", "rename", "replace", "unlink", "fsync", "close")


@dataclass(frozen=True)
class Life:
    """How one shard dies. at_call: in which of its system calls. after_s: whatever it does then."""

    config: ReplayConfig
    seed: int
    at_call: int | None = None
    after_s: float | None = None


def arrange_death(life: Life) -> None:
    if life.after_s is not None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the system ends the process on the spot
        signal.setitimer(signal.ITIMER_REAL, life.after_s)
    if life.at_call is not None:
        left = [life.at_call]
        rng = random.Random(life.seed)
        for name in SYSTEM_CALLS:
            setattr(os, name, deadly(getattr(os, name), left, rng))


def deadly(call: Callable[..., Any], left: list[int], rng: random.Random) -> Callable[..., Any]:
    """A system call that does not return when it is the one."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] > 0:
            return call(*args, **kwargs)
        if call.__name__ == "pwritev":  # a part of it arrives
            fd, buffers, offset = args
            data = b"".join(bytes(buffer) for buffer in buffers)
            call(fd, [data[: rng.randrange(len(data) + 1)]], offset)
        elif rng.random() < 0.5:
            call(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    return replacement


def serve(connection: Connection) -> None:
    life: Life = connection.recv()
    arrange_death(life)
    shard = ReplayShard(life.config, 0)
    while True:
        name, args = connection.recv()
        if name == "ids":
            rows = shard.store.table.rows
            connection.send([(int(r["worker"]), int(r["incarnation"]), int(r["sequence"])) for r in rows])
        else:
            connection.send(getattr(shard, name)(*args))


def main(address: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    with Listener(address, "AF_UNIX", backlog=16) as listener:
        print("listening", flush=True)
        while True:
            connection = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                try:
                    serve(connection)
                except EOFError:
                    os._exit(0)
                finally:  # an error ends this life too, and is told on stderr
                    sys.excepthook(*sys.exc_info()) if sys.exc_info()[0] else None
                    os._exit(1)
            connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
