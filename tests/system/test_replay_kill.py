"""A shard that is killed at any moment has, when it is back, exactly what it had acknowledged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TESTS
from ring_cases import assert_same_trajectories, stored_trajectories, trajectory
from system.replay_process import Life

from amago_ray.messages import Batch, Trajectory
from amago_ray.pending import ProcessDied
from amago_ray.replay import client
from amago_ray.replay.client import ReplayReader, ReplayWriter
from amago_ray.replay.sampling.selection import SelectionConfig
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.replay.storage.config import StoreConfig

DEATHS = 200


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of the process that forks shards."""
    path, errors = tmp_path / "socket", tmp_path / "errors"
    command = [sys.executable, "-m", "system.replay_process", str(path)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    with open(errors, "w") as stderr:
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        )
        try:
            assert process.stdout is not None and process.stdout.readline() == "listening\n"
            yield str(path)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # a shard may live where the test has failed
            process.communicate()
    assert errors.read_text() == ""


@pytest.fixture
def fast_folder() -> Iterator[Path]:
    """In memory where there is such a place: a killed process loses nothing there, and nothing waits for a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


class Line:
    """One connection to one life of a shard; answers come in the order of the questions."""

    def __init__(self, address: str, life: Life):
        self._connection: Connection = Client(address, "AF_UNIX")
        self._waiting: deque[Answer] = deque()
        self.dead = False
        self.tell(life)

    def tell(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            self.dead = True

    def ask(self, name: str, *args: Any) -> Answer:
        self.tell((name, args))
        answer = Answer(self)
        self._waiting.append(answer)
        return answer

    def receive(self) -> None:
        try:
            value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self.close()
            return
        answer = self._waiting.popleft()
        answer.value, answer.there = value, True

    def close(self) -> None:
        self.dead = True
        self._connection.close()


class Answer:
    """A `Pending`."""

    def __init__(self, line: Line):
        self._line, self.there, self.value = line, False, None

    def done(self) -> bool:
        return self.there

    def result(self, timeout_s: float | None = None) -> Any:
        while not self.there:
            if self._line.dead:
                raise ProcessDied("killed")
            self._line.receive()
        return self.value


class MortalShard:
    """A `ShardHandle`: a shard in another process that comes back at the next call, `deaths` times."""

    def __init__(self, address: str, config: ReplayConfig, deaths: int, seed: int):
        self._address, self._config, self._rng = address, config, random.Random(seed)
        self._line: Line | None = None
        self.deaths_left = deaths

    def _life(self) -> Life:
        seed = self._rng.randrange(1 << 30)
        if self.deaths_left == 0:
            return Life(self._config, seed)
        if self._rng.random() < 0.7:
            return Life(self._config, seed, at_call=self._rng.randrange(1, 800))
        return Life(self._config, seed, after_s=self._rng.uniform(0.0005, 0.1))

    def ask(self, name: str, *args: Any) -> Answer:
        if self._line is not None and self._line.dead:
            self._line.close()
            self._line, self.deaths_left = None, self.deaths_left - 1
        if self._line is None:
            self._line = Line(self._address, self._life())
        return self._line.ask(name, *args)

    def surely(self, name: str, *args: Any) -> Any:
        """The answer of whichever life lives long enough to give it."""
        while True:
            try:
                return self.ask(name, *args).result()
            except ProcessDied:
                continue

    def push(self, packed: Any) -> Answer:
        return self.ask("push", packed)

    def available(self) -> Answer:
        return self.ask("available")

    def sample(self, *args: Any) -> Answer:
        return self.ask("sample", *args)

    def update_priorities(self, *args: Any) -> Answer:
        return self.ask("update_priorities", *args)

    def close(self) -> None:
        if self._line is not None:
            self._line.close()


def made(worker: int, sequence: int) -> Trajectory:
    return trajectory(sequence, 1 + (sequence + worker) % 7, worker)


def key(t: Trajectory) -> tuple[int, int, int]:
    return t.id.worker, t.id.incarnation, t.id.sequence


def newest_that_fit(written: list[Trajectory], config: StoreConfig) -> list[Trajectory]:
    """What is left of trajectories in the order in which they became visible."""
    num = num_bytes = 0
    for t in reversed(written):
        num_bytes += t.num_bytes
        if num_bytes > config.capacity_bytes or num == config.capacity_trajectories:
            break
        num += 1
    return written[len(written) - num :]


def assert_rows_are_their_own(batch: Batch) -> None:
    ids = batch.gather("ids")
    for b, rows in enumerate(batch.rows("obs.from")):
        assert (rows[:, :3] == ids[b]).all()
        np.testing.assert_array_equal(rows[:, 3], batch.first_time_idx[b] + np.arange(batch.lengths[b] + 1))


@pytest.mark.parametrize(
    ("mode", "compressed", "capacity"),
    [("prioritized", (), (2500, 1 << 30)), ("trajectories", ("pixels",), (1 << 30, 40))],
    ids=["prioritized", "compressed"],
)
def test_nothing_acknowledged_is_lost_or_doubled(
    address: str,
    fast_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: Any,
    compressed: tuple[str, ...],
    capacity: tuple[int, int],
) -> None:
    monkeypatch.setattr(client, "RETRY_INTERVAL_S", 0.0)
    store = StoreConfig(fast_folder, *capacity, compressed, segment_bytes=900, fsync_interval_s=0.005)
    config = ReplayConfig(4, store=store, selection=SelectionConfig(mode))
    shard = MortalShard(address, config, DEATHS // 2, seed=len(mode))
    writers = [ReplayWriter([shard], message_bytes=200, max_in_flight=3) for _ in range(2)]
    reader = ReplayReader([shard], batch_size=4, seed=0, batches_per_request=2)
    rng = np.random.default_rng(0)
    shown: list[Trajectory] = []
    rounds = sequence = 0
    while shard.deaths_left or len(shown) < 200:
        new = []
        for _ in range(int(rng.integers(1, 8))):
            for worker, writer in enumerate(writers):
                new.append(made(worker, sequence))
                writer.write(new[-1])
            sequence += 1
        if shown:
            batches = list(reader.batches(4, first=4 * rounds))
            for batch in batches:
                assert_rows_are_their_own(batch)
            if mode == "prioritized":
                reader.update_priorities(batches, rng.uniform(0.5, 2, (len(batches), 4)))
        for writer in writers:
            writer.flush()
        shard.surely("commit")
        shown += sorted(new, key=key)
        assert shard.surely("ids") == [key(t) for t in newest_that_fit(shown, store)]
        rounds += 1
    assert len(shown) > len(newest_that_fit(shown, store)) + 100, "too little was evicted to mean anything"
    shard.close()
    replay = ReplayShard(config, 0)
    assert replay.report().damage == () and replay.store.num_staged == 0
    assert replay.store.damaged(np.arange(replay.store.table.first, replay.store.table.end), anew=True) == []
    assert_same_trajectories(stored_trajectories(replay), newest_that_fit(shown, store))
    replay.close()
    left = {path.suffix or path.name for path in (fast_folder / "shard_0").iterdir()}
    assert left <= {".segment", "lock", "priorities"}, "unfinished files of the dead"


def test_the_process_imports_no_torch() -> None:
    code = "import sys, amago_ray.replay.shard; assert not {'torch', 'ray', 'gymnasium'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent, check=True)
