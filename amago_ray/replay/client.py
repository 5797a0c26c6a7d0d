"""The two ends that talk to the shards: the worker's writer and the learner's reader."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from amago_ray.data import Batch, Trajectory
from amago_ray.futures import Pending, ProcessDied, Ready
from amago_ray.replay.packing import PackedTrajectories, pack
from amago_ray.replay.shard import ReplayEmpty, ReplayShard

RETRY_INTERVAL_S = 0.2
REQUEST_BYTES = 16 << 20
IN_FLIGHT_BYTES = 512 << 20


class ShardHandle(Protocol):
    """A shard in another process."""

    def push(self, packed: PackedTrajectories) -> Pending[int]: ...

    def num_trajectories(self) -> Pending[int]: ...

    def sample(self, num_sequences: int, num_available: int, draw: tuple[int, ...]) -> Pending[Batch]: ...


class LocalShard:
    """A shard in this process, behind the interface of one elsewhere."""

    def __init__(self, shard: ReplayShard):
        self.shard = shard

    def push(self, packed: PackedTrajectories) -> Pending[int]:
        return Ready(self.shard.push(packed))

    def num_trajectories(self) -> Pending[int]:
        return Ready(self.shard.num_trajectories())

    def sample(self, num_sequences: int, num_available: int, draw: tuple[int, ...]) -> Pending[Batch]:
        return Ready(self.shard.sample(num_sequences, num_available, draw))


class ReplayWriter:
    """Sends finished trajectories to the shards; forgets one only when its shard has acknowledged it.

    message_bytes: trajectories are gathered up to this size before they are sent.
    max_in_flight: unacknowledged messages beyond which `write` waits (back-pressure).
    timeout_s: how long a dead shard may stay away before the error is raised.
    """

    def __init__(
        self,
        shards: Sequence[ShardHandle],
        message_bytes: int = 1 << 20,
        max_in_flight: int = 2,
        timeout_s: float = 120.0,
    ):
        self._shards = shards
        self._message_bytes = message_bytes
        self._max_in_flight = max_in_flight
        self._timeout_s = timeout_s
        self._gathered: list[list[Trajectory]] = [[] for _ in shards]
        self._gathered_bytes = [0] * len(shards)
        self._in_flight: deque[tuple[int, PackedTrajectories, Pending[int]]] = deque()
        self.wait_s = 0.0

    def write(self, trajectory: Trajectory) -> None:
        """Take one finished trajectory. Its worker and number choose the shard, so that shards fill evenly."""
        shard = (trajectory.id.worker + trajectory.id.sequence) % len(self._shards)
        self._gathered[shard].append(trajectory)
        self._gathered_bytes[shard] += trajectory.num_bytes
        if self._gathered_bytes[shard] >= self._message_bytes:
            self._send(shard)

    def flush(self) -> None:
        """Send what is gathered and wait until everything is acknowledged."""
        for shard, gathered in enumerate(self._gathered):
            if gathered:
                self._send(shard)
        while self._in_flight:
            self._await_oldest()

    def _send(self, shard: int) -> None:
        while len(self._in_flight) >= self._max_in_flight:
            self._await_oldest()
        packed = pack(self._gathered[shard])
        self._gathered[shard], self._gathered_bytes[shard] = [], 0
        self._in_flight.append((shard, packed, self._shards[shard].push(packed)))

    def _await_oldest(self) -> None:
        started = time.monotonic()
        shard, packed, pending = self._in_flight[0]
        while True:
            try:
                pending.result(self._timeout_s)
                break
            except ProcessDied:
                if time.monotonic() - started > self._timeout_s:
                    raise
                time.sleep(RETRY_INTERVAL_S)  # a restarting shard refuses calls; there is nothing to wait on
                pending = self._shards[shard].push(packed)
        self._in_flight.popleft()
        self.wait_s += time.monotonic() - started


def request_size(batch_bytes: int) -> tuple[int, int]:
    """(batches per request, requests in flight) that spare calls where batches are small and memory where not.

    batch_bytes: the most that one batch can hold.
    """
    batches = min(max(REQUEST_BYTES // batch_bytes, 1), 4)
    return batches, min(max(IN_FLIGHT_BYTES // (batches * batch_bytes), 1), 3)


class ReplayReader:
    """Samples batches over all shards with exactly the distribution of one big buffer.

    Each request first draws how many of its sequences come from which shard (multinomial in the shards' sizes), asks
    all shards at once and shuffles what comes back. A few requests are kept in flight.

    batches_per_request: batches drawn together, to spare calls. max_in_flight: requests ahead of the consumer.
    """

    def __init__(
        self,
        shards: Sequence[ShardHandle],
        batch_size: int,
        seed: int,
        rank: int = 0,
        batches_per_request: int = 4,
        max_in_flight: int = 3,
        timeout_s: float = 120.0,
    ):
        self._shards = shards
        self._batch_size = batch_size
        self._seed = (seed, rank)
        self._batches_per_request = batches_per_request
        self._max_in_flight = max_in_flight
        self._timeout_s = timeout_s

    def batches(self, num: int, first: int) -> Iterator[Batch]:
        """`num` batches, of which the first is number `first` of the run.

        Requests of `batches_per_request` start at `first`; a batch depends on the number and size of its request and
        on the shards' contents alone. Calls that cut a run at multiples of `batches_per_request` thus give the same
        batches as one call.
        Raises ReplayEmpty when no shard holds anything.
        """
        sizes = self._sizes()
        waiting: deque[tuple[int, int, list[Pending[Batch]]]] = deque()
        asked = 0
        while asked < num or waiting:
            while asked < num and len(waiting) < self._max_in_flight:
                count = min(self._batches_per_request, num - asked)
                waiting.append((first + asked, count, self._ask(first + asked, count, sizes, attempt=0)))
                asked += count
            number, count, parts = waiting.popleft()
            attempt = 0
            while (drawn := self._collect(parts)) is None:
                attempt += 1
                sizes = self._sizes()
                parts = self._ask(number, count, sizes, attempt)
            yield from split(drawn, self._order(number, attempt, count), self._batch_size)

    def _sizes(self) -> np.ndarray:
        """Trajectories per shard, 0 for a shard that is down. Raises ReplayEmpty when there is nothing anywhere."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            sizes = np.zeros(len(self._shards), dtype=np.int64)
            asked = [shard.num_trajectories() for shard in self._shards]
            down = 0
            for i, pending in enumerate(asked):
                try:
                    sizes[i] = pending.result(self._timeout_s)
                except ProcessDied:
                    down += 1
            if sizes.any():
                return sizes
            if not down:
                raise ReplayEmpty("the replay buffer is empty: no rollout has finished yet")
            if time.monotonic() > deadline:
                raise ReplayEmpty(f"{down} of {len(sizes)} replay shards are down, and no other one holds anything")
            time.sleep(RETRY_INTERVAL_S)

    def _ask(self, number: int, count: int, sizes: np.ndarray, attempt: int) -> list[Pending[Batch]]:
        rng = np.random.default_rng((*self._seed, number, attempt))
        per_shard = rng.multinomial(count * self._batch_size, sizes / sizes.sum())
        draw = (*self._seed, number, attempt)
        return [
            shard.sample(int(n), int(sizes.sum()), draw)
            for shard, n in zip(self._shards, per_shard, strict=True)
            if n > 0
        ]

    def _collect(self, parts: list[Pending[Batch]]) -> Batch | None:
        """The request's sequences, shard by shard, or None when a shard died over it or came back empty."""
        try:
            return Batch.concatenate([part.result(self._timeout_s) for part in parts])
        except (ProcessDied, ReplayEmpty):
            return None

    def _order(self, number: int, attempt: int, count: int) -> np.ndarray:
        rng = np.random.default_rng((*self._seed, number, attempt, 1))
        return rng.permutation(count * self._batch_size)


def split(drawn: Batch, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """Cut `drawn` into batches of `batch_size` sequences, taken in `order`."""
    num_rows = drawn.lengths + 1
    first_row = np.cumsum(num_rows) - num_rows
    for i in range(0, len(order), batch_size):
        chosen = order[i : i + batch_size]
        rows = np.concatenate([np.arange(first_row[j], first_row[j] + num_rows[j]) for j in chosen])
        yield Batch(
            columns={name: column[rows] for name, column in drawn.columns.items()},
            lengths=drawn.lengths[chosen],
            first_time_idx=drawn.first_time_idx[chosen],
            shard=drawn.shard[chosen],
            ids=drawn.ids[chosen],
            weight_version=drawn.weight_version[chosen],
            probability=drawn.probability[chosen],
        )
